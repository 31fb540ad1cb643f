"""Plan and judge paired tests: change one parameter, keep the rest and the seed, until the result is clear."""

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
"""Pairs before the first verdict. Chosen by hand: with two, Student's interval is too wide to decide anything."""

MOST_PAIRS = 8
"""Pairs before a test ends. They confirm 97 % of effects of three times the seed noise (benchmarks/RESULTS.md)."""

_LEVEL = 0.05
"""Probability that the interval misses the true effect at any look. The usual level."""

_NOISE_FACTOR = (
    3.0  # standard deviations of seed noise; excluding a single point instead refuted only 18 % of no-effects
)
MIN_GAIN = 1.0
"""Smallest gain worth having, in quality points. Chosen by hand: about the noise of a prompt suite."""


@dataclass(frozen=True)
class Change:
    """Change one parameter from one value to another."""

    name: str
    before: ParameterValue
    after: ParameterValue

    def __str__(self) -> str:
        one, two = (str(v).lower() if isinstance(v, bool) else str(v) for v in (self.before, self.after))
        return f"{self.name} {one} -> {two}"  # keeps all digits, so that `parse` gives the same change

    @classmethod
    def parse(cls, text: str) -> Change:
        """Parse a change such as ``keep_tokens 1 -> 3``.

        Raises:
            ConfigError: The text has another form, the parameter is unknown, or a value is bad or given twice.
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
        """Return False for the value before, True for the value after, None for others."""
        return value == self.after if value in (self.before, self.after) else None

    def pair(self, setting: Parameters) -> tuple[Parameters, Parameters]:
        """Return the settings of the two arms: before and after the change."""
        return {**setting, self.name: self.before}, {**setting, self.name: self.after}


@dataclass(frozen=True)
class Pair:
    """Hold the names of two runs that only differ in the change, and the gain of the changed one (quality points)."""

    before: str
    after: str
    difference: float


def pairs_of(change: Change, history: Sequence[RunHistory], space: Space) -> list[Pair]:
    """Return the pairs among past runs that only differ in the change, one per setting and seed."""
    return pairs_across(change.name, change.before, change.side, history, space)


def missing(change: Change, history: Sequence[RunHistory], space: Space, count: int) -> list[Parameters]:
    """Return the full settings of the runs that complete `count` more pairs.

    Past runs serve as arms where possible, best runs first. After these, the best setting is run with further seeds.
    Only settings with the campaign's current fixed parameters are used, apart from the changed one.

    Raises:
        ConfigError: A value is out of range or breaks a rule, or the change has no effect in these settings.
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
        arms = change.pair(setting)
        key = _key_apart_from(change.name, change.before, setting, space)
        if key not in done:
            _check_runnable(change, arms, space)
            done.add(key)
            count -= 1
            wanted += [arm for arm in arms if space.key(arm) not in known]
    return wanted


def _check_runnable(change: Change, arms: Sequence[Parameters], space: Space) -> None:
    if broken := [text for arm in arms for text in space.violations(arm)]:
        raise ConfigError(f"this experiment cannot run: {broken[0]}")
    if space.key(arms[0]) == space.key(arms[1]):
        raise ConfigError(
            f"{change.name} has no effect beside the other parameters of these runs: both halves would be the same"
        )


def _bases(change: Change, history: Sequence[RunHistory], space: Space) -> Iterator[Parameters]:
    """Yield settings to make pairs from: past runs, best first, then the best setting with new seeds."""
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
    """Yield the settings in which the change has an effect."""
    for setting in settings:
        one, two = change.pair(setting)
        if space.key(one) != space.key(two):
            yield setting


def _unbiased(history: Sequence[RunHistory]) -> list[RunHistory]:
    """Return the runs that may be arms. A run that was stopped early might have become better, so it is left out."""
    return [h for h in informative(history) if h.run.outcome is not Outcome.STOPPED_EARLY]


def pairs_across(
    name: str,
    stand_in: ParameterValue,
    after: Callable[[ParameterValue], bool | None],
    history: Sequence[RunHistory],
    space: Space,
) -> list[Pair]:
    """Return pairs of past runs that only differ in one parameter, one run on each side.

    A run that failed without a measurement counts with a quality of 0. Runs that were stopped early are left out,
    since they might have become better.

    Args:
        name: Parameter that may differ.
        stand_in: Any value of it, which replaces it when settings are compared.
        after: Returns whether a value is on the side after the change; None to leave it out.
        history: Runs, preferably of one base model and data set.
        space: Defines what counts as the same training.
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
    """Return the first run before and after the change, by all other parameters."""
    found: dict[str, tuple[RunHistory | None, RunHistory | None]] = {}
    for run in _unbiased(history):
        side = after(run.run.all_parameters.get(name))
        if side is None:
            continue
        key = _key_apart_from(name, stand_in, run.run.all_parameters, space)
        one, two = found.get(key, (None, None))
        # The first run on each side counts, so that later repeats do not change a verdict.
        found[key] = (one, two or run) if side else (one or run, two)
    return found


def _key_apart_from(name: str, stand_in: ParameterValue, parameters: Parameters, space: Space) -> str:
    return space.key({**parameters, name: stand_in})


@dataclass(frozen=True)
class Verdict:
    """Hold the result of a paired test so far.

    Attributes:
        state: Running; confirmed (the interval lies above 0); refuted (it excludes the smallest gain worth having);
            or inconclusive after the last pair.
        effect: Mean difference in quality points; nan without a pair.
        low, high: Interval that contains the true effect with 95 % confidence over all looks together.
        pairs: Number of pairs.
    """

    state: HypothesisState
    effect: float
    low: float
    high: float
    pairs: int


def verdict(differences: Sequence[float], worth: float = MIN_GAIN, most: int = MOST_PAIRS) -> Verdict:
    """Judge a change by the differences (after minus before) of its pairs.

    The interval is Student's. The test may be judged after every pair from the third on, so each look gets an equal
    share of the 5 % (Bonferroni), and the interval holds over all looks together.

    Args:
        differences: Quality points, one per pair, in the order of the runs.
        worth: Smallest gain worth having. The change is refuted once a gain this large is ruled out.
        most: Number of pairs after which the test ends.
    """
    n = len(differences)
    if n < 2:
        effect = float(differences[0]) if n else math.nan
        return Verdict(HypothesisState.RUNNING, effect, -math.inf, math.inf, n)
    looks = max(most - LEAST_PAIRS + 1, 1)
    effect = float(np.mean(differences))
    # Differences of pairs, not of all runs: the shared seed removes the noise that both arms have in common.
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
    """Judge a change by the pairs among past runs; see `verdict`."""
    return verdict([pair.difference for pair in pairs_of(change, history, space)], worth)


def worth_of(noise: float) -> float:
    """Return the smallest gain worth having, in quality points: 3 times the noise of a seed, at least 1 point.

    Args:
        noise: Standard deviation of quality between runs that only differ in the seed.
    """
    return max(MIN_GAIN, _NOISE_FACTOR * noise)


def pairs_needed(effect: float, noise: float, most: int = MOST_PAIRS) -> int | None:
    """Return the fewest pairs that detect an effect with a probability of at least one half; None if above `most`.

    Args:
        effect: Expected effect in quality points.
        noise: Standard deviation of quality between runs that only differ in the seed.
        most: Number of pairs after which the test ends.
    """
    looks = max(most - LEAST_PAIRS + 1, 1)
    for n in range(LEAST_PAIRS, most + 1):
        # The difference of two runs has twice the variance of one.
        if student.ppf(1 - _LEVEL / looks / 2, n - 1) * noise * math.sqrt(2 / n) <= abs(effect):
            return n
    return None
