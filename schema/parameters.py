"""Look up, check and complete training parameters by the taxonomy."""

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
"""Value of one training parameter, of a type that kohya's TOML files can hold."""

Parameters = dict[str, ParameterValue]
"""Training parameters, keyed by kohya's names."""


_TYPES: dict[Kind, Any] = {Kind.FLOAT: float, Kind.INT: int, Kind.BOOL: bool, Kind.STR: str}


class Parameter(Frozen):
    """Describe one training parameter.

    `low` and `high` bound the accepted values. `search_low` and `search_high` are the default
    search range. `derived` parameters are computed and stored; users cannot set them.
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
        """Return the value converted to the parameter's type; None stays None.

        Raises:
            ConfigError: The value has the wrong type, is out of range or is not one of the choices.
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
        """Return the value converted to the parameter's type, without checking its range.

        Raises:
            ConfigError: The value has the wrong type.
        """
        wanted = _TYPES[self.kind]
        if self.kind is Kind.FLOAT and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        # JSON and samplers may write an integer as 4.0.
        if self.kind is Kind.INT and isinstance(value, float) and value.is_integer():
            return int(value)
        # bool is a subclass of int, but true is no number of epochs.
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigError(f"{self.name} must be of type {self.kind}, but got {shown(value)}")
        result: ParameterValue = value
        return result


PARAMETERS: dict[str, Parameter] = {row["name"]: Parameter(**row) for row in ROWS}
"""All parameters of the taxonomy, by name."""


def parameter(name: str) -> Parameter:
    """Return a parameter by name.

    Raises:
        ConfigError: There is no such parameter. The message suggests similar names.
    """
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ": see docs/parameters.md"
        raise ConfigError(f"unknown training parameter {name}{hint}")
    return PARAMETERS[name]


def check_parameters(values: Mapping[str, Any]) -> Parameters:
    """Return the parameters with each value checked and converted to its type.

    Raises:
        ConfigError: A name is unknown, a parameter is derived, or a value is bad.
    """
    checked: Parameters = {}
    for name, value in values.items():
        spec = parameter(name)
        if spec.derived:
            raise ConfigError(f"{name} is computed from the others and cannot be set: remove it")
        checked[name] = spec.check(value)
    return checked


def with_defaults(values: Mapping[str, Any]) -> Parameters:
    """Return all settable parameters: the given values, checked, and kohya's defaults for the rest.

    Raises:
        ConfigError: As `check_parameters`.
    """
    defaults: Parameters = {p.name: p.default for p in PARAMETERS.values() if not p.derived}
    return {**defaults, **check_parameters(values)}


def parse_setting(text: str) -> tuple[str, ParameterValue]:
    """Parse ``name=value`` and return the name and the checked value.

    Raises:
        ConfigError: The equals sign is missing, the name is unknown or the value is bad.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"write a setting as name=value, but got {shown(text)}")
    return name, parameter(name).check(parse_value(name, value))


def parse_value(name: str, text: str) -> ParameterValue:
    """Parse the text of a parameter's value and return it in the parameter's type. The range is not checked.

    Raises:
        ConfigError: The name is unknown, or the text is not of the parameter's type.
    """
    spec = parameter(name)
    if spec.kind is Kind.STR:
        return text
    try:
        return spec.typed(json.loads(text.lower()))
    except json.JSONDecodeError:
        raise ConfigError(f"{name} must be of type {spec.kind}, but got {shown(text)}") from None


def markdown_table() -> str:
    """Return the taxonomy as Markdown, the content of docs/parameters.md."""
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
