"""What healthy runs look like: the measure of whether another run is ill, and in what it differs."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.effects.responses import NO_CAUSE
from optimizer.history import best_quality
from optimizer.search.space import active
from schema.parameters import PARAMETERS, Parameters, ParameterValue
from schema.runs import Outcome, RunHistory
from schema.taxonomy import Category, Kind

_LEAST = 3
_GOOD = 0.8  # of the best run's quality
_SPREAD = 2.0  # quality points: runs that differ by the seed alone differ by about one
_ALLOWANCE = 3.0  # spreads below the median of healthy runs
_NO_CATEGORY = (Category.RESOURCES,)
_MAKE_STEPS = frozenset(("num_repeats", "train_batch_size", "gradient_accumulation_steps"))
_USUAL_STEPS = 1.5  # times more or fewer optimizer steps than healthy runs have

ALPHAS = {"network_alpha": "network_dim", "conv_alpha": "conv_dim"}
"""Alphas with the ranks that they are divided by."""


@dataclass(frozen=True)
class Departure:
    """One parameter that lies outside what healthy runs have.

    Attributes:
        size: how far outside, in spans that a search has (`schema.taxonomy`); 1 for a value of no scale.
        high: above them; None for a value of no scale.
        usual: what they have, as values.
        runs: how many of them have any; the others make no use of the parameter.
    """

    name: str
    value: ParameterValue
    size: float
    high: bool | None
    usual: tuple[ParameterValue, ...]
    runs: int


@dataclass(frozen=True)
class Healthy:
    """Good runs to compare with: ended well, and not far below the best."""

    runs: tuple[RunHistory, ...]

    @classmethod
    def of(cls, past: Sequence[RunHistory]) -> Healthy:
        """The good ones of past runs; too few are none at all."""
        ended = [h for h in past if h.run.outcome in (Outcome.OK, Outcome.STOPPED_EARLY)]
        scores = [q for q in map(best_quality, ended) if q is not None]
        good = [h for h in ended if scores and (best_quality(h) or 0.0) >= _GOOD * max(scores)]
        return cls(tuple(good) if len(good) >= _LEAST else ())

    def __bool__(self) -> bool:
        return bool(self.runs)

    @property
    def quality(self) -> float:
        """Median of their best qualities."""
        return float(np.median([best_quality(h) or 0.0 for h in self.runs]))

    @property
    def floor(self) -> float:
        """Quality below which a run is worse than chance makes healthy ones."""
        qualities = np.array([best_quality(h) or 0.0 for h in self.runs])
        spread = max(1.4826 * float(np.median(np.abs(qualities - np.median(qualities)))), _SPREAD)
        return float(np.median(qualities)) - _ALLOWANCE * spread

    def shortfall(self, run: RunHistory) -> float:
        """Quality points that a run lacks against healthy ones; 0 where it is as good as chance makes them."""
        quality = best_quality(run) or 0.0
        return self.quality - quality if self and quality < self.floor else 0.0

    def share_with(self, issue: str, names: Mapping[str, set[str]]) -> float:
        """Share of the healthy runs that show an issue too; `names`: the issues of each by run name."""
        return float(np.mean([issue in names[h.run.run_name] for h in self.runs])) if self else 0.0

    def departures(self, run: RunHistory) -> list[Departure]:
        """The parameters that lie outside what healthy runs have, the farthest first."""
        if not self:
            return []
        found = [_departure(name, value, self._usual.get(name, ())) for name, value in scaled(run).items()]
        return sorted((d for d in found if d is not None and not self._follows(d.name, run)), key=lambda d: -d.size)

    # What many runs are held against is worked out once.
    @functools.cached_property
    def _usual(self) -> dict[str, tuple[ParameterValue, ...]]:
        """By parameter, the value that each of them has."""
        theirs = [scaled(h) for h in self.runs]
        names = dict.fromkeys(name for other in theirs for name in other)
        return {name: tuple(other.get(name) for other in theirs) for name in names}

    @functools.cached_property
    def _usual_alphas(self) -> dict[str, list[float]]:
        used = [active(h.run.all_parameters) for h in self.runs]
        return {name: [a for a in (_number(p[name]) for p in used) if a is not None] for name in ALPHAS}

    @functools.cached_property
    def _steps(self) -> list[float]:
        return [n for n in map(_steps, self.runs) if n is not None]

    def _follows(self, name: str, run: RunHistory) -> bool:
        """Whether a departure is made up for, or follows from another one.

        An alpha's ratio may be unusual for its rank alone; repeats and batch matter where they change the steps.
        """
        if name in _MAKE_STEPS:
            return self._usual_steps(run)
        if name not in ALPHAS:
            return False
        usual, mine = self._usual_alphas[name], _number(active(run.run.all_parameters)[name])
        return mine is not None and bool(usual) and min(usual) <= mine <= max(usual)

    def _usual_steps(self, run: RunHistory) -> bool:
        steps, usual = _steps(run), self._steps
        if steps is None or not usual:
            return False
        return min(usual) / _USUAL_STEPS <= steps <= max(usual) * _USUAL_STEPS


def _steps(run: RunHistory) -> float | None:
    """Optimizer steps of a run as it was planned; None where the number of pictures is not known."""
    used = active(run.run.all_parameters)
    numbers = [_number(used[name]) for name in ("num_repeats", "max_train_epochs")]
    shared = [_number(used[name]) for name in ("train_batch_size", "gradient_accumulation_steps")]
    if run.run.num_images is None or None in (*numbers, *shared):
        return None
    return run.run.num_images * math.prod(n or 1.0 for n in numbers) / math.prod(n or 1.0 for n in shared)


def scaled(run: RunHistory) -> Parameters:
    """A run's effective parameters, alphas as their ratio to the rank: what a rank and its alpha share is no cause."""
    used = active(run.run.all_parameters)
    for alpha, rank in ALPHAS.items():
        top, bottom = used[alpha], used[rank]
        used[alpha] = float(top) / float(bottom) if isinstance(top, int | float) and bottom else None
    kept = {n: v for n, v in used.items() if _may_cause(n)}
    return kept | {"num_images": run.run.num_images}


def _may_cause(name: str) -> bool:
    spec = PARAMETERS[name]
    return name not in NO_CAUSE and spec.category not in _NO_CATEGORY


def _departure(name: str, value: ParameterValue, usual: tuple[ParameterValue, ...]) -> Departure | None:
    """How a value lies outside usual ones; None where it lies inside, or where they do not say."""
    if value in usual:
        return None
    numbers, number = [n for n in map(_number, usual) if n is not None], _number(value)
    if number is None or not numbers:
        if value is None or name == "num_images":
            return None
        return Departure(name, value, 1.0, None, tuple(dict.fromkeys(usual)), len(usual))
    low, high = min(numbers), max(numbers)
    if low <= number <= high:
        return None
    above = number > high
    size = _spans(name, number, high if above else low)
    return Departure(name, value, size, above, tuple(sorted(numbers)), len(numbers))


def _number(value: ParameterValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_RATIOS = {"network_alpha": math.log(8), "conv_alpha": math.log(8), "num_images": math.log(16)}
"""Log span of what the taxonomy has no search span for: alpha as a ratio, the number of pictures."""


def _spans(name: str, value: float, edge: float) -> float:
    """Distance of a value from an edge, in the parameter's search span."""
    spec = PARAMETERS[name]
    if name in _RATIOS or (spec.log and spec.search_low and spec.search_high):
        span = _RATIOS.get(name) or math.log((spec.search_high or 0.0) / (spec.search_low or 1.0))
        if value > 0 and edge > 0:
            return abs(math.log(value / edge)) / span
        return 1.0
    if spec.search_low is not None and spec.search_high is not None:
        return abs(value - edge) / (spec.search_high - spec.search_low)
    if spec.kind in (Kind.INT, Kind.FLOAT) and value > 0 and edge > 0:
        return abs(math.log(value / edge)) / math.log(10)
    return 1.0
