"""Paired experiments: one parameter changed, all else and the seed equal, pair by pair until the answer is clear."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from optimizer.history import best_quality, failed, informative
from optimizer.search.space import Space
from schema.errors import ConfigError
from schema.parameters import Parameters, ParameterValue, parameter, parse_value
from schema.runs import Outcome, RunHistory
from schema.states import HypothesisState

_FORM = re.compile(r"\s*(\w+)\s+(\S+)\s*->\s*(\S+)\s*")
LEAST_PAIRS = 3
MOST_PAIRS = 8
_LEVEL = 0.05
_LUCK = 3.0  # spreads
WORTH = 1.0
"""Quality points that a change must bring to be worth making."""


@dataclass(frozen=True)
class Change:
    """One parameter from one value to another."""

    name: str
    before: ParameterValue
    after: ParameterValue

    def __str__(self) -> str:
        one, two = (str(v).lower() if isinstance(v, bool) else str(v) for v in (self.before, self.after))
        return f"{self.name} {one} -> {two}"  # all digits, so that it reads back

    @classmethod
    def parse(cls, text: str) -> Change:
        """Read ``keep_tokens 1 -> 3``.

        Raises:
            ConfigError: another form, unknown parameter, bad value, or twice the same.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(f"write an experiment as 'keep_tokens 1 -> 3', but got {text!r}")
        name, before, after = match.groups()
        spec = parameter(name)
        change = cls(name, *(spec.check(parse_value(name, value)) for value in (before, after)))
        if change.before == change.after:
            raise ConfigError(f"{text!r} changes nothing: give two values")
        return change

    def side(self, value: ParameterValue) -> bool | None:
        """False for the value before, True for that after, None for others."""
        return value == self.after if value in (self.before, self.after) else None

    def pair(self, setting: Parameters) -> tuple[Parameters, Parameters]:
        """The two settings of one pair."""
        return {**setting, self.name: self.before}, {**setting, self.name: self.after}


@dataclass(frozen=True)
class Pair:
    """Two runs that differ in the change alone, and how much better the changed one was (quality points)."""

    before: str
    after: str
    difference: float


def pairs_of(change: Change, history: Sequence[RunHistory], space: Space) -> list[Pair]:
    """The pairs among past runs: all parameters equal, the seed too, but the change; one a setting."""
    return pairs_across(change.name, change.before, change.side, history, space)


def missing(change: Change, history: Sequence[RunHistory], space: Space, count: int) -> list[Parameters]:
    """Full settings of the runs that make `count` more pairs, half by half.

    Halves that have run already come first, those of the best runs before others; then the best setting with further
    seeds. Only settings as the campaign has them today are run: its fixed parameters, but for the one that is changed.

    Raises:
        ConfigError: a value lies outside its span or breaks a rule, or the change has no effect beside the others.
    """
    if change.name in space.names:
        for value in (change.before, change.after):
            if problems := space.problems({change.name: value}):
                raise ConfigError(f"{problems[0]}: widen it in the campaign, so that both values can be run")
    sides = _sides(change.name, change.before, change.side, history, space)
    done = {key for key, (a, b) in sides.items() if a is not None and b is not None}
    known = {space.key(h.run.all_parameters) for h in _unbiased(history)}
    wanted: list[Parameters] = []
    for setting in _bases(change, history, space):
        if count == 0:
            break
        halves = change.pair(setting)
        key = _rest(change.name, change.before, setting, space)
        if key not in done:
            _check_runnable(change, halves, space)
            done.add(key)
            count -= 1
            wanted += [half for half in halves if space.key(half) not in known]
    return wanted


def _check_runnable(change: Change, halves: Sequence[Parameters], space: Space) -> None:
    if broken := [text for half in halves for text in space.violations(half)]:
        raise ConfigError(f"this experiment cannot run: {broken[0]}")
    if space.key(halves[0]) == space.key(halves[1]):
        raise ConfigError(
            f"{change.name} has no effect beside the other parameters of these runs: both halves would be the same"
        )


def _bases(change: Change, history: Sequence[RunHistory], space: Space) -> Iterator[Parameters]:
    """Settings to make pairs from: of past runs, the best first, then the best with seeds that it has not had."""
    found: list[Parameters] = []
    for run in sorted(_unbiased(history), key=lambda h: -(best_quality(h) or 0.0)):
        setting = space.filled(run.run.all_parameters)
        inside = space.is_own(setting, (change.name,)) and not space.problems(space.searched(setting))
        if inside and not failed(run, space.failed_quality):
            found.append(setting)
    best = found[0] if found else space.complete(space.likely())
    yield from _with_effect(change, found, space)
    seeds = {setting["seed"] for setting in found if {**setting, "seed": None} == {**best, "seed": None}}
    yield from ({**best, "seed": seed} for seed in range(1, 2**31) if seed not in seeds)


def _with_effect(change: Change, settings: Sequence[Parameters], space: Space) -> Iterator[Parameters]:
    """Those settings beside which the change is one."""
    for setting in settings:
        one, two = change.pair(setting)
        if space.key(one) != space.key(two):
            yield setting


def _unbiased(history: Sequence[RunHistory]) -> list[RunHistory]:
    """Runs that count as halves: one that was stopped early might have become better."""
    return [h for h in informative(history) if h.run.outcome is not Outcome.STOPPED_EARLY]


def pairs_across(
    name: str,
    stand_in: ParameterValue,
    after: Callable[[ParameterValue], bool | None],
    history: Sequence[RunHistory],
    space: Space,
) -> list[Pair]:
    """The pairs of past runs that differ in one parameter and lie on both sides of something.

    A run that failed without a measurement has the quality 0; one that was stopped early counts for nothing, as it
    might have become better.

    Args:
        name: the parameter that may differ.
        stand_in: any value of it.
        after: which side a value lies on; None for values that count for nothing.
        history: the runs, best of one base model and data set.
        space: says what counts as the same training.
    """
    return [
        Pair(a.run.run_name, b.run.run_name, (best_quality(b) or 0.0) - (best_quality(a) or 0.0))
        for a, b in _sides(name, stand_in, after, history, space).values()
        if a is not None and b is not None
    ]


def _sides(
    name: str,
    stand_in: ParameterValue,
    after: Callable[[ParameterValue], bool | None],
    history: Sequence[RunHistory],
    space: Space,
) -> dict[str, tuple[RunHistory | None, RunHistory | None]]:
    """By all other parameters, the first run on the one side and on the other."""
    found: dict[str, tuple[RunHistory | None, RunHistory | None]] = {}
    for run in _unbiased(history):
        side = after(run.run.all_parameters.get(name))
        if side is None:
            continue
        key = _rest(name, stand_in, run.run.all_parameters, space)
        one, two = found.get(key, (None, None))
        found[key] = (one, two or run) if side else (one or run, two)
    return found


def _rest(name: str, stand_in: ParameterValue, parameters: Parameters, space: Space) -> str:
    return space.key({**parameters, name: stand_in})


@dataclass(frozen=True)
class Verdict:
    """What the pairs so far say.

    Attributes:
        state: running, confirmed (better by what noise does not make), refuted (no gain worth the change is
            compatible with the pairs), or inconclusive after the last pair.
        effect: mean difference, quality points; nan without a pair.
        low, high: interval that holds the true effect with 95 %, whenever one looks.
    """

    state: HypothesisState
    effect: float
    low: float
    high: float
    pairs: int


def verdict(differences: Sequence[float], worth: float = WORTH, most: int = MOST_PAIRS) -> Verdict:
    """Judge a change by the differences (after less before) of its pairs, after each of them.

    Student intervals; as one looks after every pair from the third on, each look has its share of the 5 % (Bonferroni),
    so that the interval holds over all looks together.

    Args:
        differences: quality points, one a pair, in the order in which they were run.
        worth: gain that must be excluded to refute the change.
        most: pairs after which it ends.
    """
    n = len(differences)
    if n < 2:
        effect = float(differences[0]) if n else math.nan
        return Verdict(HypothesisState.RUNNING, effect, -math.inf, math.inf, n)
    looks = max(most - LEAST_PAIRS + 1, 1)
    effect = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    reach = float(student.ppf(1 - _LEVEL / looks / 2, n - 1)) * error
    low, high = effect - reach, effect + reach
    state = HypothesisState.RUNNING if n < most else HypothesisState.INCONCLUSIVE
    if n >= LEAST_PAIRS and low > 0:
        state = HypothesisState.CONFIRMED
    elif n >= LEAST_PAIRS and high < worth:
        state = HypothesisState.REFUTED
    return Verdict(state, effect, low, high, n)


def verdict_on(change: Change, history: Sequence[RunHistory], space: Space, worth: float) -> Verdict:
    """What the pairs among past runs say of a change; see `verdict`."""
    return verdict([pair.difference for pair in pairs_of(change, history, space)], worth)


def worth_of(noise: float) -> float:
    """Gain (quality points) that a change is refuted for lacking: what the luck of a seed hardly ever brings.

    Args:
        noise: standard deviation of quality between runs that differ by the seed alone.
    """
    return max(WORTH, _LUCK * noise)


def pairs_needed(effect: float, noise: float, most: int = MOST_PAIRS) -> int | None:
    """Fewest pairs after which an effect is likely (a half or more) to be told from none; None: more than `most`.

    Args:
        effect: quality points that are expected.
        noise: standard deviation of quality between runs that differ by the seed alone.
    """
    looks = max(most - LEAST_PAIRS + 1, 1)
    for n in range(LEAST_PAIRS, most + 1):
        if student.ppf(1 - _LEVEL / looks / 2, n - 1) * noise * math.sqrt(2 / n) <= abs(effect):
            return n
    return None
