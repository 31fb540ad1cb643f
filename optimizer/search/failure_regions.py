"""Groups of runs that failed together: one-sided regions of a parameter in which nothing worked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from scipy.special import comb

from optimizer.history import failed, how_it_ended, informative
from optimizer.search.rules import text_of
from optimizer.search.space import Space, numeric
from schema.parameters import Parameters, ParameterValue
from schema.runs import RunHistory

_TOO_MUCH = frozenset(
    ("learning_rate", "unet_lr", "text_encoder_lr", "network_dim", "network_alpha", "conv_dim", "train_batch_size")
)
"""Parameters of which too much is known to break a training; two failures are a hint here, elsewhere chance."""

_LEAST = 2
_CHANCE = 0.1
_CHANCE_ELSEWHERE = 0.05


@dataclass(frozen=True)
class DeadRegion:
    """Values of one parameter with which every run failed."""

    name: str
    condition: str
    runs: tuple[RunHistory, ...]
    worked: str

    def reason(self) -> str:
        """The evidence as a sentence without its full stop: '3 of 3 runs with network_dim >= 64 failed: ...'."""
        ends = ", ".join(end for end, _ in Counter(_how(run) for run in self.runs).most_common())
        n = len(self.runs)
        return f"{n} of {n} runs with {self.name} {self.condition} failed: {ends}; {self.worked}"


def _how(run: RunHistory) -> str:
    """How a run failed, without the figure, so that equal failures can be counted."""
    return "low quality" if how_it_ended(run).startswith("quality") else how_it_ended(run)


def dead_region(
    parameters: Mapping[str, ParameterValue], history: Sequence[RunHistory], space: Space
) -> DeadRegion | None:
    """The dead region with most runs that a setting lies in, if there is one that chance hardly explains.

    Chance: the probability (hypergeometric) that the region's runs all fail, were the failures spread
    over all runs at random; corrected for the number of regions unless the parameter is known for it.
    """
    runs = informative(history)
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
) -> Iterator[DeadRegion]:
    if value is None:
        return
    known = [(p[name], run, bad) for p, run, bad in zip(used, runs, fails, strict=True) if p[name] is not None]
    sides = (1, -1) if numeric(space.distributions[name]) else (0,)
    for side in sides:
        region = _tail(name, value, known, side) if side else _category(name, value, known)
        if region is None or len(region.runs) < _LEAST:
            continue
        chance = comb(sum(fails), len(region.runs)) / comb(len(runs), len(region.runs))
        expected = name in _TOO_MUCH and side > 0
        if chance <= (_CHANCE if expected else _CHANCE_ELSEWHERE / (2 * len(space.names))):
            yield region


Known = Sequence[tuple[ParameterValue, RunHistory, bool]]


def _tail(name: str, value: ParameterValue, known: Known, side: int) -> DeadRegion | None:
    """The failed runs beyond the last value that worked, if `value` lies among or beyond them."""
    numbers = [(float(v), run, bad) for v, run, bad in known if isinstance(v, int | float)]
    working = [side * v for v, _, bad in numbers if not bad]
    if not working or not isinstance(value, int | float):
        return None
    limit = max(working)
    beyond = [(v, run) for v, run, _ in numbers if side * v > limit]
    if not beyond or side * value < min(side * v for v, _ in beyond):
        return None
    first = side * min(side * v for v, _ in beyond)
    extreme = "highest" if side > 0 else "lowest"
    return DeadRegion(
        name,
        f"{'>=' if side > 0 else '<='} {text_of(first)}",
        tuple(run for _, run in beyond),
        f"{extreme} that worked: {text_of(side * limit)}",
    )


def _category(name: str, value: ParameterValue, known: Known) -> DeadRegion | None:
    here = [(run, bad) for v, run, bad in known if v == value]
    good = sum(not bad for v, _, bad in known if v != value)
    if not here or not all(bad for _, bad in here):
        return None
    others = len(known) - len(here)
    return DeadRegion(
        name, f"= {text_of(value)}", tuple(run for run, _ in here), f"{good} of {others} runs without it worked"
    )
