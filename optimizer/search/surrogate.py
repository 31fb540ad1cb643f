"""What a setting will bring, from the runs so far: quality with an interval, and the risk of failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc, t

from optimizer.control.stopping import expected_ends
from optimizer.history import best_quality, failed, how_it_ended, informative
from optimizer.search.forest import Forest
from optimizer.search.gaussian_process import GaussianProcess, one_thread
from optimizer.search.normal_scores import NormalScores
from optimizer.search.space import Space
from schema.findings import Prediction
from schema.parameters import ParameterValue
from schema.runs import Outcome, RunHistory

Array = NDArray[np.float64]

PRIOR_P_FAIL = 0.2
"""Share of failing runs expected before anything was seen."""

_PRIOR_RUNS = 3.0  # runs that this expectation is worth
_CONFIDENCE = 0.9
_LEAST = 3
_ELSEWHERE = 0.25  # weight of a run on another base model or data set
_STOPPED = 0.3
"""Weight of the quality of a run that was stopped early: it is what the run was on its way to."""

_NOTHING = np.array([50.0]), np.array([1.0])
_MOST = 300
_NEAREST = 3
_STEPS = 4
_FEW = 60
_FOLDS = 10
_STACKED = 10


@dataclass(frozen=True)
class Surrogate:
    """A fitted model; see `fit`."""

    space: Space
    n: int
    names: tuple[str, ...]
    x: Array  # (n, d)
    scale: NormalScores  # that qualities are predicted on
    quality: GaussianProcess | None  # of qualities as scores
    wary: GaussianProcess | None  # of the qualities themselves, a failed run counting as the worst that was measured
    failure: GaussianProcess | None
    votes: Forest | None
    steps: Forest | None  # of qualities as scores
    smooth: float  # share that the process has in an expectation, the forest having the rest
    spread: float
    base_rate: float
    seen: tuple[float, ...]
    best: float | None  # quality of our own best run
    units: Array  # (n, number of searched parameters), where the runs lie in the unit cube
    worth: Array  # (n,), qualities on our level, -inf where a run failed
    weight: float  # runs that all this is worth
    ends: tuple[str, ...]  # how each run failed, empty where it did not

    @classmethod
    def fit(
        cls, history: Sequence[RunHistory], space: Space, failed_quality: float, base_model: str, dataset: str
    ) -> Surrogate:
        """Learn from all runs that say something about their parameters; the newest 300 of them.

        Qualities and failures are each fitted by a Gaussian process. Predictions are made of the ranks of qualities,
        as normal scores: some runs go to nothing, and a mean of qualities would follow them. Runs on another base
        model or data set count a quarter, and their qualities are first moved by the difference of the means. Of a
        run that was stopped early its forecast is learnt, with less weight: the best it had would speak against a
        setting that needs its time.

        Args:
            history: all runs there are.
            space: what is searched; parameters outside of it are not seen.
            failed_quality: best quality (0-100) below which a run failed.
            base_model: where predictions are for.
            dataset: likewise.
        """
        with one_thread():
            return cls._fit(history, space, failed_quality, (base_model, dataset))

    @classmethod
    def _fit(
        cls, history: Sequence[RunHistory], space: Space, failed_quality: float, place: tuple[str, str]
    ) -> Surrogate:
        runs = informative(history)[-_MOST:]
        x = np.array([space.encode(h.run.all_parameters) for h in runs]).reshape(len(runs), len(space.columns))
        own = np.array([_where(h) == place for h in runs], dtype=bool)
        weight = np.where(own, 1.0, _ELSEWHERE)
        fails = np.array([failed(h, failed_quality) for h in runs], dtype=float)
        base_rate = float((_PRIOR_RUNS * PRIOR_P_FAIL + weight @ fails) / (_PRIOR_RUNS + weight.sum()))
        ends = expected_ends(runs)
        qualities = np.array([ends.get(h.run.uid, _or_nan(best_quality(h))) for h in runs])
        sure = weight * np.array([_STOPPED if h.run.outcome is Outcome.STOPPED_EARLY else 1.0 for h in runs])
        measured = ~np.isnan(qualities)
        places = [_where(h) for h, m in zip(runs, measured, strict=True) if m]
        levelled = _levelled(qualities[measured], own[measured], places)
        worth = np.full(len(runs), -math.inf)
        worth[measured] = np.where(fails[measured] > 0, -math.inf, levelled)
        scale = NormalScores.of(levelled, sure[measured]) if measured.any() else NormalScores.of(*_NOTHING)
        scores = scale.score(levelled)
        process = _fit(x[measured], scores, sure[measured], 0.0)
        steps = None if process is None else Forest.fit(x[measured], scores, sure[measured])
        wary = None
        if process is not None:
            # Beside a cliff the risk alone is too mild, and what a run had before it broke is no promise.
            fine = worth[np.isfinite(worth)]
            penalised = np.where(np.isfinite(worth), worth, fine.min() if len(fine) else 0.0)
            wary = GaussianProcess.fit(x, penalised, sure)
        smooth, spread = 1.0, math.inf
        if process is not None and steps is not None:
            smooth, spread = _calibrated(process, steps, x[measured], scores, sure[measured])
        risk = _fit(x, fails, weight, base_rate) if 0 < fails.sum() < len(fails) else None
        return cls(
            space=space,
            n=len(runs),
            names=tuple(h.run.run_name for h in runs),
            x=x,
            scale=scale,
            quality=process,
            wary=wary,
            failure=risk,
            votes=None if risk is None else Forest.fit(x, fails, weight),
            steps=steps,
            smooth=smooth,
            spread=spread,
            base_rate=base_rate,
            seen=tuple(levelled),
            best=max(levelled[own[measured]], default=None),
            units=np.array([space.units(h.run.all_parameters) for h in runs]),
            worth=worth,
            weight=float(weight.sum()),
            ends=tuple(_kind(h) if bad else "" for h, bad in zip(runs, fails, strict=True)),
        )

    def predict(self, parameters: Mapping[str, ParameterValue]) -> Prediction:
        """What a full set of parameters will bring; with fewer than 3 measured runs anything may happen."""
        with one_thread():
            return self._predict(parameters)

    def _predict(self, parameters: Mapping[str, ParameterValue]) -> Prediction:
        point = self.space.encode(parameters)[None, :]
        if self.quality is None:
            expected = float(np.mean(self.seen)) if self.seen else 50.0
            low, high = 0.0, 100.0
        else:
            mean, sd = self._scores(point)
            expected, low, high = (
                _clip(float(self.scale.quality(mean + k * sd)[0])) for k in (0.0, -self.spread, self.spread)
            )
        p_fail = float(self.risks(point)[0])
        return Prediction(
            quality=expected,
            low=low,
            high=high,
            confidence=_CONFIDENCE,
            p_fail=p_fail,
            n=self.n,
            worth=self.weight,
            nearest=self._nearest(point),
            failures=self._failures(point, p_fail),
            moves=self._moves(parameters),
        )

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the quality at encoded settings (m, d): each (m,); needs 3 measured runs."""
        if self.quality is None:
            centre = float(np.mean(self.seen)) if self.seen else 50.0
            return np.full(len(x), centre), np.full(len(x), 30.0)
        mean, sd = self._scores(x)
        below, above = self.scale.quality(mean - sd), self.scale.quality(mean + sd)
        return self.scale.quality(mean), (above - below) / 2

    def _scores(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the score at encoded settings (m, d): each (m,)."""
        assert self.quality is not None
        mean, sd = self.quality.predict(x)
        if self.steps is not None and self.smooth < 1.0:
            mean = self.smooth * mean + (1 - self.smooth) * self.steps.predict(x)
        return mean, sd

    def risks(self, x: Array) -> Array:
        """Probability of failure at encoded settings (m, d): shape (m,), never quite 0 or 1."""
        if self.failure is None:
            return np.full(len(x), self.base_rate if self.n >= _LEAST else PRIOR_P_FAIL)
        # Least-squares classification: the expectation of a 0/1 outcome is its probability. The forest sees the
        # cliffs sooner, the process how far they reach: on measured tables their mean tells better than either.
        smooth = np.clip(self.failure.expectation(x), 0.0, 1.0)
        return np.clip(smooth if self.votes is None else 0.5 * (smooth + self.votes.predict(x)), 0.01, 0.99)

    def importance(self) -> dict[str, float]:
        """Share of the modelled variation of quality that each parameter has a part in; sums to 1.

        Total-effect indices (Jansen, 1999) of the fitted surface. Empty before 3 runs were measured.
        """
        if self.quality is None:
            return {}
        d = len(self.space.names)
        units = qmc.Sobol(2 * d, rng=np.random.default_rng(0)).random_base2(8)  # (256, 2 d)
        first, other = (self.space.encode_units(part) for part in np.split(units, 2, axis=1))
        surface = self.quality.predict(first)[0]
        columns = np.array(self.space.columns)
        raw = {}
        for name in self.space.names:
            mixed = np.where(columns == name, other, first)
            raw[name] = float(((surface - self.quality.predict(mixed)[0]) ** 2).mean())
        total = sum(raw.values())
        return {name: value / total if total > 0 else 0.0 for name, value in raw.items()}

    def _nearest(self, point: Array) -> tuple[str, ...]:
        if not self.n:
            return ()
        scales = self.quality.scales if self.quality is not None else np.ones(self.x.shape[1])
        distance = (((self.x - point) / scales) ** 2).sum(axis=1)
        return tuple(self.names[i] for i in np.argsort(distance, kind="stable")[:_NEAREST])

    def _failures(self, point: Array, p_fail: float) -> dict[str, float]:
        """The risk of failure shared out over the kinds seen, near ones counting more."""
        if self.failure is None:
            return {}
        near = np.exp(-0.5 * self.failure.distances(point)[0])
        shares = {kind: float(near[np.array(self.ends) == kind].sum()) for kind in sorted(set(self.ends) - {""})}
        total = sum(shares.values())
        return {kind: p_fail * share / total for kind, share in shares.items()} if total > 0 else {}

    def _moves(self, parameters: Mapping[str, ParameterValue]) -> dict[str, float]:
        """Quality points that each searched parameter's value gains against its mean over the parameter's span."""
        if self.quality is None:
            return {}
        here = self.space.units(parameters)
        d = len(here)
        units = np.tile(here, (1 + d * _STEPS, 1))
        for i in range(d):
            units[1 + i * _STEPS : 1 + (i + 1) * _STEPS, i] = (np.arange(_STEPS) + 0.5) / _STEPS
        surface = self.scale.quality(self.quality.expectation(self.space.encode_units(units)))
        gains = surface[0] - surface[1:].reshape(d, _STEPS).mean(axis=1)
        return {name: float(gain) for name, gain in zip(self.space.names, gains, strict=True)}


def _kind(run: RunHistory) -> str:
    """How a run failed, without figures."""
    return "low quality" if how_it_ended(run).startswith("quality") else how_it_ended(run)


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _clip(value: float) -> float:
    return min(max(value, 0.0), 100.0)


def _where(run: RunHistory) -> tuple[str, str]:
    return run.run.base_model, run.run.dataset


def _levelled(values: Array, own: NDArray[np.bool_], places: Sequence[tuple[str, str]]) -> Array:
    """Qualities with each other place's mean moved onto ours; shrunk, since few runs make a poor mean."""
    if own.sum() == 0 or own.all():
        return values
    result = values.copy()
    target = float(values[own].mean())
    for place in dict.fromkeys(p for p, mine in zip(places, own, strict=True) if not mine):
        here = np.array([p == place for p in places])
        counts = 1 / (1 / own.sum() + 1 / here.sum())  # effective runs behind the difference
        result[here] += (target - values[here].mean()) * counts / (counts + 1)
    return result


def _fit(x: Array, y: Array, weight: Array, mean: float | None) -> GaussianProcess | None:
    return GaussianProcess.fit(x, y, weight, mean) if len(y) >= _LEAST else None


def _calibrated(process: GaussianProcess, steps: Forest, x: Array, y: Array, weight: Array) -> tuple[float, float]:
    """The process's share in expectations, and the half width of intervals in predicted standard deviations.

    Both from errors where each run was left out of the model (jackknife+ and CV+, Barber et al. 2021), over our
    own runs if there are some: the share that makes them least (stacking, Breiman 1996), and the conformal
    quantile of what is left. Of few runs the length scales are fitted again without each fold, of many they
    stay as they are. Where too few runs are there for the quantile, at least what Student's distribution asks.
    """
    mean, sd = process.left_out() if len(y) > _FEW else _refitted(process, x, y, weight)
    own = weight == weight.max() if (weight == weight.max()).sum() >= _LEAST else np.ones(len(y), dtype=bool)
    share = _share(mean[own], steps.left_out[own], y[own])
    error = y - share * mean - (1 - share) * steps.left_out
    ranked = np.sort((np.abs(error) / sd)[own])
    rank = math.ceil((len(ranked) + 1) * _CONFIDENCE)
    if rank <= len(ranked):
        return share, float(ranked[rank - 1])
    student = float(t.ppf(0.5 + _CONFIDENCE / 2, len(ranked) - 1)) * math.sqrt(1 + 1 / len(ranked))
    return share, max(float(ranked[-1]), student)


def _share(smooth: Array, stepped: Array, y: Array) -> float:
    """Weight of the first of two predictions at which their mean has least squared error, in [0, 1]."""
    apart = smooth - stepped
    if len(y) < _STACKED or not apart.any():
        return 1.0
    return min(max(float(apart @ (y - stepped)) / float(apart @ apart), 0.0), 1.0)


def _refitted(process: GaussianProcess, x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Mean and deviation of each run by a model fitted without its fold: each (n,)."""
    folds = np.arange(len(y)) % min(len(y), _FOLDS)
    mean, sd = np.empty(len(y)), np.empty(len(y))
    for fold in np.unique(folds):
        out = folds == fold
        without = GaussianProcess.fit(x[~out], y[~out], weight[~out], near=process)
        mean[out], sd[out] = without.predict(x[out])
    return mean, sd
