"""Find the files to import and choose the reader for each."""

from __future__ import annotations

import functools
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr
from safetensors import SafetensorError

from schema.errors import ConfigError, PixelloopError
from tasks.history.configs import is_gui_form, read_config, read_gui_form
from tasks.history.database import read_postgres, read_supabase
from tasks.history.events import read_events
from tasks.history.facts import MOST_TEXT, Found
from tasks.history.lora import read_lora
from tasks.history.observations import read_csv, read_document, read_rows, rows_of

_ENDINGS = (".safetensors", ".toml", ".json", ".csv", ".yaml", ".yml")
_EVENTS = "events.out.tfevents"
_MAX_EVENTS = 512 * 2**20  # bytes: event files with pictures grow large, and are read into memory
_ODD = (
    ValueError, TypeError, KeyError, AttributeError, ArithmeticError, IndexError, NotImplementedError, RecursionError,
    MemoryError, RuntimeError, OSError, struct.error, SafetensorError,
)  # fmt: skip
"""Errors that readers raise for data of an unexpected shape."""


def read_all(places: Sequence[str], key: SecretStr | None) -> tuple[list[Found], list[str]]:
    """Read all places; return what was found, and a message for each file that cannot be read.

    Args:
        places: files, folders, and addresses of databases (postgresql://...) or Supabase projects (https://...).
        key: secret key of the projects.

    Raises:
        ConfigError: a place does not exist, a database cannot be read, or there is nothing to read.
    """
    found, notes = list[Found](), list[str]()
    for place in places:
        if "://" in place:
            found += _read_place(place.rpartition("@")[2], functools.partial(_database, place, key))
            continue
        path = Path(place).expanduser()
        if not path.exists():
            raise ConfigError(f"{path} does not exist: check the path")
        for file in _inside(path) if path.is_dir() else [path]:
            try:
                found += _read_place(str(file), functools.partial(_file, file))
            except ConfigError as error:
                notes.append(f"{error}; left out")
    if not found:
        raise ConfigError(
            f"nothing to import in {len(places)} places: give LoRA files, kohya's TOML or JSON, event files, or tables"
            + "".join(f"; {note}" for note in notes)
        )
    return found, notes


def _inside(folder: Path) -> list[Path]:
    files = (p for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in files if p.suffix.lower() in _ENDINGS or p.name.startswith(_EVENTS))


def _database(address: str, key: SecretStr | None) -> list[Found]:
    if address.startswith(("postgresql://", "postgres://")):
        return read_postgres(address)
    if key is None:
        raise ConfigError("a Supabase project needs its secret key: set SUPABASE_KEY")
    return read_supabase(address, key)


def _read_place(place: str, read: Callable[[], Iterable[Found]]) -> list[Found]:
    """Read one place and turn unexpected errors into ConfigError, so that the other places are still read.

    Raises:
        ConfigError: the place cannot be read.
    """
    try:
        return list(read())
    except PixelloopError:
        raise
    except _ODD as error:
        reason = " ".join(str(error).split()) or "its shape is not known"
        raise ConfigError(f"{place} could not be read: {type(error).__name__}: {reason:.200}") from None


def _check_file(path: Path) -> None:
    """Raise ConfigError unless it is a regular file (a device may never end) that fits in memory."""
    if not path.is_file():
        raise ConfigError(f"{path} is no regular file")
    is_lora = path.suffix.lower() == ".safetensors"
    most = _MAX_EVENTS if path.name.startswith(_EVENTS) else MOST_TEXT
    if not is_lora and (size := path.stat().st_size) > most:
        raise ConfigError(f"{path} has {size // 2**20} MiB, at most {most // 2**20} can be imported")


def _file(path: Path) -> Iterator[Found]:
    _check_file(path)
    # The file's time is a last resort for runs without one; it is marked as inferred.
    at = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    for found in _read(path):
        yield (
            found if found.at is not None or any(f.name == "started_at" for f in found.facts) else replace(found, at=at)
        )


def _read(path: Path) -> list[Found]:
    ending = path.suffix.lower()
    if path.name.startswith(_EVENTS):
        return [read_events(path)]
    if ending == ".safetensors":
        return [read_lora(path)]
    if ending == ".toml":
        return [read_config(path)]
    if ending == ".csv":
        return read_rows(read_csv(path), path.name)
    if ending in (".json", ".yaml", ".yml"):
        document = read_document(path)
        if is_gui_form(document):
            return [read_gui_form(document, path)]
        return read_rows(rows_of(document, path), path.name)
    raise ConfigError(f"{path}: only {', '.join(_ENDINGS)} and {_EVENTS}* files can be imported")
