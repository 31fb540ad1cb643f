"""What one file tells about a run, and where each value was read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum
from typing import Any

from schema.errors import ConfigError
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
        if name in ("base_model", "model_type"):
            yield Fact(name, str(value), source, place)
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


def _value(name: str, value: Any) -> Any:
    spec = PARAMETERS[name]
    if name == "resolution":
        return _side(value)
    if isinstance(value, list):
        value = value[0]
    if name == "optimizer_type":
        return {choice.lower(): choice for choice in spec.choices}.get(str(value).lower(), str(value))
    if isinstance(value, str) and spec.kind != "str":
        try:
            value = json.loads(value.strip().lower())
        except json.JSONDecodeError:
            raise ConfigError(f"{name} must be of type {spec.kind}, but is {value!r}") from None
    if spec.kind == "bool" and value in (0, 1):
        value = bool(value)
    return spec.typed(str(value) if spec.kind == "str" else value)


def _side(value: Any) -> int:
    parts = value if isinstance(value, list | tuple) else str(value).strip("()[] ").replace("x", ",").split(",")
    try:
        sides = {int(part) for part in parts}
    except ValueError:
        raise ConfigError(f"resolution must be one or two numbers, but is {value!r}") from None
    if len(sides) > 1:
        raise ConfigError(f"resolution {value!r} is no square")
    return sides.pop()
