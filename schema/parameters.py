"""Training parameters: looked up, checked and filled up by the taxonomy."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import model_validator

from schema.base import Frozen
from schema.errors import ConfigError, shown
from schema.taxonomy import ROWS, Category, Kind

ParameterValue = bool | int | float | str | None
"""Value of one training parameter, as kohya's TOML knows it."""

Parameters = dict[str, ParameterValue]
"""Training parameters by kohya's name."""


_TYPES: dict[Kind, Any] = {Kind.FLOAT: float, Kind.INT: int, Kind.BOOL: bool, Kind.STR: str}


class Parameter(Frozen):
    """One training parameter.

    `low` and `high` bound what is accepted; `search_low` and `search_high` are the default span
    of a search over it. `derived` ones are computed and kept, never set.
    """

    name: str
    kind: Kind
    category: Category
    effect: str
    default: ParameterValue = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    searchable: bool = False
    log: bool = False
    search_low: float | None = None
    search_high: float | None = None
    derived: bool = False

    @model_validator(mode="after")
    def _span(self) -> Parameter:
        if self.searchable and self.kind in (Kind.FLOAT, Kind.INT) and self.search_low is None:
            raise ValueError(f"{self.name} may be searched, so it needs search_low and search_high")
        return self

    def check(self, value: Any) -> ParameterValue:
        """The value in the parameter's own type.

        Raises:
            ConfigError: wrong type, out of range, or none of the choices.
        """
        if value is None:
            return None
        result = self.typed(value)
        if self.choices and result not in self.choices:
            raise ConfigError(f"{self.name} must be one of {', '.join(self.choices)}, but got {shown(value)}")
        if isinstance(result, int | float) and not self._low <= result <= self._high:
            raise ConfigError(f"{self.name} must lie in [{self._low:g}, {self._high:g}], but got {shown(value)}")
        return result

    @property
    def _low(self) -> float:
        return -math.inf if self.low is None else self.low

    @property
    def _high(self) -> float:
        return math.inf if self.high is None else self.high

    def typed(self, value: Any) -> ParameterValue:
        """The value in the parameter's own type, whatever its range.

        Raises:
            ConfigError: it is of another type.
        """
        wanted = _TYPES[self.kind]
        if self.kind is Kind.FLOAT and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind is Kind.INT and isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigError(f"{self.name} must be of type {self.kind}, but got {shown(value)}")
        result: ParameterValue = value
        return result


PARAMETERS: dict[str, Parameter] = {row["name"]: Parameter(**row) for row in ROWS}
"""The taxonomy by name."""


def parameter(name: str) -> Parameter:
    """Look a parameter up.

    Raises:
        ConfigError: no such parameter; the message names the nearest ones.
    """
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ": see docs/parameters.md"
        raise ConfigError(f"unknown training parameter {name}{hint}")
    return PARAMETERS[name]


def check_parameters(values: Mapping[str, Any]) -> Parameters:
    """Check a set of parameters one by one and against each other.

    Raises:
        ConfigError: unknown name, derived parameter, or bad value.
    """
    checked: Parameters = {}
    for name, value in values.items():
        spec = parameter(name)
        if spec.derived:
            raise ConfigError(f"{name} is computed from the others and cannot be set: remove it")
        checked[name] = spec.check(value)
    return checked


def with_defaults(values: Mapping[str, Any]) -> Parameters:
    """All settable parameters: the given ones checked, the others at kohya's defaults.

    Raises:
        ConfigError: as `check_parameters`.
    """
    defaults: Parameters = {p.name: p.default for p in PARAMETERS.values() if not p.derived}
    return {**defaults, **check_parameters(values)}


def parse_setting(text: str) -> tuple[str, ParameterValue]:
    """A parameter written as ``name=value``, checked and in its own type.

    Raises:
        ConfigError: no equals sign, unknown name or bad value.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"write a setting as name=value, but got {shown(text)}")
    return name, parameter(name).check(parse_value(name, value))


def parse_value(name: str, text: str) -> ParameterValue:
    """A parameter's value written as text, in the parameter's own type; its range is not looked at.

    Raises:
        ConfigError: unknown name, or text of another type.
    """
    spec = parameter(name)
    if spec.kind is Kind.STR:
        return text
    try:
        return spec.typed(json.loads(text.lower()))
    except json.JSONDecodeError:
        raise ConfigError(f"{name} must be of type {spec.kind}, but got {shown(text)}") from None


def markdown_table() -> str:
    """The taxonomy as a page: what docs/parameters.md holds."""
    lines = [
        "# Training parameters",
        "",
        "Every parameter once, under kohya's name. *Search* is the span a campaign may search over by default.",
        "",
    ]
    for category in Category:
        lines += [f"## {category.title()}", "", "| name | type | default | search | effect |", "|---|---|---|---|---|"]
        lines += [_row(p) for p in PARAMETERS.values() if p.category is category]
        lines.append("")
    return "\n".join(lines)


def _row(p: Parameter) -> str:
    default = "computed" if p.derived else "-" if p.default is None else f"`{json.dumps(p.default)}`"
    span = "-"
    if p.searchable:
        span = ", ".join(p.choices) or "yes, no"
        if p.search_low is not None:
            span = f"{p.search_low:g} to {p.search_high:g}{', log' if p.log else ''}"
    return f"| `{p.name}` | {p.kind} | {default} | {span} | {p.effect} |"
