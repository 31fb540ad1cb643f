"""Hold what one file says about a run, and where each value was read."""

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
"""Fields of a run that are not training parameters."""

# ss_ metadata, older versions of sd-scripts and hand-written tables use these names.
OTHER_NAMES = {
    "dataset_repeats": "num_repeats", "caption_extention": "caption_extension", "batch_size": "train_batch_size",
    "image_resolution": "resolution", "max_resolution": "resolution", "optimizer": "optimizer_type",
    "debiased_estimation": "debiased_estimation_loss", "multires_noise_iterations": "multires_noise_iterations",
    "pretrained_model_name_or_path": "base_model",
}  # fmt: skip


MOST = 2**31 - 1
"""Largest epoch or number of pictures: the database stores them as 32-bit integers."""

_MAX_NODES, _MAX_DEPTH = 1_000_000, 100
"""Limits of a document's values and depth: a few YAML aliases can expand to more values than memory holds."""

MOST_TEXT = 64 * 2**20
"""Largest text file that is read, in bytes. A table of scores or a configuration has a few thousand."""

_MAX_NUMBER = 2**63 - 1  # larger than any trainer's setting, and than a 64-bit column


class Source(IntEnum):
    """Name where a value comes from; if two differ, the one with the lower number wins."""

    OPTION = 0
    METADATA = 1
    CONFIG = 2
    STATED = 3
    INFERRED = 4

    @property
    def word(self) -> str:
        """Return the text stored in the database."""
        return ("stated now", "metadata", "config", "stated by hand", "inferred")[self]


@dataclass(frozen=True)
class Fact:
    """Hold one value with its source; `how` names the file and, for inferred values, the method."""

    name: str
    value: Any
    source: Source
    how: str

    @property
    def origin(self) -> str:
        """Return the source for people and for the database, as in ``metadata: last.safetensors``."""
        return f"{self.source.word}: {self.how}"

    @classmethod
    def from_store(cls, name: str, value: Any, origin: str) -> Fact:
        """Build a fact from a value of the database and its stored origin."""
        word, _, how = origin.partition(": ")
        source = next((source for source in Source if source.word == word), Source.STATED)
        return cls(name, value, source, how)


@dataclass(frozen=True)
class EpochFound:
    """Hold what is known of one epoch; scores are 0-10, quality is 0-100."""

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
    """Hold what one file or one row says about one run.

    Attributes:
        place: the file or row.
        run: name of the run; empty if only its time is known.
        facts: values with their sources.
        session: kohya's session id, the same in all files of one run.
        epochs: epochs that it describes.
        at: a time at which the run was trained, or was written down.
        broken: whether weights are not finite.
        notes: messages about what could not be used.
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
    """Yield the parameters among named values, converted to their types; unset values and other names are left out.

    A value that cannot be converted exactly adds a message to `notes` instead.
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
    """Parse pairs of ``name=value`` from a list or a text; a mapping is returned as it is."""
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
        if nodes > _MAX_NODES or depth > _MAX_DEPTH:
            raise ValueError(f"it holds more than {_MAX_NODES} values or is nested deeper than {_MAX_DEPTH}")
        if isinstance(node, Mapping):
            waiting += ((value, depth + 1) for value in node.values())
        elif isinstance(node, list | tuple | set):
            waiting += ((value, depth + 1) for value in node)


def tables(value: Any) -> list[Mapping[str, Any]]:
    """Return the tables of a list of tables; anything of another shape is left out."""
    return [one for one in value if isinstance(one, Mapping)] if isinstance(value, list) else []


def whole_number(value: Any, least: int = 0, most: int = MOST) -> int | None:
    """Return a number, or text with a number, as an int from `least` to `most`; None for anything else."""
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
        ConfigError: the value has another type, or is a number that cannot be stored.
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
    if isinstance(result, int | float) and (not math.isfinite(result) or abs(result) > _MAX_NUMBER):
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
