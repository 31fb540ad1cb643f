"""Paired experiments: one parameter changed, all else and the seed equal, pair by pair until the answer is clear."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student

from optimizer.history import best_quality, informative
from optimizer.space import Space
from schema.errors import ConfigError
from schema.parameters import Parameters, ParameterValue, parameter, parse_value
from schema.runs import RunHistory

_FORM = re.compile(r"\s*(\w+)\s+(\S+)\s*->\s*(\S+)\s*")
LEAST_PAIRS = 3
MOST_PAIRS = 8
_LEVEL = 0.05
WORTH = 1.0
"""Quality points that a change must bring to be worth making."""


@dataclass(frozen=True)
class Change:
    """One parameter from one value to another."""

    name: str
    before: ParameterValue
    after: ParameterValue

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

    def pair(self, setting: Parameters, seed: int) -> tuple[Parameters, Parameters]:
        """The two settings of one pair."""
        return {**setting, self.name: self.before, "seed": seed}, {**setting, self.name: self.after, "seed": seed}


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
    """Searched parameters of the runs that make `count` more pairs: halves of the best settings first.

    Raises:
        ConfigError: the parameter is not searched, or a value lies outside its span.
    """
    for value in (change.before, change.after):
        if problems := space.problems({change.name: value}):
            raise ConfigError(f"{problems[0]}: search it in the campaign, so that both values can be run")
    done = {
        key
        for key, (a, b) in _sides(change.name, change.before, change.side, history, space).items()
        if a is not None and b is not None
    }
    known = {space.key(h.run.all_parameters) for h in informative(history)}
    wanted: list[Parameters] = []
    for run in sorted(informative(history), key=lambda h: -(best_quality(h) or 0.0)):
        key = _rest(change.name, change.before, run.run.all_parameters, space)
        if key in done or count == 0:
            continue
        settings = [{**space.searched(run.run.all_parameters), change.name: v} for v in (change.before, change.after)]
        full = [space.complete(s) for s in settings]
        if any(space.problems(s) for s in settings) or any(space.violations(f) for f in full):
            continue
        done.add(key)
        count -= 1
        wanted += [s for s, f in zip(settings, full, strict=True) if space.key(f) not in known]
    return wanted


def pairs_across(
    name: str,
    stand_in: ParameterValue,
    after: Callable[[ParameterValue], bool | None],
    history: Sequence[RunHistory],
    space: Space,
) -> list[Pair]:
    """The pairs of past runs that differ in one parameter and lie on both sides of something.

    A run that failed without a measurement has the quality 0.

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
    for run in informative(history):
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

    state: str
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
        return Verdict("running", effect, -math.inf, math.inf, n)
    looks = max(most - LEAST_PAIRS + 1, 1)
    effect = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    reach = float(student.ppf(1 - _LEVEL / looks / 2, n - 1)) * error
    low, high = effect - reach, effect + reach
    state = "running" if n < most else "inconclusive"
    if n >= LEAST_PAIRS and low > 0:
        state = "confirmed"
    elif n >= LEAST_PAIRS and high < worth:
        state = "refuted"
    return Verdict(state, effect, low, high, n)


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
