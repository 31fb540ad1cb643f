"""Describe healthy runs, to tell whether another run is worse and in which parameters it differs."""

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

_MIN_RUNS = 3
"""Healthy runs needed to compare with. Chosen by hand: the range of two runs is too narrow to call others unusual."""

_GOOD = 0.8  # share of the best run's quality from which a run is healthy; chosen by hand
_MIN_SPREAD = 2.0  # quality points; runs that only differ in the seed differ by about one
_ALLOWANCE = 3.0  # spreads below the median from which a run is worse than healthy ones; the usual three sigma
_NO_CATEGORY = (Category.RESOURCES,)
_MAKE_STEPS = frozenset(("num_repeats", "train_batch_size", "gradient_accumulation_steps"))
_USUAL_STEPS = 1.5  # factor on the optimizer steps of healthy runs that still counts as usual; chosen by hand

ALPHAS = {"network_alpha": "network_dim", "conv_alpha": "conv_dim"}
"""Alphas, with the ranks that divide them."""


@dataclass(frozen=True)
class Departure:
    """Describe a parameter whose value lies outside that of healthy runs.

    Attributes:
        name: Name of the parameter.
        value: Its value in the run.
        size: Distance from healthy runs, in search ranges of the parameter (`schema.taxonomy`); 1 for a category.
        high: Whether the value is above theirs; None for a category.
        usual: Values of the healthy runs.
        runs: Number of healthy runs in which the parameter has an effect.
    """

    name: str
    value: ParameterValue
    size: float
    high: bool | None
    usual: tuple[ParameterValue, ...]
    runs: int


@dataclass(frozen=True)
class Healthy:
    """Hold good runs to compare with: they ended well, with at least 80 % of the best quality."""

    runs: tuple[RunHistory, ...]

    @classmethod
    def of(cls, past: Sequence[RunHistory]) -> Healthy:
        """Select the good runs among past runs. If there are fewer than three, none are selected."""
        ended = [h for h in past if h.run.outcome in (Outcome.OK, Outcome.STOPPED_EARLY)]
        scores = [q for q in map(best_quality, ended) if q is not None]
        # Relative to the best run, since an absolute limit would differ between models and prompt suites.
        good = [h for h in ended if scores and (best_quality(h) or 0.0) >= _GOOD * max(scores)]
        return cls(tuple(good) if len(good) >= _MIN_RUNS else ())

    def __bool__(self) -> bool:
        return bool(self.runs)

    @property
    def quality(self) -> float:
        """Return the median of their best qualities."""
        return float(np.median([best_quality(h) or 0.0 for h in self.runs]))

    @property
    def floor(self) -> float:
        """Return the quality below which chance no longer explains a worse run: three spreads below the median."""
        qualities = np.array([best_quality(h) or 0.0 for h in self.runs])
        # 1.4826 turns a median absolute deviation into the standard deviation of a normal distribution.
        spread = max(1.4826 * float(np.median(np.abs(qualities - np.median(qualities)))), _MIN_SPREAD)
        return float(np.median(qualities)) - _ALLOWANCE * spread

    def shortfall(self, run: RunHistory) -> float:
        """Return the quality points that a run is below the median of healthy runs; 0 if it is above the floor."""
        quality = best_quality(run) or 0.0
        return self.quality - quality if self and quality < self.floor else 0.0

    def share_with(self, issue: str, names: Mapping[str, set[str]]) -> float:
        """Return the share of healthy runs that have an issue, given the names of each run's issues by run name."""
        return float(np.mean([issue in names[h.run.run_name] for h in self.runs])) if self else 0.0

    def departures(self, run: RunHistory) -> list[Departure]:
        """Return the parameters whose values lie outside those of healthy runs, most distant first."""
        if not self:
            return []
        found = [_departure(name, value, self._usual.get(name, ())) for name, value in scaled(run).items()]
        return sorted((d for d in found if d is not None and not self._follows(d.name, run)), key=lambda d: -d.size)

    # Cached, since many runs are compared with the same healthy runs.
    @functools.cached_property
    def _usual(self) -> dict[str, tuple[ParameterValue, ...]]:
        """Return the values of the healthy runs by parameter."""
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
        """Return whether a departure only follows from another one, or is compensated.

        The ratio of alpha to rank may be unusual only because the rank is. Repeats and batch size only matter if they
        change the number of optimizer steps.
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
    """Return the planned optimizer steps of a run; None if the number of pictures is unknown."""
    used = active(run.run.all_parameters)
    numbers = [_number(used[name]) for name in ("num_repeats", "max_train_epochs")]
    shared = [_number(used[name]) for name in ("train_batch_size", "gradient_accumulation_steps")]
    if run.run.num_images is None or None in (*numbers, *shared):
        return None
    return run.run.num_images * math.prod(n or 1.0 for n in numbers) / math.prod(n or 1.0 for n in shared)


def scaled(run: RunHistory) -> Parameters:
    """Return a run's effective parameters, with alphas divided by their rank, and the number of pictures.

    Parameters that cannot cause an issue are left out.
    """
    used = active(run.run.all_parameters)
    for alpha, rank in ALPHAS.items():
        # The update is scaled by alpha / rank, so only their ratio can be compared between ranks.
        top, bottom = used[alpha], used[rank]
        used[alpha] = float(top) / float(bottom) if isinstance(top, int | float) and bottom else None
    kept = {n: v for n, v in used.items() if _may_cause(n)}
    return kept | {"num_images": run.run.num_images}


def _may_cause(name: str) -> bool:
    spec = PARAMETERS[name]
    return name not in NO_CAUSE and spec.category not in _NO_CATEGORY


def _departure(name: str, value: ParameterValue, usual: tuple[ParameterValue, ...]) -> Departure | None:
    """Return how a value differs from usual ones; None if it lies inside their range or cannot be compared."""
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
    size = _distance(name, number, high if above else low)
    return Departure(name, value, size, above, tuple(sorted(numbers)), len(numbers))


def _number(value: ParameterValue) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


_RATIOS = {"network_alpha": math.log(8), "conv_alpha": math.log(8), "num_images": math.log(16)}
"""Logarithmic ranges of quantities without a search range in the taxonomy: alpha ratios, number of pictures."""


def _distance(name: str, value: float, edge: float) -> float:
    """Return the distance of a value from an edge, in search ranges of the parameter."""
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
