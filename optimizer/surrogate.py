"""What a setting will bring, from the runs so far: quality with an interval, and the risk of failure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import qmc, t

from optimizer.gaussian import GaussianProcess
from optimizer.history import best_quality, failed, informative
from optimizer.space import Space
from schema.findings import Prediction
from schema.parameters import ParameterValue
from schema.runs import RunHistory

Array = NDArray[np.float64]

PRIOR_P_FAIL = 0.2
"""Share of failing runs expected before anything was seen."""

_PRIOR_RUNS = 3.0  # runs that this expectation is worth
_CONFIDENCE = 0.9
_LEAST = 3
_ELSEWHERE = 0.25  # weight of a run on another base model or data set
_MOST = 300
_NEAREST = 3
_FOLDS = 10


@dataclass(frozen=True)
class Surrogate:
    """A fitted model; see `fit`."""

    space: Space
    n: int
    names: tuple[str, ...]
    x: Array  # (n, d)
    quality: GaussianProcess | None
    failure: GaussianProcess | None
    spread: float
    base_rate: float
    seen: tuple[float, ...]

    @classmethod
    def fit(
        cls, history: Sequence[RunHistory], space: Space, failed_quality: float, base_model: str, dataset: str
    ) -> Surrogate:
        """Learn from all runs that say something about their parameters; the newest 300 of them.

        Qualities and failures are each fitted by a Gaussian process. Runs on another base model or data set
        count a quarter, and their qualities are first moved by the difference of the means.

        Args:
            history: all runs there are.
            space: what is searched; parameters outside of it are not seen.
            failed_quality: best quality (0-100) below which a run failed.
            base_model: where predictions are for.
            dataset: likewise.
        """
        runs = informative(history)[-_MOST:]
        x = np.array([space.encode(h.run.all_parameters) for h in runs]).reshape(len(runs), len(space.columns))
        own = np.array([h.run.base_model == base_model and h.run.dataset == dataset for h in runs], dtype=bool)
        weight = np.where(own, 1.0, _ELSEWHERE)
        fails = np.array([failed(h, failed_quality) for h in runs], dtype=float)
        base_rate = float((_PRIOR_RUNS * PRIOR_P_FAIL + weight @ fails) / (_PRIOR_RUNS + weight.sum()))
        qualities = np.array([_or_nan(best_quality(h)) for h in runs])
        measured = ~np.isnan(qualities)
        levelled = _levelled(
            qualities[measured], own[measured], [_where(h) for h, m in zip(runs, measured, strict=True) if m]
        )
        process = _fit(x[measured], levelled, weight[measured], None)
        risk = _fit(x, fails, weight, base_rate) if 0 < fails.sum() < len(fails) else None
        spread = _calibrated(x[measured], levelled, weight[measured]) if process is not None else math.inf
        names = tuple(h.run.run_name for h in runs)
        return cls(space, len(runs), names, x, process, risk, spread, base_rate, tuple(levelled))

    def predict(self, parameters: Mapping[str, ParameterValue]) -> Prediction:
        """What a full set of parameters will bring; with fewer than 3 measured runs anything may happen."""
        point = self.space.encode(parameters)[None, :]
        if self.quality is None:
            expected = float(np.mean(self.seen)) if self.seen else 50.0
            low, high = 0.0, 100.0
        else:
            mean, sd = (float(v[0]) for v in self.quality.predict(point))
            expected, low, high = (_clip(mean + k * sd) for k in (0.0, -self.spread, self.spread))
        return Prediction(
            quality=expected,
            low=low,
            high=high,
            confidence=_CONFIDENCE,
            p_fail=float(self.risks(point)[0]),
            n=self.n,
            nearest=self._nearest(point),
        )

    def moments(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the quality at encoded settings (m, d): each (m,); needs 3 measured runs."""
        if self.quality is None:
            centre = float(np.mean(self.seen)) if self.seen else 50.0
            return np.full(len(x), centre), np.full(len(x), 30.0)
        return self.quality.predict(x)

    def risks(self, x: Array) -> Array:
        """Probability of failure at encoded settings (m, d): shape (m,), never quite 0 or 1."""
        if self.failure is None:
            return np.full(len(x), self.base_rate if self.n >= _LEAST else PRIOR_P_FAIL)
        # Least-squares classification: the expectation of a 0/1 outcome is its probability.
        return np.clip(self.failure.predict(x)[0], 0.01, 0.99)

    def importance(self) -> dict[str, float]:
        """Share of the modelled variation of quality that each parameter has a part in; sums to 1.

        Total-effect indices (Jansen, 1999) of the fitted surface. Empty before 3 runs were measured.
        """
        if self.quality is None:
            return {}
        d = len(self.space.names)
        units = qmc.Sobol(2 * d, rng=np.random.default_rng(0)).random_base2(8)  # (256, 2 d)
        first, other = (np.array([self.space.encode(self._at(u)) for u in part]) for part in np.split(units, 2, axis=1))
        surface = self.quality.predict(first)[0]
        columns = np.array(self.space.columns)
        raw = {}
        for name in self.space.names:
            mixed = np.where(columns == name, other, first)
            raw[name] = float(((surface - self.quality.predict(mixed)[0]) ** 2).mean())
        total = sum(raw.values())
        return {name: value / total if total > 0 else 0.0 for name, value in raw.items()}

    def _at(self, unit: Array) -> dict[str, ParameterValue]:
        return {**self.space.fixed, **self.space.at(unit)}

    def _nearest(self, point: Array) -> tuple[str, ...]:
        if not self.n:
            return ()
        scales = self.quality.scales if self.quality is not None else np.ones(self.x.shape[1])
        distance = (((self.x - point) / scales) ** 2).sum(axis=1)
        return tuple(self.names[i] for i in np.argsort(distance, kind="stable")[:_NEAREST])


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


def _calibrated(x: Array, y: Array, weight: Array) -> float:
    """Half width of the interval in predicted standard deviations.

    The conformal quantile of the errors, in predicted deviations, of models that were refitted without the
    run (ten folds: CV+, Barber et al. 2021), over our own runs if there are some. Where too few runs are
    there for the quantile to exist, at least what Student's distribution asks for.
    """
    folds = np.arange(len(y)) % min(len(y), _FOLDS)
    scores = np.empty(len(y))
    for fold in np.unique(folds):
        out = folds == fold
        process = GaussianProcess.fit(x[~out], y[~out], weight[~out], quick=True)
        mean, sd = process.predict(x[out])
        scores[out] = np.abs(y[out] - mean) / sd
    own = weight == weight.max()
    ranked = np.sort(scores[own] if own.sum() >= _LEAST else scores)
    rank = math.ceil((len(ranked) + 1) * _CONFIDENCE)
    if rank <= len(ranked):
        return float(ranked[rank - 1])
    student = float(t.ppf(0.5 + _CONFIDENCE / 2, len(ranked) - 1)) * math.sqrt(1 + 1 / len(ranked))
    return max(float(ranked[-1]), student)
