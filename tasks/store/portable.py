"""One file that holds everything of a database, or of one campaign, for another database.

Lines of JSON: a first one that says what it is, then a row each, in an order that depends on nothing but the rows. The
same rows give the same bytes, whichever database they come from.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from tasks.store.tables import Row, Tables, clean

TABLES = (
    "campaigns", "training_runs", "epoch_results", "refused_proposals", "hypotheses", "analyses", "human_ratings",
    "picture_votes", "test_prompts", "caption_versions", "principles", "artifacts",
)  # fmt: skip
"""All tables, each behind those that its rows refer to."""

_HEAD = {"pixelloop": "export", "version": 1}
_MOST = 1_000_000  # bytes of one request: hosted projects take no large ones
_LINKS = {"training_runs": "parent_run_uid"}


def export(tables: Tables, file: Path, campaign: str | None = None) -> dict[str, int]:
    """Write all rows, or those of one campaign, to a file; compressed if its name ends in ``.gz``.

    Returns:
        Number of rows by table.

    Raises:
        ConfigError: the file cannot be written.
    """
    counts: dict[str, int] = {}
    lines = [json.dumps(_HEAD)]
    for table in TABLES:
        rows = tables.call("export_rows", {"of_table": table, "of_campaign": campaign}, ("key", "data"))
        counts[table] = len(rows)
        lines += (_line({"table": table, "row": row["data"]}) for row in rows)
    data = "".join(line + "\n" for line in lines).encode()
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
        part.replace(file)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written: {error.strerror}") from None
    return counts


def restore(tables: Tables, file: Path) -> dict[str, int]:
    """Put all rows of a file into a database; rows that are there already are replaced.

    Returns:
        Number of rows by table.

    Raises:
        ConfigError: no file of `export`.
        StoreError: the database refuses a row.
    """
    counts = dict.fromkeys(TABLES, 0)
    later: list[Row] = []
    for table, entries in groupby(_entries(file), key=lambda entry: str(entry["table"])):
        link = _LINKS.get(table)
        for batch in _batches(entry["row"] for entry in entries):
            if link is not None:  # a row may refer to one that comes after it
                later += (row for row in batch if row.get(link))
            unlinked = [row | {link: None} for row in batch] if link is not None else batch
            tables.call("import_rows", {"of_table": table, "entries": unlinked})
            counts[table] += len(batch)
        for batch in _batches(later):
            tables.call("import_rows", {"of_table": table, "entries": batch})
        later.clear()
    return counts


def _entries(file: Path) -> Iterator[dict[str, Any]]:
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        entries = [json.loads(line) for line in text.split("\n") if line]
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist: check the path") from None
    except (OSError, EOFError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read: {error}") from None
    if not entries or entries[0] != _HEAD or any(e.get("table") not in TABLES for e in entries[1:]):
        raise ConfigError(f"{file} was not written by 'pixelloop db export'")
    yield from entries[1:]


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    batch: list[Row] = []
    size = 0
    for row in rows:
        length = len(_line(row))
        if batch and (size + length > _MOST or len(batch) == 500):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += length
    if batch:
        yield batch


def _line(value: Any) -> str:
    return json.dumps(clean(value), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
