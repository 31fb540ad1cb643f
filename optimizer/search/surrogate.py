"""Predict the result of a setting from past runs: quality with an interval, and the risk of failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc, t

from optimizer.control.stopping import expected_ends
from optimizer.history import best_quality, failed, informative, kind_of_failure
from optimizer.search.forest import Forest
from optimizer.search.gaussian_process import GaussianProcess, one_thread
from optimizer.search.normal_scores import NormalScores
from optimizer.search.space import Space
from schema.findings import Prediction
from schema.parameters import ParameterValue
from schema.runs import Outcome, RunHistory

Array = NDArray[np.float64]

PRIOR_P_FAIL = 0.2
"""Share of failing runs to expect before any run was seen. Chosen by hand."""

_PRIOR_RUNS = 3.0  # weight of this expectation, in runs; chosen by hand
_CONFIDENCE = 0.9
"""Share of results that prediction intervals should hold. Measured coverage: 0.94 (benchmarks/RESULTS.md)."""

_MIN_RUNS = 3
"""Measured runs before a model is fitted. Chosen by hand: two runs say nothing about the length scales."""

_ELSEWHERE = 0.25  # weight of a run on another base model or data set; chosen by hand
_STOPPED = 0.3
"""Weight of a run that was stopped early. Its quality is a forecast; at full weight these gained nothing."""

_NO_QUALITIES = np.array([50.0]), np.array([1.0])  # centre of the scale while nothing was measured
_MAX_RUNS = 300
"""Newest runs to learn from. It bounds the fit, whose time grows with the cube of the number of runs."""

_NEAREST = 3
"""Most similar runs that a prediction names. Chosen by hand: as many as a sentence can hold."""

_STEPS = 4
"""Points on a parameter's axis to average over. Chosen by hand: each point costs one evaluation per parameter."""

_REFIT_UP_TO = 60
"""Runs up to which cross-validation refits the length scales. Chosen by hand: each fold costs a fit."""

_FOLDS = 10
"""Folds of that cross-validation. Chosen by hand: the usual number."""

_STACKED_FROM = 10
"""Runs needed to weigh process and forest. Chosen by hand: a weight from fewer errors is mostly noise."""


@dataclass(frozen=True)
class Surrogate:
    """Predict quality and risk of failure of settings. Make one with `fit`."""

    space: Space
    n: int  # runs it was fitted to
    names: tuple[str, ...]  # of these runs
    x: Array  # (n, d), encoded settings of the runs
    scale: NormalScores  # converts between qualities and the normal scores that are modelled
    quality: GaussianProcess | None  # of normal scores; None below 3 measured runs
    penalised: GaussianProcess | None  # of qualities, where failed runs count as the worst measured quality
    failure: GaussianProcess | None  # of 0/1 failures; None if all runs failed or none did
    failure_forest: Forest | None  # of 0/1 failures
    quality_forest: Forest | None  # of normal scores
    smooth: float  # weight of the process in an expected score; the forest has the rest
    spread: float  # half width of an interval, in predicted standard deviations
    base_rate: float  # share of failures, with the prior
    seen: tuple[float, ...]  # measured qualities, levelled
    best: float | None  # best quality on our base model and data set
    units: Array  # (n, number of searched parameters), the runs in the unit cube
    levels: Array  # (n,), levelled qualities; -inf for failed runs
    weight: float  # number of own runs that the data is worth
    ends: tuple[str, ...]  # how each run failed; empty if it did not

    @classmethod
    def fit(
        cls, history: Sequence[RunHistory], space: Space, failed_quality: float, base_model: str, dataset: str
    ) -> Surrogate:
        """Fit to the newest 300 runs that say something about their parameters.

        Qualities and failures are each modelled by a Gaussian process and a forest. Qualities are first converted to
        normal scores of their ranks, since a few collapsed runs would pull down every mean. Runs on another base
        model or data set have a weight of a quarter, and their qualities are shifted by the difference of the means.
        Runs that were stopped early count with the forecast of their best quality, at a lower weight: their
        best quality so far would punish settings that improve late.

        Args:
            history: All runs in the store.
            space: Search space. Parameters outside of it are ignored.
            failed_quality: Best quality (0-100) below which a run failed.
            base_model: Base model to predict for.
            dataset: Data set to predict for.
        """
        with one_thread():
            return cls._fit(history, space, failed_quality, (base_model, dataset))

    @classmethod
    def _fit(
        cls, history: Sequence[RunHistory], space: Space, failed_quality: float, place: tuple[str, str]
    ) -> Surrogate:
        runs = informative(history)[-_MAX_RUNS:]
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
        levels = np.full(len(runs), -math.inf)
        levels[measured] = np.where(fails[measured] > 0, -math.inf, levelled)
        scale = NormalScores.of(levelled, sure[measured]) if measured.any() else NormalScores.of(*_NO_QUALITIES)
        scores = scale.score(levelled)
        process = _fit(x[measured], scores, sure[measured], 0.0)
        forest = None if process is None else Forest.fit(x[measured], scores, sure[measured])
        penalised = None
        if process is not None:
            # The risk alone does not keep the search away from a cliff, and the quality that a run had before
            # it failed promises nothing. So failed runs also count as the worst quality.
            fine = levels[np.isfinite(levels)]
            floored = np.where(np.isfinite(levels), levels, fine.min() if len(fine) else 0.0)
            penalised = GaussianProcess.fit(x, floored, sure)
        smooth, spread = 1.0, math.inf
        if process is not None and forest is not None:
            smooth, spread = _calibrated(process, forest, x[measured], scores, sure[measured])
        # If all runs failed or none did, there is no boundary to learn, and the base rate is all we know.
        risk = _fit(x, fails, weight, base_rate) if 0 < fails.sum() < len(fails) else None
        return cls(
            space=space,
            n=len(runs),
            names=tuple(h.run.run_name for h in runs),
            x=x,
            scale=scale,
            quality=process,
            penalised=penalised,
            failure=risk,
            failure_forest=None if risk is None else Forest.fit(x, fails, weight),
            quality_forest=forest,
            smooth=smooth,
            spread=spread,
            base_rate=base_rate,
            seen=tuple(levelled),
            best=max(levelled[own[measured]], default=None),
            units=np.array([space.units(h.run.all_parameters) for h in runs]),
            levels=levels,
            weight=float(weight.sum()),
            ends=tuple(kind_of_failure(h) if bad else "" for h, bad in zip(runs, fails, strict=True)),
        )

    def predict(self, parameters: Mapping[str, ParameterValue]) -> Prediction:
        """Predict the result of a full set of parameters. Below 3 measured runs the interval is 0 to 100."""
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
        """Return mean and standard deviation of the quality at encoded settings of shape (m, d): each (m,).

        Below 3 measured runs these are the mean of the qualities and 30 points.
        """
        if self.quality is None:
            centre = float(np.mean(self.seen)) if self.seen else 50.0
            return np.full(len(x), centre), np.full(len(x), 30.0)
        mean, sd = self._scores(x)
        below, above = self.scale.quality(mean - sd), self.scale.quality(mean + sd)
        return self.scale.quality(mean), (above - below) / 2

    def _scores(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the normal score at encoded settings of shape (m, d): each (m,)."""
        assert self.quality is not None
        mean, sd = self.quality.predict(x)
        if self.quality_forest is not None and self.smooth < 1.0:
            mean = self.smooth * mean + (1 - self.smooth) * self.quality_forest.predict(x)
        return mean, sd

    def risks(self, x: Array) -> Array:
        """Return the probability of failure at encoded settings of shape (m, d): shape (m,), in [0.01, 0.99]."""
        if self.failure is None:
            return np.full(len(x), self.base_rate if self.n >= _MIN_RUNS else PRIOR_P_FAIL)
        # Least-squares classification: the expectation of a 0/1 outcome is its probability. The forest finds cliffs
        # sooner and the process how far they reach. On measured tables their mean predicts better than either.
        smooth = np.clip(self.failure.expectation(x), 0.0, 1.0)
        both = smooth if self.failure_forest is None else 0.5 * (smooth + self.failure_forest.predict(x))
        return np.clip(both, 0.01, 0.99)

    def importance(self) -> dict[str, float]:
        """Return each parameter's share of the modelled variation of quality. The shares sum to 1.

        These are the total-effect indices (Jansen, 1999) of the fitted surface. Empty below 3 measured runs.
        """
        if self.quality is None:
            return {}
        d = len(self.space.names)
        # Two independent samples side by side, as Jansen's estimator needs.
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
        """Split the risk of failure between the observed kinds of failure, weighted by their distance to the point."""
        if self.failure is None:
            return {}
        near = np.exp(-0.5 * self.failure.distances(point)[0])
        shares = {kind: float(near[np.array(self.ends) == kind].sum()) for kind in sorted(set(self.ends) - {""})}
        total = sum(shares.values())
        return {kind: p_fail * share / total for kind, share in shares.items()} if total > 0 else {}

    def _moves(self, parameters: Mapping[str, ParameterValue]) -> dict[str, float]:
        """Return the quality points that each parameter's value gains over the mean along its axis."""
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


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _clip(value: float) -> float:
    return min(max(value, 0.0), 100.0)


def _where(run: RunHistory) -> tuple[str, str]:
    return run.run.base_model, run.run.dataset


def _levelled(values: Array, own: NDArray[np.bool_], places: Sequence[tuple[str, str]]) -> Array:
    """Shift the qualities of each other base model or data set so that its mean matches ours.

    The shift is shrunk where it rests on few runs, since their mean is uncertain.
    """
    if own.sum() == 0 or own.all():
        return values
    result = values.copy()
    target = float(values[own].mean())
    for place in dict.fromkeys(p for p, mine in zip(places, own, strict=True) if not mine):
        here = np.array([p == place for p in places])
        counts = 1 / (1 / own.sum() + 1 / here.sum())  # effective number of runs behind the difference
        result[here] += (target - values[here].mean()) * counts / (counts + 1)
    return result


def _fit(x: Array, y: Array, weight: Array, mean: float | None) -> GaussianProcess | None:
    return GaussianProcess.fit(x, y, weight, mean) if len(y) >= _MIN_RUNS else None


def _calibrated(process: GaussianProcess, forest: Forest, x: Array, y: Array, weight: Array) -> tuple[float, float]:
    """Return the weight of the process in expectations, and the half width of intervals in standard deviations.

    Both come from prediction errors on left-out runs (jackknife+ and CV+, Barber et al. 2021), using only our own
    runs if there are enough. The weight minimises these errors (stacking, Breiman 1996), and the half width is the
    conformal quantile of the rest. Up to 60 runs, the length scales are refitted without each fold. If there are too
    few runs for the quantile, the half width is at least that of Student's distribution.
    """
    mean, sd = process.left_out() if len(y) > _REFIT_UP_TO else _refitted(process, x, y, weight)
    # The highest weight usually marks finished runs on our own base model and data set.
    own = weight == weight.max() if (weight == weight.max()).sum() >= _MIN_RUNS else np.ones(len(y), dtype=bool)
    share = _share(mean[own], forest.left_out[own], y[own])
    error = y - share * mean - (1 - share) * forest.left_out
    ranked = np.sort((np.abs(error) / sd)[own])
    rank = math.ceil((len(ranked) + 1) * _CONFIDENCE)
    if rank <= len(ranked):
        return share, float(ranked[rank - 1])
    student = float(t.ppf(0.5 + _CONFIDENCE / 2, len(ranked) - 1)) * math.sqrt(1 + 1 / len(ranked))
    return share, max(float(ranked[-1]), student)


def _share(smooth: Array, stepped: Array, y: Array) -> float:
    """Return the weight (0-1) of the first of two predictions that minimises the squared error of their mean."""
    apart = smooth - stepped
    if len(y) < _STACKED_FROM or not apart.any():
        return 1.0
    return min(max(float(apart @ (y - stepped)) / float(apart @ apart), 0.0), 1.0)


def _refitted(process: GaussianProcess, x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Return mean and standard deviation of each run, predicted without its fold: each (n,)."""
    folds = np.arange(len(y)) % min(len(y), _FOLDS)
    mean, sd = np.empty(len(y)), np.empty(len(y))
    for fold in np.unique(folds):
        out = folds == fold
        without = GaussianProcess.fit(x[~out], y[~out], weight[~out], near=process)
        mean[out], sd[out] = without.predict(x[out])
    return mean, sd
