"""Find regions of the space in which every run failed: one side of a number, or one category."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import comb

from optimizer.history import failed, informative, kind_of_failure
from optimizer.search.rules import text_of
from optimizer.search.space import Space, numeric
from schema.parameters import Parameters, ParameterValue
from schema.runs import RunHistory

_TOO_MUCH = frozenset(
    ("learning_rate", "unet_lr", "text_encoder_lr", "network_dim", "network_alpha", "conv_dim", "train_batch_size")
)
"""Parameters known to break training when too high. For these, two failures are a hint; elsewhere, chance."""

_MIN_RUNS = 2
"""Fewest runs in a failure region: a single failed run does not show that its neighbours fail."""

_CHANCE = 0.1
"""Largest probability of chance for the parameters above. Chosen by hand: a wrong refusal costs one setting."""

_CHANCE_ELSEWHERE = 0.05
"""The usual level for all other parameters, divided by the number of regions that could be found (Bonferroni)."""


@dataclass(frozen=True)
class FailureRegion:
    """Describe a region of one parameter in which every run failed."""

    name: str
    condition: str
    runs: tuple[RunHistory, ...]
    worked: str

    def reason(self) -> str:
        """Return the evidence as a sentence without its full stop: '3 of 3 runs with network_dim >= 64 failed: ...'."""
        ends = ", ".join(end for end, _ in Counter(kind_of_failure(run) for run in self.runs).most_common())
        n = len(self.runs)
        return f"{n} of {n} runs with {self.name} {self.condition} failed: {ends}; {self.worked}"


def failure_region(
    parameters: Mapping[str, ParameterValue], history: Sequence[RunHistory], space: Space
) -> FailureRegion | None:
    """Return the failure region with the most runs that contains a setting; None if chance could explain all of them.

    The probability of chance is hypergeometric: that all runs of the region fail if the failures are spread over all
    runs at random. It is corrected for the number of regions, except for parameters known to break training.
    """
    runs = informative(history)
    # Parameters without effect are None, so that no region blames them.
    used = [space.active(h.run.all_parameters) for h in runs]
    fails = [failed(h, space.failed_quality) for h in runs]
    wanted = space.active(parameters)
    found = [r for name in space.names for r in _regions(name, wanted[name], used, runs, fails, space)]
    return max(found, key=lambda region: len(region.runs), default=None)


def _regions(
    name: str,
    value: ParameterValue,
    used: Sequence[Parameters],
    runs: Sequence[RunHistory],
    fails: Sequence[bool],
    space: Space,
) -> Iterator[FailureRegion]:
    if value is None:
        return
    known = [(p[name], run, bad) for p, run, bad in zip(used, runs, fails, strict=True) if p[name] is not None]
    # Above the highest and below the lowest value that worked. Categories have no order.
    sides = (1, -1) if numeric(space.distributions[name]) else (0,)
    for side in sides:
        region = _tail(name, value, known, side) if side else _category(name, value, known)
        if region is None or len(region.runs) < _MIN_RUNS:
            continue
        chance = comb(sum(fails), len(region.runs)) / comb(len(runs), len(region.runs))
        expected = name in _TOO_MUCH and side > 0
        if chance <= (_CHANCE if expected else _CHANCE_ELSEWHERE / (2 * len(space.names))):
            yield region


Known = Sequence[tuple[ParameterValue, RunHistory, bool]]


def _tail(name: str, value: ParameterValue, known: Known, side: int) -> FailureRegion | None:
    """Return the runs beyond the last value that worked, if `value` lies among or beyond them; else None."""
    numbers = [(float(v), run, bad) for v, run, bad in known if isinstance(v, int | float)]
    working = [side * v for v, _, bad in numbers if not bad]
    # If no run worked, every value lies beyond the last one that did, which says nothing about this parameter.
    if not working or not isinstance(value, int | float):
        return None
    limit = max(working)
    beyond = [(v, run) for v, run, _ in numbers if side * v > limit]
    if not beyond or side * value < min(side * v for v, _ in beyond):
        return None
    first = side * min(side * v for v, _ in beyond)
    extreme = "highest" if side > 0 else "lowest"
    return FailureRegion(
        name,
        f"{'>=' if side > 0 else '<='} {text_of(first)}",
        tuple(run for _, run in beyond),
        f"{extreme} that worked: {text_of(side * limit)}",
    )


def _category(name: str, value: ParameterValue, known: Known) -> FailureRegion | None:
    here = [(run, bad) for v, run, bad in known if v == value]
    good = sum(not bad for v, _, bad in known if v != value)
    if not here or not all(bad for _, bad in here):
        return None
    others = len(known) - len(here)
    return FailureRegion(
        name, f"= {text_of(value)}", tuple(run for run, _ in here), f"{good} of {others} runs without it worked"
    )
