"""The search space: what is varied, what is fixed, what is forbidden, and how settings compare."""

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
"""Where a parameter that has no effect is put on its axis: it must look the same whatever it is set to."""

_DEFAULTS: Parameters = {name: spec.default for name, spec in PARAMETERS.items() if not spec.derived}
_ZERO_IS_OFF = ("network_dropout", "noise_offset")


@dataclass(frozen=True)
class Condition:
    """Parameters `names` have no effect where `idle` holds, which looks at the parameters `needs`."""

    names: frozenset[str]
    needs: frozenset[str]
    idle: Callable[[Mapping[str, ParameterValue]], bool]


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What is known of parameters beyond the span that is searched.

    Attributes:
        complete: fills up and checks a setting that is to run.
        filled: fills up a setting of the past, whatever it was.
        conditions: what has no effect beside which values.
        implied: values that the others of a filled setting imply.
        good: values that are known to work.
    """

    complete: Callable[[Mapping[str, ParameterValue]], Parameters]
    filled: Callable[[Mapping[str, ParameterValue]], Parameters]
    conditions: tuple[Condition, ...]
    implied: Callable[[Mapping[str, ParameterValue]], Parameters]
    good: Parameters

    def idle(self, full: Mapping[str, ParameterValue]) -> set[str]:
        """Names of the parameters that have no effect beside the others of a filled setting."""
        return {name for c in self.conditions if c.idle(full) for name in c.names}

    def effective(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """See `Space.effective`."""
        full = self.filled(parameters)
        return full | dict.fromkeys(self.idle(full)) | self.implied(full)


@dataclass(frozen=True)
class Space:
    """What a campaign searches.

    Attributes:
        distributions: Optuna's distribution of each searched parameter.
        fixed: parameters that the campaign sets once.
        rules: hard limits.
        failed_quality: a run whose best quality (0-100) is below counts as failed.
        words: what is known of the parameters; kohya's unless said otherwise.
        ties: for each searched ratio ``a/b`` the parameters a and b; a run has a, computed from them.
    """

    distributions: dict[str, BaseDistribution]
    fixed: Parameters
    rules: tuple[Rule, ...]
    failed_quality: float
    words: Vocabulary
    ties: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    @classmethod
    def of(cls, file: CampaignFile, learnt: Sequence[str] = ()) -> Space:
        """The space of a campaign file; `learnt` are further hard limits, of accepted principles.

        Raises:
            ConfigError: a rule makes no sense, or the fixed parameters alone break one.
        """
        distributions = {name: _distribution(name, span) for name, span in file.search.items()}
        rules = tuple(Rule.parse(text) for text in (*file.rules, *learnt))
        ties = {name: parts for name in distributions if (parts := ratio_of(name)) is not None}
        space = cls(distributions, dict(file.fixed), rules, file.campaign.failed_quality, KOHYA, ties)
        varied = space._varied()
        fixed = {name: value for name, value in space.complete({}).items() if name not in varied}
        for rule in rules:
            if {rule.left, rule.other} & varied == set() and not rule.holds(fixed):
                raise ConfigError(f"{rule.violation(fixed)}: change [fixed] or drop the rule")
        return space

    @property
    def names(self) -> tuple[str, ...]:
        """The searched parameters, in the file's order."""
        return tuple(self.distributions)

    @property
    def columns(self) -> tuple[str, ...]:
        """The parameter that each column of `encode` belongs to."""
        return tuple(name for name, d in self.distributions.items() for _ in range(_width(d)))

    def complete(self, searched: Mapping[str, ParameterValue]) -> Parameters:
        """All settable parameters: kohya's defaults, overridden by the fixed, then by the searched ones.

        Raises:
            ConfigError: unknown name or bad value.
        """
        return self.words.complete(self.settled(searched))

    def settled(self, searched: Mapping[str, ParameterValue]) -> Parameters:
        """The fixed parameters, overridden by the searched ones, with ratios turned into what they stand for."""
        plain = {**self.fixed, **{name: value for name, value in searched.items() if name not in self.ties}}
        for name in self.ties.keys() & searched.keys():
            part, whole = self.ties[name]
            base, ratio = self.words.filled(plain)[whole], searched[name]
            if isinstance(base, int | float) and isinstance(ratio, int | float) and base:  # else it has no effect
                plain[part] = _in_kind(part, ratio * base)
        return plain

    def searched(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """The searched ones of a full set of parameters."""
        known = {**parameters, **self._ratios(parameters)} if self.ties else parameters
        return {name: known[name] for name in self.names if known.get(name) is not None or name in parameters}

    def _ratios(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """The searched ratios of a full set of parameters; None where there is nothing to divide."""
        return {name: self._ratio(name, parameters.get(a), parameters.get(b)) for name, (a, b) in self.ties.items()}

    def _ratio(self, name: str, part: ParameterValue, whole: ParameterValue) -> float | None:
        if not isinstance(part, int | float) or not isinstance(whole, int | float) or not whole:
            return None
        ratio, d = part / whole, self.distributions[name]
        if isinstance(d, CategoricalDistribution):  # rounding must not make it another choice
            near = min(d.choices, key=lambda c: abs(_position(d, c) - _position(d, ratio)))
            return float(near) if isinstance(near, int | float) and math.isclose(near, ratio, rel_tol=1e-6) else ratio
        low, high, _ = _span(d)
        return min(max(ratio, low), high) if low * (1 - 1e-9) <= ratio <= high * (1 + 1e-9) else ratio

    def _varied(self) -> set[str]:
        """Names of the parameters that vary between runs."""
        return {name for name in self.names if name not in self.ties} | {part for part, _ in self.ties.values()}

    def is_own(self, parameters: Mapping[str, ParameterValue], but: Collection[str] = ()) -> bool:
        """Whether a past run has what the campaign fixes; not so a half of a test of a fixed parameter.

        Args:
            parameters: of the run.
            but: parameters that may differ, beside the searched ones and the seed.
        """
        free, setting = {*self._varied(), *but, "seed"}, self.filled(parameters)
        return all(setting[n] == value for n, value in self.filled(self.complete({})).items() if n not in free)

    def problems(self, searched: Mapping[str, ParameterValue]) -> list[str]:
        """What keeps a setting from being run as one of this space: foreign names, values out of range."""
        foreign = [f"{name} is not searched" for name in searched if name not in self.distributions]
        outside = [
            f"{name} = {text_of(value)} lies outside the search space ({_span_text(self.distributions[name])})"
            for name, value in searched.items()
            if name in self.distributions and not _contains(self.distributions[name], value)
        ]
        return foreign + outside

    def violations(self, parameters: Mapping[str, ParameterValue]) -> list[str]:
        """The hard rules that a full set of parameters breaks, each as a sentence without its full stop."""
        return [rule.violation(parameters) for rule in self.rules if not rule.holds(parameters)]

    def effective(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """The parameters as the trainer uses them: those that are `active`, with what is implied filled in.

        Settings with equal results are the same training, so that duplicates are recognised.
        """
        return self.words.effective(parameters)

    def filled(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """All settable parameters of a past run; defaults where it did not keep them."""
        return self.words.filled(parameters)

    def active(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """All settable parameters as they are set, those without effect beside the others as None."""
        full = self.words.filled(parameters)
        used = full | dict.fromkeys(self.words.idle(full))
        return used | self._ratios(used)

    def key(self, parameters: Mapping[str, ParameterValue]) -> str:
        """The same text for settings that are the same training, the random seed included."""
        return _key(self.words, frozenset(parameters.items()))

    def encode(self, parameters: Mapping[str, ParameterValue]) -> NDArray[np.float64]:
        """A setting as a point, shape (d,), one column a number (log scale where searched so), one a category.

        Settings of this space lie in [0, 1]^d. Past runs with numbers outside their span are put
        outside the cube, at most one span away, so that they are not mistaken for its border.
        """
        used = self.active(parameters)
        return np.concatenate([_encode(d, used[name]) for name, d in self.distributions.items()])

    def at(self, unit: NDArray[np.float64]) -> Parameters:
        """The searched parameters at a point of the unit cube, shape (number of searched parameters,)."""
        return {name: _at(d, float(u)) for (name, d), u in zip(self.distributions.items(), unit, strict=True)}

    def likely(self) -> Parameters:
        """A searched setting to begin with: what is known to be good where the span has it, else its middle."""
        middle = self.at(np.full(len(self.names), 0.5))
        known = self.searched(self.words.good)
        return middle | {name: value for name, value in known.items() if not self.problems({name: value})}

    def encode_units(self, units: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the unit cube (m, number of searched parameters) encoded, as `encode` does their settings: (m, d).

        A thousand cost about what one setting costs, unless searched parameters decide about each other.
        """
        if self._entangled():
            settings = [self.settled(self.at(u)) for u in units]
            return np.array([self.encode(s) for s in settings]).reshape(len(units), len(self.columns))
        idle = self.words.idle(self.words.filled(self.fixed))
        parts = [
            np.full((len(units), _width(d)), _idle_code(d))
            if self.ties.get(name, (name,))[0] in idle
            else _encode_many(d, units[:, i])
            for i, (name, d) in enumerate(self.distributions.items())
        ]
        return np.hstack(parts)

    def _entangled(self) -> bool:
        """True where the value of one searched parameter decides whether another has an effect."""
        names = {part for name in self.names for part in self.ties.get(name, (name,))}
        return any(c.names & names and c.needs & names for c in self.words.conditions)

    def units(self, parameters: Mapping[str, ParameterValue]) -> NDArray[np.float64]:
        """Where a full set of parameters lies in the unit cube, shape (number of searched parameters,)."""
        known = self.searched(parameters)
        return np.array([self.unit(name, known.get(name)) for name in self.names])

    def unit(self, name: str, value: ParameterValue) -> float:
        """Where a searched number lies on its axis, in [0, 1]; the inverse of `at`. Categories by their index."""
        d = self.distributions[name]
        if isinstance(d, CategoricalDistribution):
            choices = list(d.choices)
            if value not in choices and numeric(d) and value is not None:
                value = min(choices, key=lambda c: abs(_position(d, c) - _position(d, value)))
            return (choices.index(value) + 0.5) / len(choices) if value in choices else 0.5
        return 0.5 if value is None else min(max(_position(d, value), 0.0), 1.0)


def filled(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """All settable parameters of a past run; kohya's defaults where it did not keep them."""
    full = _DEFAULTS.copy()
    full.update((name, value) for name, value in parameters.items() if name in _DEFAULTS)
    for name in _ZERO_IS_OFF:
        full[name] = full[name] or 0.0  # not set is the same
    return full


def active(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """All settable parameters as they are set, those without effect beside the others as None."""
    full = filled(parameters)
    return full | dict.fromkeys(KOHYA.idle(full))


@functools.lru_cache(maxsize=4096)
def _key(words: Vocabulary, items: frozenset[tuple[str, ParameterValue]]) -> str:
    """See `Space.key`; each decision asks for the keys of all past runs."""
    return repr(sorted(words.effective(dict(items)).items()))


def numeric(distribution: BaseDistribution) -> bool:
    """True for spans of numbers and for choices that are all numbers."""
    return not isinstance(distribution, CategoricalDistribution) or all(
        isinstance(c, int | float) and not isinstance(c, bool) for c in distribution.choices
    )


def _in_kind(name: str, value: float) -> ParameterValue:
    """A computed number as the parameter takes it."""
    return max(round(value), 1) if name in PARAMETERS and PARAMETERS[name].kind is Kind.INT else value


def _distribution(name: str, span: Range | Choices) -> BaseDistribution:
    if ratio_of(name) is not None:
        if isinstance(span, Choices):
            return CategoricalDistribution(list(span.choices))
        return FloatDistribution(span.low, span.high, log=span.log or "log" not in span.model_fields_set)
    spec = parameter(name)
    if isinstance(span, Choices):
        return CategoricalDistribution([spec.check(c) for c in span.choices])
    # What the file leaves open follows the taxonomy: nobody means learning rates on a linear scale.
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
"""By the behaviour of kohya's sd-scripts."""


def _implied(p: Mapping[str, ParameterValue]) -> Parameters:
    """Both halves' learning rates, which kohya takes from the common one."""
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
"""Of 35 models swept over rate and rank, 22 were best at a rate of 3e-4, 10 at 1e-3; the rest is common practice."""

KOHYA = Vocabulary(with_defaults, filled, _CONDITIONS, _implied, _GOOD)
"""The taxonomy's parameters and what sd-scripts makes of them."""


def _nothing(_: Mapping[str, ParameterValue]) -> Parameters:
    return {}


PLAIN = Vocabulary(dict, dict, (), _nothing, {})
"""Parameters of which nothing is known but their spans."""


def _choices(d: BaseDistribution) -> tuple[ParameterValue, ...]:
    return tuple(d.choices) if isinstance(d, CategoricalDistribution) else ()


def _width(d: BaseDistribution) -> int:
    return 1 if numeric(d) else len(_choices(d))


def _span(d: BaseDistribution) -> tuple[float, float, bool]:
    """Low, high, and whether the scale is logarithmic."""
    if isinstance(d, FloatDistribution | IntDistribution):
        return float(d.low), float(d.high), d.log
    values = [float(c) for c in _choices(d) if isinstance(c, int | float)]
    # Powers of two and decades are the usual lists: they are even on a log scale.
    return min(values), max(values), min(values) > 0 and max(values) / min(values) >= 8


def _position(d: BaseDistribution, value: ParameterValue) -> float:
    low, high, log = _span(d)
    number = float(value) if isinstance(value, int | float) else low
    if log:
        low, high, number = math.log(low), math.log(high), math.log(max(number, low * 1e-6))
    return (number - low) / (high - low) if high > low else _NEUTRAL


def _encode(d: BaseDistribution, value: ParameterValue) -> NDArray[np.float64]:
    if not numeric(d):
        return np.array([1.0 if c == value else 0.0 for c in _choices(d)])
    if value is None:
        return np.array([_NEUTRAL])
    return np.array([min(max(_position(d, value), -1.0), 2.0)])


def _encode_many(d: BaseDistribution, units: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places on one axis, shape (m,), as `_encode` has their values: shape (m, width)."""
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
    if isinstance(d, IntDistribution):  # each integer gets an equal share of the axis, the ends too
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
