"""The search space: what is varied, what is fixed, what is forbidden, and how settings compare."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optimizer.rules import Rule, text_of
from schema.campaign import CampaignFile, Choices, Range
from schema.errors import ConfigError
from schema.parameters import PARAMETERS, Parameters, ParameterValue, parameter, with_defaults
from schema.taxonomy import Kind

_NEUTRAL = 0.5
"""Where a parameter that has no effect is put on its axis: it must look the same whatever it is set to."""

_ZERO_IS_OFF = ("network_dropout", "noise_offset")
_BUCKET = ("bucket_no_upscale", "bucket_reso_steps", "min_bucket_reso", "max_bucket_reso")


@dataclass(frozen=True)
class Space:
    """What a campaign searches.

    Attributes:
        distributions: Optuna's distribution of each searched parameter.
        fixed: parameters that the campaign sets once.
        rules: hard limits.
        failed_quality: a run whose best quality (0-100) is below counts as failed.
    """

    distributions: dict[str, BaseDistribution]
    fixed: Parameters
    rules: tuple[Rule, ...] = ()
    failed_quality: float = 20.0

    @classmethod
    def of(cls, file: CampaignFile) -> Space:
        """The space of a campaign file.

        Raises:
            ConfigError: a rule makes no sense, or the fixed parameters alone break one.
        """
        distributions = {name: _distribution(name, span) for name, span in file.search.items()}
        rules = tuple(Rule.parse(text) for text in file.rules)
        space = cls(distributions, dict(file.fixed), rules, file.campaign.failed_quality)
        fixed = {name: value for name, value in space.complete({}).items() if name not in distributions}
        for rule in rules:
            if {rule.left, rule.other} & set(distributions) == set() and not rule.holds(fixed):
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
        return with_defaults({**self.fixed, **searched})

    def searched(self, parameters: Mapping[str, ParameterValue]) -> Parameters:
        """The searched ones of a full set of parameters."""
        return {name: parameters[name] for name in self.names if name in parameters}

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
        p = active(parameters)
        rate = filled(parameters)["learning_rate"]
        if p["unet_lr"] is None:
            p["unet_lr"] = rate
        if p["text_encoder_lr"] is None and not p["network_train_unet_only"]:
            p["text_encoder_lr"] = rate
        p["learning_rate"] = None  # both halves now have their own
        return p

    def key(self, parameters: Mapping[str, ParameterValue]) -> str:
        """The same text for settings that are the same training, the random seed included."""
        return repr(sorted(self.effective(parameters).items()))

    def encode(self, parameters: Mapping[str, ParameterValue]) -> NDArray[np.float64]:
        """A setting as a point, shape (d,), one column a number (log scale where searched so), one a category.

        Settings of this space lie in [0, 1]^d. Past runs with numbers outside their span are put
        outside the cube, at most one span away, so that they are not mistaken for its border.
        """
        used = active(parameters)
        return np.concatenate([_encode(d, used[name]) for name, d in self.distributions.items()])

    def at(self, unit: NDArray[np.float64]) -> Parameters:
        """The searched parameters at a point of the unit cube, shape (number of searched parameters,)."""
        return {name: _at(d, float(u)) for (name, d), u in zip(self.distributions.items(), unit, strict=True)}

    def unit(self, name: str, value: ParameterValue) -> float:
        """Where a searched number lies on its axis, in [0, 1]; the inverse of `at`. Categories by their index."""
        d = self.distributions[name]
        if numeric(d):
            return 0.5 if value is None else min(max(_position(d, value), 0.0), 1.0)
        choices = list(_choices(d))
        return (choices.index(value) + 0.5) / len(choices) if value in choices else 0.5


def filled(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """All settable parameters of a past run; kohya's defaults where it did not keep them."""
    return {n: parameters.get(n, spec.default) for n, spec in PARAMETERS.items() if not spec.derived}


def active(parameters: Mapping[str, ParameterValue]) -> Parameters:
    """All settable parameters as they are set, those without effect beside the others as None."""
    full = filled(parameters)
    off: Parameters = {name: full[name] or 0.0 for name in _ZERO_IS_OFF}  # not set is the same
    return full | off | dict.fromkeys(_idle(full))


def numeric(distribution: BaseDistribution) -> bool:
    """True for spans of numbers and for choices that are all numbers."""
    return not isinstance(distribution, CategoricalDistribution) or all(
        isinstance(c, int | float) and not isinstance(c, bool) for c in distribution.choices
    )


def _distribution(name: str, span: Range | Choices) -> BaseDistribution:
    spec = parameter(name)
    if isinstance(span, Choices):
        return CategoricalDistribution([spec.check(c) for c in span.choices])
    # What the file leaves open follows the taxonomy: nobody means learning rates on a linear scale.
    log = span.log if "log" in span.model_fields_set else spec.log and span.low > 0
    if spec.kind is Kind.INT:
        return IntDistribution(int(span.low), int(span.high), log=log)
    return FloatDistribution(span.low, span.high, log=log)


def _idle(p: Mapping[str, ParameterValue]) -> set[str]:
    """Parameters without effect beside the others, by the behaviour of kohya's sd-scripts."""
    idle: set[str] = set()
    if not p["conv_dim"]:
        idle.add("conv_alpha")
    if p["network_train_unet_only"]:
        idle.add("text_encoder_lr")
    if p["unet_lr"] is not None and (p["text_encoder_lr"] is not None or p["network_train_unet_only"]):
        idle.add("learning_rate")
    if p["lr_scheduler"] == "constant":
        idle.add("lr_warmup_steps")
    if p["lr_scheduler"] != "cosine_with_restarts":
        idle.add("lr_scheduler_num_cycles")
    if p["lr_scheduler"] != "polynomial":
        idle.add("lr_scheduler_power")
    if not p["shuffle_caption"] and not p["caption_tag_dropout_rate"]:
        idle.add("keep_tokens")
    if p["clip_skip"] == 1:
        idle.add("clip_skip")
    if not p["enable_bucket"]:
        idle.update(_BUCKET)
    return idle


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
