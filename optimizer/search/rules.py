"""Parse and check hard limits that a user writes: ``network_dim <= 32``, ``network_alpha <= network_dim``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from schema.errors import ConfigError, shown
from schema.parameters import PARAMETERS, Parameter, ParameterValue, parameter
from schema.taxonomy import Kind

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    ">": operator.gt,
}
_FORM = re.compile(r"\s*([A-Za-z_]\w*)\s*(<=|>=|==|!=|<|>)\s*([^<>=!\s](?:[^<>=!]*[^<>=!\s])?)\s*")
_BOOLEANS: dict[str, bool] = {"true": True, "false": False}
_NUMERIC = (Kind.INT, Kind.FLOAT)


@dataclass(frozen=True)
class Rule:
    """Compare a parameter with the value `right` or, if `other` is set, with another parameter."""

    left: str
    compare: str
    right: ParameterValue = None
    other: str | None = None

    @classmethod
    def parse(cls, text: str) -> Rule:
        """Parse a rule such as ``network_dim <= 32``.

        Raises:
            ConfigError: The text has another form, a parameter is unknown, or the sides cannot be compared.
        """
        match = _FORM.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"rule {shown(text)} must read like 'network_dim <= 32' or 'network_alpha <= network_dim'"
            )
        left, compare, right = match.groups()
        spec = _settable(left, text)
        if compare not in ("==", "!=") and spec.kind not in _NUMERIC:
            raise ConfigError(f"rule {shown(text)}: {left} is of type {spec.kind}, so compare it with == or !=")
        if right in PARAMETERS:
            return cls(left, compare, other=_comparable(spec, right, text))
        return cls(left, compare, right=_value(spec, right, text))

    def holds(self, parameters: Mapping[str, ParameterValue]) -> bool:
        """Return whether the parameters follow the rule. A parameter that is not set breaks no rule."""
        left = parameters.get(self.left)
        right = self.right if self.other is None else parameters.get(self.other)
        return left is None or right is None or _COMPARE[self.compare](left, right)

    def violation(self, parameters: Mapping[str, ParameterValue]) -> str:
        """Return how the parameters break the rule, as a sentence without its full stop."""
        found = f"{self.left} is {text_of(parameters.get(self.left))}"
        if self.other is not None:
            found += f" and {self.other} is {text_of(parameters.get(self.other))}"
        return f"the rule '{self}' does not hold: {found}"

    def __str__(self) -> str:
        return f"{self.left} {self.compare} {self.other or text_of(self.right)}"


_LARGEST_WHOLE = 1e6
"""Whole numbers below are written out: a resolution is 1024, not 1.02e+03."""


def text_of(value: ParameterValue) -> str:
    """Return a parameter's value as a person writes it: 0.0004, cosine, true, 'not set'."""
    if value is None:
        return "not set"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST_WHOLE:
        return str(int(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _settable(name: str, text: str) -> Parameter:
    try:
        spec = parameter(name)
    except ConfigError as error:
        raise ConfigError(f"rule {shown(text)}: {error}") from None
    if spec.derived:
        raise ConfigError(f"rule {shown(text)}: {name} is computed from the others, so limit one that can be set")
    return spec


def _comparable(spec: Parameter, other: str, text: str) -> str:
    kinds = spec.kind, _settable(other, text).kind
    if kinds[0] is not kinds[1] and not set(kinds) <= set(_NUMERIC):
        raise ConfigError(f"rule {shown(text)}: {spec.name} is of type {kinds[0]}, but {other} of type {kinds[1]}")
    return other


def _value(spec: Parameter, text: str, rule: str) -> ParameterValue:
    """Return the right side in the parameter's type. A limit may lie outside the parameter's range."""
    bare = text.strip("\"'")
    if spec.kind is Kind.STR:
        return _checked(spec, bare, rule)
    if spec.kind is Kind.BOOL:
        return _checked(spec, _BOOLEANS.get(bare.lower(), bare), rule)
    try:
        return float(text)
    except ValueError:
        raise ConfigError(f"rule {shown(rule)}: {shown(text)} is neither a number nor a training parameter") from None


def _checked(spec: Parameter, value: Any, rule: str) -> ParameterValue:
    try:
        return spec.check(value)
    except ConfigError as error:
        raise ConfigError(f"rule {shown(rule)}: {error}") from None
