"""Stop a trial early, judged by what finished runs gained after the same share of their epochs."""

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
"""Quality points that a whole run may still gain. Even if past runs gained nothing late, the next one may."""

_ALIKE = 6.0
"""Quality points between two runs at the same point. At this distance a finished run's gain weighs exp(-1/2) = 61 %."""

_ALIKE_RISE = 3.0
"""The same for the difference of the points gained over the last third of the epochs so far."""

_PRIOR_RUNS = 1.0
"""Imaginary runs beside the finished ones. One is enough that few runs never give certainty."""

_LEAST_LEFT = 0.02
"""Smallest share of a run that counts as left, so that the prior's mean never becomes zero."""


@dataclass(frozen=True)
class Forecast:
    """Forecast the best epoch of a run that is not finished.

    Attributes:
        quality: Expected quality of its best epoch, at most 100.
        sd: Standard deviation of that, in quality points.
        runs: Number of finished runs behind the forecast.
    """

    quality: float
    sd: float
    runs: int


class Outlook:
    """Judge an active run by the learning curves of finished runs."""

    def __init__(self, history: Sequence[RunHistory], total_epochs: int) -> None:
        """Resample the curves of fully trained runs to the epochs of the run to judge.

        Args:
            history: Runs on the same base model and data set. Runs that were stopped early are left out, since
                nobody knows what they would have gained.
            total_epochs: Epochs planned for the run to judge.
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
        """Return the number of finished runs to judge by."""
        return len(self._best)

    def gains(self, epoch: int, until: int | None = None) -> Array:
        """Return the points (>= 0) that each finished run gained after the same share of its epochs, shape (m,).

        Args:
            epoch: Epoch from which the gain counts.
            until: Epoch up to which it counts; the last one by default.
        """
        known = self._known(epoch)
        return np.asarray(known[:, (until or self.total) - 1] - known[:, epoch - 1])

    def forecast(self, curve: Curve, expected: Prediction | None = None) -> Forecast | None:
        """Forecast the run's best epoch; None without a finished run to compare with.

        Args:
            curve: Epochs of the run so far.
            expected: Prediction made before the run. It is combined with the curve, weighted by precision.
        """
        if not curve or not len(gains := self.gains(self._epoch(curve))):
            return None
        best = max(q for _, q in curve)
        weight = self._likeness(curve)
        mean = float(weight @ gains / weight.sum())
        # The noise of a measurement keeps the variance above zero if all finished runs gained the same.
        variance = float(weight @ (gains - mean) ** 2 / weight.sum()) + TOLERANCE**2
        reached = best + mean
        if expected is not None and expected.high > expected.low:
            # Half the width of the interval, converted to a variance. The two estimates are combined by precision.
            prior = ((expected.high - expected.low) / (2 * norm.ppf(0.5 + expected.confidence / 2))) ** 2
            promised = max(expected.quality, best)  # the run cannot end below what it has reached
            reached = (reached * prior + promised * variance) / (prior + variance)
            variance = prior * variance / (prior + variance)
        return Forecast(min(reached, 100.0), math.sqrt(variance), len(gains))

    def chance(self, curve: Curve, target: float, until: int | None = None) -> float:
        """Return the probability that the run beats the quality `target` by epoch `until` (default: by its end)."""
        epoch, end = self._epoch(curve), until or self.total
        needed = target - max(q for _, q in curve)
        return chance_of_gain(self.gains(epoch, end), needed, self._likeness(curve), (end - epoch) / self.total)

    def stop(self, curve: Curve, settings: StoppingSettings) -> str | None:
        """Return the reason to stop the run now, as one sentence; None to continue."""
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
        """Return the weight (0.001-1) of each finished run, shape (m,): high if it was as good and rose as fast."""
        epoch = self._epoch(curve)
        before = max(round(2 * epoch / 3), 1)
        known, best = self._known(epoch), max(q for _, q in curve)
        rise = best - max((q for e, q in curve if e <= before), default=best)
        apart = (known[:, epoch - 1] - best) / _ALIKE
        faster = (np.nan_to_num(known[:, epoch - 1] - known[:, before - 1], nan=rise) - rise) / _ALIKE_RISE
        # The floor keeps the sum of weights above zero when no run is similar.
        return np.maximum(np.exp(-0.5 * (apart**2 + faster**2)), 1e-3)


def should_stop(
    run: RunHistory, history: Sequence[RunHistory], settings: StoppingSettings, total_epochs: int
) -> str | None:
    """Return the reason to stop a trial now, as one sentence; None to continue.

    Arms of a paired test are never stopped. With several objectives, a trial that may still reach their Pareto
    front continues.

    Args:
        run: The trial with its measured epochs so far.
        history: Other runs on the same base model and data set.
        settings: Thresholds and objectives.
        total_epochs: Epochs planned for the trial.
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
    """Return the probability that a run reaches the Pareto front; 1 while too few runs are known."""
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
    """Return number and objectives of each epoch that has all of them, shape (epochs, 1 + objectives)."""
    means = [(e.epoch_number, e.quantitative_metrics.mean) for e in run.epochs if e.epoch_number > 0]
    rows = [[epoch, *(getattr(mean, name) for name in names)] for epoch, mean in means if mean is not None]
    return np.array([row for row in rows if None not in row], dtype=float).reshape(-1, 1 + len(names))


def expected_ends(history: Sequence[RunHistory]) -> dict[uuid.UUID, float]:
    """Forecast the best quality (0-100) of each run that was stopped early, by its identity.

    The forecast uses the late gains of finished runs on the same base model and data set. It never exceeds the best
    of these runs, since a run that was likely to beat the best would not have been stopped. Runs without a
    finished run to compare with are left out.
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
                # See above: a stopped run does not beat the best one.
                found[run.run.uid] = min(forecast.quality, outlook.target or forecast.quality)
    return found


def chance_of_gain(
    gains: Sequence[float] | Array, needed: float, weight: Array | None = None, left: float = 1.0
) -> float:
    """Return the probability that a run gains more than `needed` points.

    This is the weighted share of finished runs that gained as much, smoothed by a normal kernel (Silverman's
    rule of thumb), combined with one imaginary run whose gain is exponential with the same mean.

    Args:
        gains: Points gained by finished runs, shape (m,).
        needed: Points that are missing.
        weight: Weight of each finished run, in (0, 1]; all 1 by default.
        left: Share of the run that is left, in [0, 1]. It bounds the mean of the imaginary run from below.
    """
    if needed <= 0:
        return 1.0
    seen = np.asarray(gains, dtype=float)
    weights = np.ones(len(seen)) if weight is None else weight
    mean = float(weights @ seen / weights.sum())
    deviation = math.sqrt(float(weights @ (seen - mean) ** 2 / weights.sum()))
    # The kernel is at least as wide as the noise of a measurement, since equal gains would make it a step.
    width = max(1.06 * deviation * len(seen) ** -0.2, TOLERANCE)
    smooth = float(weights @ ndtr((seen - needed) / width))
    prior = _PRIOR_RUNS * math.exp(-needed / max(mean, _LEAST_SCALE * max(left, _LEAST_LEFT)))
    return (smooth + prior) / (float(weights.sum()) + _PRIOR_RUNS)


def chance_of_front(current: Array, gains: Array, front: Array) -> float:
    """Return the probability that a run still reaches the Pareto front of several objectives, all maximised.

    This is the share of finished runs whose gains, added to this run's values, would not be dominated. One
    imaginary run counts as undecided (one half). Optuna's pruners support a single objective only.

    Args:
        current: Best value of each objective so far, shape (k,).
        gains: Gains of finished runs from the same point on, shape (m, k).
        front: Points that other runs reached, shape (p, k).
    """
    reached = current + gains
    dominated = np.any(np.all(front[None, :, :] >= reached[:, None, :], axis=2), axis=1)
    return float((np.count_nonzero(~dominated) + 0.5 * _PRIOR_RUNS) / (len(gains) + _PRIOR_RUNS))


def _resampled(points: Curve | Array, planned: int, total: int) -> Array:
    """Return the running best after each of `total` equal shares of a run, shape (total,); nan before the first point.

    Args:
        points: (epoch, value) pairs in order.
        planned: Epochs planned for the run.
        total: Number of shares.
    """
    numbers, values = np.array([point for point in points if point[0] > 0], dtype=float).reshape(-1, 2).T
    best = np.maximum.accumulate(values)
    # The offset keeps a point that lies exactly on a share from falling behind it by rounding.
    place = np.searchsorted(numbers, np.arange(1, total + 1) * max(planned, 1) / total + 1e-9, side="right") - 1
    return np.asarray(np.where(place >= 0, best[np.maximum(place, 0)], np.nan))


def _planned(run: RunHistory, otherwise: int) -> int:
    """Return the epochs planned for a run, or `otherwise` if not recorded."""
    planned = run.run.all_parameters.get("max_train_epochs")
    return planned if isinstance(planned, int) else otherwise
