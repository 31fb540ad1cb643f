"""Define the base class of all records, and read records from TOML with error messages that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeGuard, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError

from schema.errors import ConfigError, shorten, shown
from schema.readers import read_toml

_NAMES: dict[frozenset[str], set[str]] = {}


class Frozen(BaseModel):
    """Base all records on one model: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_post_init(self, context: Any, /) -> None:
        """Share one set of field names between all records that were given the same fields.

        Pydantic otherwise stores a set per record, which takes as much memory as all values of an epoch together.
        """
        names = self.model_fields_set
        object.__setattr__(self, "__pydantic_fields_set__", _NAMES.setdefault(frozenset(names), names))

    def changed(self, **values: Any) -> Self:
        """Return a copy with some fields replaced. The copy is validated, unlike the result of `model_copy`."""
        return type(self).model_validate({**dict(self), **values})


Model = TypeVar("Model", bound=BaseModel)


def load_toml(path: Path, model: type[Model]) -> Model:
    """Read a TOML file into a model.

    Raises:
        ConfigError: The file is missing or not valid TOML, or one of its keys or values is wrong. The
            message names the file and the key, and says how to fix it.
    """
    return parse(read_toml(path), model, where=str(path))


def parse(data: dict[str, Any], model: type[Model], where: str) -> Model:
    """Validate plain data and return it as a model.

    Args:
        data: Plain values, as read from TOML or JSON.
        model: Class of the result.
        where: Origin of the data, for error messages.

    Raises:
        ConfigError: The data is invalid. The message describes the first problem and counts the others.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise ConfigError(f"{where}: {_sentence(error, model)}") from None


def _sentence(error: ValidationError, model: type[BaseModel]) -> str:
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":  # a misspelt key is the likely cause, so report that instead
        first = next((e for e in errors if e["type"] == "extra_forbidden"), first)
    # The first error only: the others are often consequences of it, and a sentence should stay readable.
    key = ".".join(str(part) for part in first["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if first["type"] == "extra_forbidden":
        return f"unknown key {shorten(key)}{_did_you_mean(str(first['loc'][-1]), _beside(model, first['loc']))}{more}"
    if first["type"] == "missing":
        return f"{key} is missing: add it{more}"
    message = first["msg"].removeprefix("Value error, ").replace("a valid tuple", "a list")
    if first["type"] == "value_error":  # the messages of our own validators already quote the input
        return f"{key}: {message}{more}" if key else f"{message}{more}"
    return f"{key}: {message}, but got {shown(first['input'])}{more}"


def _beside(model: type[BaseModel], loc: Sequence[int | str]) -> list[str]:
    """Return the field names that are valid at the place of a misspelt key."""
    for part in loc[:-1]:
        kinds = [model.model_fields[str(part)].annotation] if str(part) in model.model_fields else []
        inner = next((k for kind in kinds for k in (kind, *get_args(kind)) if _is_model(k)), None)
        model = inner or model
    return list(model.model_fields)


def _is_model(kind: object) -> TypeGuard[type[BaseModel]]:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _did_you_mean(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=2)
    return f": did you mean {' or '.join(near)}?" if near else f": known are {', '.join(sorted(set(known)))}"
