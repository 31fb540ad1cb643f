"""Which reader a path needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from pydantic import SecretStr

from schema.errors import ConfigError
from tasks.history.configs import is_gui_form, read_config, read_gui_form
from tasks.history.database import read_postgres, read_supabase
from tasks.history.events import read_events
from tasks.history.facts import Found
from tasks.history.lora import read_lora
from tasks.history.observations import read_csv, read_document, read_rows, rows_of

_ENDINGS = (".safetensors", ".toml", ".json", ".csv", ".yaml", ".yml")
_EVENTS = "events.out.tfevents"


def read_all(places: Sequence[str], key: SecretStr | None) -> tuple[list[Found], list[str]]:
    """What all places tell, and a sentence for each file in a folder that cannot be read.

    Args:
        places: files, folders, and addresses of databases (postgresql://...) or Supabase projects (https://...).
        key: secret key of the projects.

    Raises:
        ConfigError: a place that was named cannot be read, or there is nothing to read.
    """
    found, notes = list[Found](), list[str]()
    for place in places:
        if "://" in place:
            found += _database(place, key)
            continue
        path = Path(place).expanduser()
        if not path.is_dir():
            found += _file(path)
            continue
        for file in _inside(path):
            try:
                found += _file(file)
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


def _file(path: Path) -> Iterator[Found]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist: check the path")
    # Only the last resort for runs that tell no time: it is marked as inferred.
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
