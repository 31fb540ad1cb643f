"""What one file tells about a run, and where each value was read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any

from schema.errors import ConfigError, shown
from schema.parameters import PARAMETERS

FIELDS = ("base_model", "dataset", "model_type", "num_images", "quality", "best_epoch", "notes",
          "started_at", "finished_at")  # fmt: skip
"""Fields of a run beside its parameters."""

OTHER_NAMES = {
    "dataset_repeats": "num_repeats", "caption_extention": "caption_extension", "batch_size": "train_batch_size",
    "image_resolution": "resolution", "max_resolution": "resolution", "optimizer": "optimizer_type",
    "debiased_estimation": "debiased_estimation_loss", "multires_noise_iterations": "multires_noise_iterations",
    "pretrained_model_name_or_path": "base_model",
}  # fmt: skip


MOST = 2**31 - 1
"""Largest number of an epoch or of pictures that the database keeps."""

_MOST_NODES, _DEEPEST = 1_000_000, 100
"""Limits of a document: a few aliases of YAML can stand for more values than memory holds."""

MOST_TEXT = 64 * 2**20
"""Bytes of a text file: a table of scores or a configuration has a few thousand."""

_MOST_INTEGER = 2**63 - 1  # a larger one is no setting that any trainer takes


class Source(IntEnum):
    """Where a value comes from; of two that differ the one with the lower number counts."""

    OPTION = 0
    METADATA = 1
    CONFIG = 2
    STATED = 3
    INFERRED = 4

    @property
    def word(self) -> str:
        """As it is kept in the database."""
        return ("stated now", "metadata", "config", "stated by hand", "inferred")[self]


@dataclass(frozen=True)
class Fact:
    """One value with its source; `how` names the file, and the way where it was inferred."""

    name: str
    value: Any
    source: Source
    how: str

    @property
    def told(self) -> str:
        """The source as a person reads it."""
        return f"{self.source.word}: {self.how}"

    @classmethod
    def kept(cls, name: str, value: Any, told: str) -> Fact:
        """A fact as the database has it."""
        word, _, how = told.partition(": ")
        source = next((source for source in Source if source.word == word), Source.STATED)
        return cls(name, value, source, how)


@dataclass(frozen=True)
class EpochFound:
    """What is known of one epoch; scores 0-10, quality 0-100."""

    number: int
    checkpoint: str | None = None
    loss: float | None = None
    visual: float | None = None
    style: float | None = None
    prompt: float | None = None
    quality: float | None = None
    words: str | None = None
    at: datetime | None = None


@dataclass(frozen=True)
class Found:
    """What one file, or one row, tells about one run.

    Attributes:
        run: name of the run, empty where only its time is known.
        session: kohya's session, the same in all files of one run.
        notes: sentences on what could not be used.
    """

    place: str
    run: str
    facts: tuple[Fact, ...] = ()
    session: str | None = None
    epochs: tuple[EpochFound, ...] = ()
    at: datetime | None = None
    broken: bool = False
    notes: tuple[str, ...] = field(default=())


def typed(pairs: Mapping[str, Any], source: Source, place: str, notes: list[str]) -> Iterator[Fact]:
    """Parameters among named values, each in its own type; what is unset or no parameter is left out.

    A value that cannot be read as its parameter's type is told, never bent.
    """
    for given, value in pairs.items():
        name = OTHER_NAMES.get(given, given)
        if value is None or value in ("", "None", "null", []):
            continue
        if name in ("network_args", "optimizer_args") and not isinstance(value, str | list | tuple | Mapping):
            notes.append(f"{place}: {name} must be a text or a list, but is {shown(value)}; left out")
        elif name in ("base_model", "model_type"):
            if isinstance(value, str):
                yield Fact(name, value, source, place)
            else:
                notes.append(f"{place}: {name} must be a text, but is {shown(value)}; left out")
        elif name == "network_args":
            yield from typed(_pairs(value), source, place, notes)
        elif name == "optimizer_args":
            yield from _optimizer_arguments(_pairs(value), source, place, notes)
        elif name in PARAMETERS:
            try:
                yield Fact(name, _value(name, value), source, place)
            except ConfigError as error:
                notes.append(f"{place}: {error}; left out")


def _optimizer_arguments(pairs: dict[str, str], source: Source, place: str, notes: list[str]) -> Iterator[Fact]:
    decay = pairs.pop("weight_decay", None)
    yield from typed({"weight_decay": decay}, source, place, notes)
    if pairs:
        yield Fact("optimizer_args", " ".join(f"{k}={v}".replace(" ", "") for k, v in pairs.items()), source, place)


def _pairs(value: Any) -> dict[str, str]:
    """``name=value`` each, from a list, a text, or what is a mapping already."""
    if isinstance(value, Mapping):
        return {str(k): str(v) for k, v in value.items()}
    parts: Iterable[Any] = value.split() if isinstance(value, str) else value
    found = (str(part).partition("=") for part in parts)
    names = {"dropout": "network_dropout"}
    return {names.get(name.strip(), name.strip()): text.strip() for name, equals, text in found if equals}


def check_size(document: Any) -> None:
    """Raise ValueError for a document that is too large or too deep to work with."""
    nodes, waiting = 0, [(document, 0)]
    while waiting:
        node, depth = waiting.pop()
        nodes += 1
        if nodes > _MOST_NODES or depth > _DEEPEST:
            raise ValueError(f"it holds more than {_MOST_NODES} values or is nested deeper than {_DEEPEST}")
        if isinstance(node, Mapping):
            waiting += ((value, depth + 1) for value in node.values())
        elif isinstance(node, list | tuple | set):
            waiting += ((value, depth + 1) for value in node)


def tables(value: Any) -> list[Mapping[str, Any]]:
    """Return the tables of a list of tables; what is of another shape holds none."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def whole_number(value: Any, least: int = 0, most: int = MOST) -> int | None:
    """Return a value as a whole number of this span, written as a number or as text; None where it is none."""
    if isinstance(value, str):
        match = re.fullmatch(r"0*([0-9]{1,19})(?:\.0*)?", value.strip())
        value = int(match.group(1)) if match else None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        return None
    return value


def _value(name: str, value: Any) -> Any:
    """Return a value in its parameter's type.

    Raises:
        ConfigError: it is of another type, or no number that can be kept.
    """
    spec = PARAMETERS[name]
    if name == "resolution":
        return _side(value)
    if isinstance(value, list) and value:
        value = value[0]
    if not isinstance(value, str | int | float):
        raise ConfigError(f"{name} must be of type {spec.kind}, but is {shown(value)}")
    try:
        result = _converted(name, value)
    except (ValueError, OverflowError):
        raise ConfigError(f"{name} must be of type {spec.kind}, but is {shown(value)}") from None
    if isinstance(result, int | float) and (not math.isfinite(result) or abs(result) > _MOST_INTEGER):
        raise ConfigError(f"{name} must be a number, but is {shown(value)}")
    return result


def _converted(name: str, value: str | int | float) -> Any:
    spec = PARAMETERS[name]
    if name == "optimizer_type":
        return {choice.lower(): choice for choice in spec.choices}.get(str(value).lower(), str(value))
    if isinstance(value, str) and spec.kind != "str":
        try:
            value = json.loads(value.strip().lower())
        except (ValueError, RecursionError):
            raise ConfigError(f"{name} must be of type {spec.kind}, but is {shown(value)}") from None
        if isinstance(value, dict | list) or value is None:
            raise ConfigError(f"{name} must be of type {spec.kind}, but is {shown(value)}")
    if spec.kind == "bool" and value in (0, 1):
        value = bool(value)
    return spec.typed(str(value) if spec.kind == "str" else value)


def _side(value: Any) -> int:
    parts = value if isinstance(value, list | tuple) else str(value).strip("()[] ").replace("x", ",").split(",")
    sides = {whole_number(part, least=1) for part in parts[:3]}
    side = sides.pop() if len(sides) == 1 else None
    if sides and None not in sides:
        raise ConfigError(f"resolution {shown(value)} is no square")
    if side is None:
        raise ConfigError(f"resolution must be one or two numbers, but is {shown(value)}")
    return side
