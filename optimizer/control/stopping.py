"""Ending a trial early: what finished runs still gained from the same point on."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import norm

from optimizer.control.objective import TOLERANCE, Curve, curve_state
from optimizer.history import best_quality, best_run, related
from schema.campaign import StoppingSettings
from schema.findings import Prediction
from schema.runs import Outcome, RunHistory

Array = NDArray[np.float64]

_LEAST_SCALE = 5.0
"""Quality points in a whole run: even where past runs gained nothing late, the next one may."""

_ALIKE = 6.0
"""Quality points apart at which a finished run's gain tells this run little; 61 % of a like one's."""

_ALIKE_RISE = 3.0
"""The same of the points that the two gained in the last third of their epochs so far."""

_PRIOR_RUNS = 1.0
_LEAST_LEFT = 0.02


@dataclass(frozen=True)
class Forecast:
    """What a run's curve so far leads to.

    Attributes:
        quality: expected quality of its best epoch, 0-100.
        sd: standard deviation of that.
        runs: finished runs it was judged by.
    """

    quality: float
    sd: float
    runs: int


class Outlook:
    """Curves of finished runs, laid ready to judge one that still runs."""

    def __init__(self, history: Sequence[RunHistory], total_epochs: int) -> None:
        """Lay the fully trained runs' curves ready.

        Args:
            history: runs on the same base model and data set; those that were stopped themselves are left
                out, for what they would have gained is unknown.
            total_epochs: epochs planned for the run to judge.
        """
        self.total = total_epochs
        finished = [h for h in history if h.run.outcome is Outcome.OK and h.curve]
        bests = [_resampled(h.curve, _planned(h, h.run.epochs_done), total_epochs) for h in finished]
        self._best = np.array(bests).reshape(len(finished), total_epochs)
        champion = best_run(history)
        self.target = None if champion is None else best_quality(champion)
        self.champion = "" if champion is None else champion.run.run_name

    @property
    def runs(self) -> int:
        """Finished runs that there are to judge by."""
        return len(self._best)

    def gains(self, epoch: int, until: int | None = None) -> Array:
        """Points (>= 0) that each finished run gained after the same share of its epochs: shape (m,).

        Args:
            epoch: after which.
            until: epoch at which the gain is looked at; the end if left out.
        """
        known = self._known(epoch)
        return np.asarray(known[:, (until or self.total) - 1] - known[:, epoch - 1])

    def forecast(self, curve: Curve, expected: Prediction | None = None) -> Forecast | None:
        """What the run will come to; None where no finished run tells.

        Args:
            curve: its epochs so far.
            expected: what its parameters promised before the run; counts by its certainty.
        """
        if not curve or not len(gains := self.gains(self._epoch(curve))):
            return None
        best = max(q for _, q in curve)
        weight = self._likeness(curve)
        mean = float(weight @ gains / weight.sum())
        variance = float(weight @ (gains - mean) ** 2 / weight.sum()) + TOLERANCE**2
        reached = best + mean
        if expected is not None and expected.high > expected.low:
            prior = ((expected.high - expected.low) / (2 * norm.ppf(0.5 + expected.confidence / 2))) ** 2
            told = max(expected.quality, best)  # it has that already
            reached = (reached * prior + told * variance) / (prior + variance)
            variance = prior * variance / (prior + variance)
        return Forecast(min(reached, 100.0), math.sqrt(variance), len(gains))

    def chance(self, curve: Curve, target: float, until: int | None = None) -> float:
        """Probability that the run's best epoch will beat `target`, by epoch `until` or its end."""
        epoch, end = self._epoch(curve), until or self.total
        needed = target - max(q for _, q in curve)
        return chance_of_gain(self.gains(epoch, end), needed, self._likeness(curve), (end - epoch) / self.total)

    def stop(self, curve: Curve, settings: StoppingSettings) -> str | None:
        """Why the run should end now, as a sentence, or None to go on."""
        if not settings.enabled or not curve or self.target is None:
            return None
        epoch = curve[-1][0]
        gains = self.gains(self._epoch(curve))
        if epoch < max(settings.min_epochs, settings.min_share * self.total) or epoch >= self.total:
            return None
        if len(gains) < settings.min_runs or (chance := self.chance(curve, self.target)) >= settings.min_chance:
            return None
        needed = self.target - max(q for _, q in curve)
        return (
            f"the chance of beating {self.champion} ({self.target:.1f}) is {chance:.0%}: {needed:.1f} points are "
            f"missing after epoch {epoch} ({curve_state(curve)}), and from there {len(gains)} finished runs gained "
            f"{gains.max():.1f} at most"
        )

    def _epoch(self, curve: Curve) -> int:
        return min(max(curve[-1][0], 1), self.total)

    def _known(self, epoch: int) -> Array:
        return np.asarray(self._best[~np.isnan(self._best[:, epoch - 1])])

    def _likeness(self, curve: Curve) -> Array:
        """How much each finished run's gain tells of this one: it stood as high then, and rose as fast."""
        epoch = self._epoch(curve)
        before = max(round(2 * epoch / 3), 1)
        known, best = self._known(epoch), max(q for _, q in curve)
        rise = best - max((q for e, q in curve if e <= before), default=best)
        apart = (known[:, epoch - 1] - best) / _ALIKE
        faster = (np.nan_to_num(known[:, epoch - 1] - known[:, before - 1], nan=rise) - rise) / _ALIKE_RISE
        return np.maximum(np.exp(-0.5 * (apart**2 + faster**2)), 1e-3)


def should_stop(
    run: RunHistory, history: Sequence[RunHistory], settings: StoppingSettings, total_epochs: int
) -> str | None:
    """Why a trial should end now, as a sentence, or None to go on; a half of a paired test always goes on.

    Args:
        run: the trial with its measured epochs so far.
        history: other runs on the same base model and data set.
        settings: how sure one must be, and of what.
        total_epochs: epochs the trial was planned for.
    """
    if run.run.is_half:
        return None
    reason = Outlook(history, total_epochs).stop(run.curve, settings)
    if reason is None or not settings.objectives:
        return reason
    chance = _chance_of_front(run, history, settings, total_epochs)
    if chance >= settings.min_chance:
        return None
    return f"{reason}; the chance of a place on the front of {' and '.join(settings.objectives)} is {chance:.0%}"


def _chance_of_front(run: RunHistory, history: Sequence[RunHistory], settings: StoppingSettings, total: int) -> float:
    """See `chance_of_front`; certain where nothing is known."""
    names = settings.objectives
    known = {h.run.uid: found for h in history if len(found := _measured(h, names))}
    finished = [h for h in history if h.run.outcome is Outcome.OK and h.run.uid in known]
    own = _measured(run, names)
    if not len(own) or len(finished) < settings.min_runs:
        return 1.0
    tracks = np.array(
        [
            [_resampled(known[h.run.uid][:, [0, k]], _planned(h, h.run.epochs_done), total) for h in finished]
            for k in range(1, len(names) + 1)
        ]
    )  # (objectives, runs, epochs)
    epoch = min(max(int(own[-1, 0]), 1), total)
    gains = (tracks[:, :, -1] - tracks[:, :, epoch - 1]).T
    gains = gains[~np.isnan(gains).any(axis=1)]
    return chance_of_front(own[:, 1:].max(axis=0), gains, np.vstack([found[:, 1:] for found in known.values()]))


def _measured(run: RunHistory, names: Sequence[str]) -> Array:
    """Epoch and objectives of each epoch that has all of them: shape (epochs, 1 + objectives)."""
    means = [(e.epoch_number, e.quantitative_metrics.mean) for e in run.epochs if e.epoch_number > 0]
    rows = [[epoch, *(getattr(mean, name) for name in names)] for epoch, mean in means if mean is not None]
    return np.array([row for row in rows if None not in row], dtype=float).reshape(-1, 1 + len(names))


def expected_ends(history: Sequence[RunHistory]) -> dict[uuid.UUID, float]:
    """Best quality (0-100) that runs stopped early would have come to, by their identity.

    From what finished runs on the same base model and data set still gained; at most the best of these, since
    none was stopped that was likely to beat it. Those that no finished run tells of are left out.
    """
    stopped = [h for h in history if h.run.outcome is Outcome.STOPPED_EARLY and h.curve]
    found: dict[uuid.UUID, float] = {}
    for model, data in dict.fromkeys((h.run.base_model, h.run.dataset) for h in stopped):
        here = related(history, model, data)
        longest = max(h.run.epochs_done for h in here)
        outlooks = {
            total: Outlook(here, total) for total in {_planned(h, longest) for h in related(stopped, model, data)}
        }
        for run in related(stopped, model, data):
            outlook = outlooks[_planned(run, longest)]
            forecast = outlook.forecast(run.curve)
            if forecast is not None:
                found[run.run.uid] = min(forecast.quality, outlook.target or forecast.quality)
    return found


def chance_of_gain(
    gains: Sequence[float] | Array, needed: float, weight: Array | None = None, left: float = 1.0
) -> float:
    """Probability that a run gains more than `needed` points.

    The empirical share, smoothed by a normal kernel (Silverman's rule), together with one made-up
    run from an exponential distribution of the same mean, so that few runs never give certainty.

    Args:
        gains: of finished runs, shape (m,).
        needed: points that are missing.
        weight: how much each of them tells, in (0, 1]; all alike if left out.
        left: share of a whole run in which it may gain, in [0, 1].
    """
    if needed <= 0:
        return 1.0
    seen = np.asarray(gains, dtype=float)
    told = np.ones(len(seen)) if weight is None else weight
    mean = float(told @ seen / told.sum())
    deviation = math.sqrt(float(told @ (seen - mean) ** 2 / told.sum()))
    width = max(1.06 * deviation * len(seen) ** -0.2, TOLERANCE)
    smooth = float(told @ ndtr((seen - needed) / width))
    prior = _PRIOR_RUNS * math.exp(-needed / max(mean, _LEAST_SCALE * max(left, _LEAST_LEFT)))
    return (smooth + prior) / (float(told.sum()) + _PRIOR_RUNS)


def chance_of_front(current: Array, gains: Array, front: Array) -> float:
    """Probability that a run still gets onto a Pareto front of several objectives, all to be maximised.

    Optuna's pruners know one objective only. The share of finished runs whose gains, added to what this run
    has, would not be dominated, with one more that is undecided.

    Args:
        current: best of each objective so far, shape (k,).
        gains: what finished runs gained in each from the same point on, shape (m, k).
        front: points that others reached, shape (p, k).
    """
    reached = current + gains
    dominated = np.any(np.all(front[None, :, :] >= reached[:, None, :], axis=2), axis=1)
    return float((np.count_nonzero(~dominated) + 0.5 * _PRIOR_RUNS) / (len(gains) + _PRIOR_RUNS))


def _resampled(points: Curve | Array, planned: int, total: int) -> Array:
    """Best value so far after each of `total` equal shares of a run, shape (total,); nan before the first.

    Args:
        points: (epoch, value), in order.
        planned: epochs the run was to have.
        total: shares.
    """
    numbers, values = np.array([point for point in points if point[0] > 0], dtype=float).reshape(-1, 2).T
    best = np.maximum.accumulate(values)
    place = np.searchsorted(numbers, np.arange(1, total + 1) * max(planned, 1) / total + 1e-9, side="right") - 1
    return np.asarray(np.where(place >= 0, best[np.maximum(place, 0)], np.nan))


def _planned(run: RunHistory, otherwise: int) -> int:
    """Epochs that a run was to have."""
    planned = run.run.all_parameters.get("max_train_epochs")
    return planned if isinstance(planned, int) else otherwise
