"""Define the search space: what varies, what is fixed, what is forbidden, and how settings are compared."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optimizer.search.rules import Rule, text_of
from schema.campaign import CampaignFile, Choices, Range, ratio_of
from schema.errors import ConfigError
from schema.parameters import PARAMETERS, Parameters, ParameterValue, parameter, with_defaults
from schema.taxonomy import Kind

_NEUTRAL = 0.5
"""Position on its axis of a parameter without effect. It must look the same whatever its value is."""

_DEFAULTS: Parameters = {name: spec.default for name, spec in PARAMETERS.items() if not spec.derived}
_ZERO_IS_OFF = ("network_dropout", "noise_offset")
"""Parameters for which "not set" and 0 are the same training."""


@dataclass(frozen=True)
class Condition:
    """Say when parameters have no effect.

    Attributes:
        names: Parameters that have no effect if `idle` returns True.
        needs: Parameters that `idle` looks at.
        idle: Takes all settable parameters.
    """

    names: frozenset[str]
    needs: frozenset[str]
    idle: Callable[[Mapping[str, ParameterValue]], bool]


@dataclass(frozen=True, eq=False)
class ParameterKnowledge:
    """Hold what is known about parameters apart from their search ranges.

    Attributes:
        complete: Checks a setting to run, and adds defaults.
        filled: Adds defaults to a past setting, without checking it.
        conditions: When parameters have no effect.
        implied: Returns values that follow from the others of a filled setting.
        good: Values that are known to work.
    """

    complete: Callable[[Mapping[str, ParameterValue]], Parameters]
    filled: Callable[[Mapping[str, ParameterValue]], Parameters]
    conditions: tuple[Condition, ...]
    implied: Callable[[Mapping[str, ParameterValue]], Parameters]
    good: Parameters

    def idle(self, full: Mapping[str, ParameterValue]) -> set[str]:
        """Return the names of the parameters that have no effect in a filled setting."""
        return {name for c in self.conditions if c.idle(full) for name in c.names}

    def effective(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """Return the parameters as the trainer uses them; see `Space.effective`."""
        full = self.filled(parameters)
        return full | dict.fromkeys(self.idle(full)) | self.implied(full)


@dataclass(frozen=True)
class Space:
    """Define what a campaign searches.

    Attributes:
        distributions: Optuna's distribution of each searched parameter or ratio.
        fixed: Parameters with one value for the whole campaign.
        rules: Hard limits.
        failed_quality: Best quality (0-100) below which a run counts as failed.
        knowledge: What is known about the parameters: `KOHYA` for campaign files.
        ties: For each searched ratio ``a/b``, the names a and b. Runs have a, computed from the ratio and b.
    """

    distributions: dict[str, BaseDistribution]
    fixed: Parameters
    rules: tuple[Rule, ...]
    failed_quality: float
    knowledge: ParameterKnowledge
    ties: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: CampaignFile, learnt: Sequence[str] = ()) -> Space:
        """Return the search space of a campaign file.

        Args:
            file: The campaign.
            learnt: Further hard limits, from accepted principles.

        Raises:
            ConfigError: A rule is invalid, or the fixed parameters alone break one.
        """
        distributions = {name: _distribution(name, span) for name, span in file.search.items()}
        rules = tuple(Rule.parse(text) for text in (*file.rules, *learnt))
        ties = {name: parts for name in distributions if (parts := ratio_of(name)) is not None}
        space = cls(distributions, dict(file.fixed), rules, file.campaign.failed_quality, KOHYA, ties)
        varied = space._varied()
        # Including defaults, since a rule may name a parameter that the file does not set.
        fixed = {name: value for name, value in space.complete({}).items() if name not in varied}
        for rule in rules:
            if {rule.left, rule.other} & varied == set() and not rule.holds(fixed):
                raise ConfigError(f"{rule.violation(fixed)}: change [fixed] or drop the rule")
        return space

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of the searched parameters and ratios, in the order of the file."""
        return tuple(self.distributions)

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the parameter of each column of `encode`."""
        return tuple(name for name, d in self.distributions.items() for _ in range(_width(d)))

    def complete(self, searched: Mapping[str, ParameterValue]) -> Parameters:
        """Return all settable parameters: defaults, overridden by the fixed, then by the searched ones.

        Raises:
            ConfigError: A name is unknown or a value is bad.
        """
        return self.knowledge.complete(self.settled(searched))

    def settled(self, searched: Mapping[str, ParameterValue]) -> Parameters:
        """Return the fixed parameters, overridden by the searched ones, with ratios resolved into parameters."""
        plain = {**self.fixed, **{name: value for name, value in searched.items() if name not in self.ties}}
        for name in self.ties.keys() & searched.keys():
            part, whole = self.ties[name]
            base, ratio = self.knowledge.filled(plain)[whole], searched[name]
            # Without a whole, such as conv_dim = 0, the part has no effect either.
            if isinstance(base, int | float) and isinstance(ratio, int | float) and base:
                plain[part] = _in_kind(part, ratio * base)
        return plain

    def searched(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """Return the searched parameters and ratios of a full set of parameters."""
        known = {**parameters, **self._ratios(parameters)} if self.ties else parameters
        # None counts where the run recorded it as "not set", but not where the run does not know the parameter.
        return {name: known[name] for name in self.names if known.get(name) is not None or name in parameters}

    def _ratios(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """Return the searched ratios of a full set of parameters; None where one side is missing or zero."""
        return {name: self._ratio(name, parameters.get(a), parameters.get(b)) for name, (a, b) in self.ties.items()}

    def _ratio(self, name: str, part: ParameterValue, whole: ParameterValue) -> float | None:
        if not isinstance(part, int | float) or not isinstance(whole, int | float) or not whole:
            return None
        ratio, d = part / whole, self.distributions[name]
        if isinstance(d, CategoricalDistribution):  # rounding must not turn it into a different choice
            near = min(d.choices, key=lambda c: abs(_position(d, c) - _position(d, ratio)))
            return float(near) if isinstance(near, int | float) and math.isclose(near, ratio, rel_tol=1e-6) else ratio
        # Nor must it push a ratio at the edge of its range out of it.
        low, high, _ = _span(d)
        return min(max(ratio, low), high) if low * (1 - 1e-9) <= ratio <= high * (1 + 1e-9) else ratio

    def _varied(self) -> set[str]:
        """Return the names of the parameters that vary between runs."""
        return {name for name in self.names if name not in self.ties} | {part for part, _ in self.ties.values()}

    def is_own(self, parameters: Mapping[str, ParameterValue], but: Collection[str] = ()) -> bool:
        """Return whether a past run has the campaign's fixed parameters.

        This is False for an arm of a paired test that changes a fixed parameter.

        Args:
            parameters: Parameters of the run.
            but: Parameters that may differ, apart from the searched ones and the seed.
        """
        free, setting = {*self._varied(), *but, "seed"}, self.filled(parameters)
        return all(setting[n] == value for n, value in self.filled(self.complete({})).items() if n not in free)

    def problems(self, searched: Mapping[str, ParameterValue]) -> list[str]:
        """Return the reasons why a setting is not in this space, as sentences: unknown names, values out of range."""
        foreign = [f"{name} is not searched" for name in searched if name not in self.distributions]
        outside = [
            f"{name} = {text_of(value)} lies outside the search space ({_span_text(self.distributions[name])})"
            for name, value in searched.items()
            if name in self.distributions and not _contains(self.distributions[name], value)
        ]
        return foreign + outside

    def violations(self, parameters: Mapping[str, ParameterValue]) -> list[str]:
        """Return the hard rules that a full set of parameters breaks, as sentences without a full stop."""
        return [rule.violation(parameters) for rule in self.rules if not rule.holds(parameters)]

    def effective(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """Return the parameters as the trainer uses them: those without effect are None, implied values are filled in.

        Two settings with equal results are the same training.
        """
        return self.knowledge.effective(parameters)

    def filled(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """Return all settable parameters of a past run, with defaults for those that it did not record."""
        return self.knowledge.filled(parameters)

    def active(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """Return all settable parameters as set, and searched ratios. Those without effect are None."""
        full = self.knowledge.filled(parameters)
        used = full | dict.fromkeys(self.knowledge.idle(full))
        return used | self._ratios(used)

    def key(self, parameters: Mapping[str, ParameterValue]) -> str:
        """Return a text that is equal for settings that are the same training. The training seed counts as well."""
        return _key(self.knowledge, frozenset(parameters.items()))

    def encode(self, parameters: Mapping[str, ParameterValue]) -> NDArray[np.float64]:
        """Return a setting as a point of shape (d,).

        Each number takes one column (on a log scale if searched so), and each category one column per choice.
        Settings of this space lie in [0, 1]^d. Numbers of past runs outside their range lie outside the cube, at most
        one range away, so that they are not mistaken for points on its border.
        """
        used = self.active(parameters)
        return np.concatenate([_encode(d, used[name]) for name, d in self.distributions.items()])

    def at(self, unit: NDArray[np.float64]) -> Parameters:
        """Return the searched parameters at a point of the unit cube, shape (number of searched parameters,)."""
        return {name: _at(d, float(u)) for (name, d), u in zip(self.distributions.items(), unit, strict=True)}

    def likely(self) -> Parameters:
        """Return a setting to start with: known good values where they lie in range, else the middle of the range."""
        middle = self.at(np.full(len(self.names), 0.5))
        known = self.searched(self.knowledge.good)
        return middle | {name: value for name, value in known.items() if not self.problems({name: value})}

    def encode_units(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
        """Encode points of the unit cube, shape (m, number of searched parameters), as `encode` does: shape (m, d).

        A thousand points cost about as much as one setting, unless one searched parameter can disable another.
        """
        if self._entangled():
            settings = [self.settled(self.at(u)) for u in units]
            return np.array([self.encode(s) for s in settings]).reshape(len(units), len(self.columns))
        idle = self.knowledge.idle(self.knowledge.filled(self.fixed))
        parts = [
            np.full((len(units), _width(d)), _idle_code(d))
            if self.ties.get(name, (name,))[0] in idle
            else _encode_many(d, units[:, i])
            for i, (name, d) in enumerate(self.distributions.items())
        ]
        return np.hstack(parts)

    def _entangled(self) -> bool:
        """Return whether the value of one searched parameter decides if another has an effect."""
        names = {part for name in self.names for part in self.ties.get(name, (name,))}
        return any(c.names & names and c.needs & names for c in self.knowledge.conditions)

    def units(self, parameters: Mapping[str, ParameterValue]) -> NDArray[np.float64]:
        """Return the position of a full set of parameters in the unit cube, shape (number of searched parameters,)."""
        known = self.searched(parameters)
        return np.array([self.unit(name, known.get(name)) for name in self.names])

    def unit(self, name: str, value: ParameterValue) -> float:
        """Return the position (0-1) of a searched value on its axis. This inverts `at`; categories count by index."""
        d = self.distributions[name]
        if isinstance(d, CategoricalDistribution):
            choices = list(d.choices)
            if value not in choices and numeric(d) and value is not None:
                value = min(choices, key=lambda c: abs(_position(d, c) - _position(d, value)))
            # The middle of the choice's share of the axis, which `at` maps back to the choice.
            return (choices.index(value) + 0.5) / len(choices) if value in choices else 0.5
        return 0.5 if value is None else min(max(_position(d, value), 0.0), 1.0)


def filled(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """Return all settable parameters of a past run, with kohya's defaults for those that it did not record."""
    full = _DEFAULTS.copy()
    full.update((name, value) for name, value in parameters.items() if name in _DEFAULTS)
    for name in _ZERO_IS_OFF:
        full[name] = full[name] or 0.0  # the same training as "not set"
    return full


def active(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """Return all settable parameters as set, with kohya's defaults. Those without effect are None."""
    full = filled(parameters)
    return full | dict.fromkeys(KOHYA.idle(full))


@functools.lru_cache(maxsize=4096)
def _key(knowledge: ParameterKnowledge, items: frozenset[tuple[str, ParameterValue]]) -> str:
    """Return the text of `Space.key`. It is cached, since each decision needs the keys of all past runs."""
    return repr(sorted(knowledge.effective(dict(items)).items()))


def numeric(distribution: BaseDistribution) -> bool:
    """Return whether a distribution is a range of numbers or a list of numbers only."""
    return not isinstance(distribution, CategoricalDistribution) or all(
        isinstance(c, int | float) and not isinstance(c, bool) for c in distribution.choices
    )


def _in_kind(name: str, value: float) -> ParameterValue:
    """Return a computed number in the parameter's type, rounded to at least 1 for integers."""
    return max(round(value), 1) if name in PARAMETERS and PARAMETERS[name].kind is Kind.INT else value


def _distribution(name: str, span: Range | Choices) -> BaseDistribution:
    if ratio_of(name) is not None:
        if isinstance(span, Choices):
            return CategoricalDistribution(list(span.choices))
        return FloatDistribution(span.low, span.high, log=span.log or "log" not in span.model_fields_set)
    spec = parameter(name)
    if isinstance(span, Choices):
        return CategoricalDistribution([spec.check(c) for c in span.choices])
    # Without `log` in the file, follow the taxonomy: nobody wants learning rates on a linear scale.
    log = span.log if "log" in span.model_fields_set else spec.log and span.low > 0
    if spec.kind is Kind.INT:
        return IntDistribution(int(span.low), int(span.high), log=log)
    return FloatDistribution(span.low, span.high, log=log)


def _condition(names: str, needs: str, idle: Callable[[Mapping[str, ParameterValue]], bool]) -> Condition:
    return Condition(frozenset(names.split()), frozenset(needs.split()), idle)


_CONDITIONS = (
    _condition("conv_alpha", "conv_dim", lambda p: not p["conv_dim"]),
    _condition("text_encoder_lr", "network_train_unet_only", lambda p: bool(p["network_train_unet_only"])),
    _condition(
        "learning_rate",
        "unet_lr text_encoder_lr network_train_unet_only",
        lambda p: p["unet_lr"] is not None and (p["text_encoder_lr"] is not None or bool(p["network_train_unet_only"])),
    ),
    _condition("lr_warmup_steps", "lr_scheduler", lambda p: p["lr_scheduler"] == "constant"),
    _condition("lr_scheduler_num_cycles", "lr_scheduler", lambda p: p["lr_scheduler"] != "cosine_with_restarts"),
    _condition("lr_scheduler_power", "lr_scheduler", lambda p: p["lr_scheduler"] != "polynomial"),
    _condition(
        "keep_tokens",
        "shuffle_caption caption_tag_dropout_rate",
        lambda p: not p["shuffle_caption"] and not p["caption_tag_dropout_rate"],
    ),
    _condition("clip_skip", "clip_skip", lambda p: p["clip_skip"] == 1),
    _condition(
        "bucket_no_upscale bucket_reso_steps min_bucket_reso max_bucket_reso",
        "enable_bucket",
        lambda p: not p["enable_bucket"],
    ),
)
"""When parameters have no effect, by the behaviour of kohya's sd-scripts."""


def _implied(p: Mapping[str, ParameterValue]) -> Parameters:
    """Return the learning rates of UNet and text encoder. kohya falls back to the common one."""
    rate, own = p["learning_rate"], p["text_encoder_lr"]
    unet = rate if p["unet_lr"] is None else p["unet_lr"]
    text = None if p["network_train_unet_only"] else rate if own is None else own
    return {"unet_lr": unet, "text_encoder_lr": text, "learning_rate": None}


_GOOD: Parameters = {
    "learning_rate": 3e-4,
    "unet_lr": 3e-4,
    "text_encoder_lr": 5e-5,
    "network_dim": 32,
    "network_alpha": 16.0,
    "optimizer_type": "AdamW",
    "lr_scheduler": "cosine",
    "min_snr_gamma": 5.0,
}
"""Of 35 models swept over learning rate and rank, 22 were best at a rate of 3e-4 and 10 at 1e-3. The other values
are common practice."""

KOHYA = ParameterKnowledge(with_defaults, filled, _CONDITIONS, _implied, _GOOD)
"""Knowledge about the parameters of the taxonomy, by the behaviour of sd-scripts."""


def _nothing(_: Mapping[str, ParameterValue]) -> Parameters:
    return {}


PLAIN = ParameterKnowledge(dict, dict, (), _nothing, {})
"""No knowledge about parameters beyond their ranges, for tables of benchmarks."""


def _choices(d: BaseDistribution) -> tuple[ParameterValue, ...]:
    return tuple(d.choices) if isinstance(d, CategoricalDistribution) else ()


def _width(d: BaseDistribution) -> int:
    return 1 if numeric(d) else len(_choices(d))


def _span(d: BaseDistribution) -> tuple[float, float, bool]:
    """Return the lowest and highest number, and whether the scale is logarithmic."""
    if isinstance(d, FloatDistribution | IntDistribution):
        return float(d.low), float(d.high), d.log
    values = [float(c) for c in _choices(d) if isinstance(c, int | float)]
    # Lists of numbers are usually powers of two or ten, which are evenly spaced on a log scale.
    return min(values), max(values), min(values) > 0 and max(values) / min(values) >= 8


def _position(d: BaseDistribution, value: ParameterValue) -> float:
    low, high, log = _span(d)
    number = float(value) if isinstance(value, int | float) else low
    if log:
        # The floor keeps zero and negative values of past runs from breaking the logarithm.
        low, high, number = math.log(low), math.log(high), math.log(max(number, low * 1e-6))
    return (number - low) / (high - low) if high > low else _NEUTRAL


def _encode(d: BaseDistribution, value: ParameterValue) -> NDArray[np.float64]:
    if not numeric(d):
        return np.array([1.0 if c == value else 0.0 for c in _choices(d)])
    if value is None:
        return np.array([_NEUTRAL])
    return np.array([min(max(_position(d, value), -1.0), 2.0)])  # at most one range outside the cube


def _encode_many(d: BaseDistribution, units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Encode positions on one axis, shape (m,), as `_encode` encodes their values: shape (m, width)."""
    if isinstance(d, CategoricalDistribution):
        table = np.array([_encode(d, choice) for choice in d.choices])
        return np.asarray(table[np.minimum((units * len(table)).astype(int), len(table) - 1)])
    if isinstance(d, IntDistribution):
        first, last = d.low - 0.5, d.high + 0.5
        spread = first * (last / first) ** units if d.log else first + units * (last - first)
        whole = np.clip(np.rint(spread), d.low, d.high)
        return (_logs(whole, d) if d.log else (whole - d.low) / max(d.high - d.low, 1))[:, None]
    return units[:, None]


def _logs(whole: NDArray[np.float64], d: IntDistribution) -> NDArray[np.float64]:
    return np.asarray(np.log(whole / d.low) / max(math.log(d.high / d.low), 1e-12))


def _idle_code(d: BaseDistribution) -> float:
    return _NEUTRAL if numeric(d) else 0.0


def _at(d: BaseDistribution, u: float) -> ParameterValue:
    if isinstance(d, CategoricalDistribution):
        value: ParameterValue = d.choices[min(int(u * len(d.choices)), len(d.choices) - 1)]
        return value
    low, high, log = _span(d)
    if isinstance(d, IntDistribution):  # gives each integer an equal share of the axis, including the ends
        low, high = low - 0.5, high + 0.5
    number = math.exp(math.log(low) + u * math.log(high / low)) if log else low + u * (high - low)
    if isinstance(d, IntDistribution):
        return int(min(max(round(number), d.low), d.high))
    low, high, _ = _span(d)
    return min(max(number, low), high)


def _contains(d: BaseDistribution, value: ParameterValue) -> bool:
    if isinstance(d, CategoricalDistribution):
        return value in d.choices
    low, high, _ = _span(d)
    whole = isinstance(d, FloatDistribution) or (isinstance(value, int | float) and float(value).is_integer())
    return isinstance(value, int | float) and not isinstance(value, bool) and whole and low <= value <= high


def _span_text(d: BaseDistribution) -> str:
    if isinstance(d, CategoricalDistribution):
        return ", ".join(text_of(c) for c in d.choices)
    low, high, _ = _span(d)
    return f"{low:g} to {high:g}"
