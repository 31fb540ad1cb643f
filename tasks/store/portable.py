"""One file that holds everything of a database, or of one campaign, for another database.

Lines of JSON: a first one that says what it is, then a row each, in an order that depends on nothing but the rows. The
same rows give the same bytes, whichever database they come from.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from tasks.store.row_check import check_rows
from tasks.store.tables import Row, Tables, clean

TABLES = (
    "campaigns", "training_runs", "epoch_results", "refused_proposals", "hypotheses", "analyses", "human_ratings",
    "picture_votes", "test_prompts", "caption_versions", "principles", "artifacts",
)  # fmt: skip
"""All tables, each behind those that its rows refer to."""

_HEAD = {"pixelloop": "export", "version": 1}
_MOST = 1_000_000  # bytes of one request: hosted projects take no large ones
_SHOWN = 5  # numbers in a message: a campaign may have thousands
_NAMES = {
    "campaigns": "name", "training_runs": "campaign", "refused_proposals": "campaign", "hypotheses": "campaign",
    "analyses": "campaign", "test_prompts": "campaign",
}  # fmt: skip
"""The column of each table that names the campaign of a row."""

_LINKS = {"training_runs": "parent_run_uid"}
_RUNS = {
    "training_runs": ("parent_run_uid",), "epoch_results": ("run_uid",), "human_ratings": ("run_uid",),
    "picture_votes": ("run_uid", "other_run_uid"), "artifacts": ("run_uid",),
}  # fmt: skip
"""The columns of each table that name a run, which must be in the file or the database."""


@dataclass(frozen=True)
class Entry:
    """A row of a file, its table, and the line that it stands in."""

    table: str
    row: Row
    where: str


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


def restore(tables: Tables, rows: Sequence[Entry]) -> dict[str, int]:
    """Put rows of `read_export` into a database; rows that are there already are replaced.

    Returns:
        Number of rows by table.

    Raises:
        ConfigError: a run has the number of another run in the database, or a row belongs to a run that is neither
            there nor in the file. Nothing was written.
        StoreError: the database refuses a row; those before it are in.
    """
    known = tables.select("training_runs", ("uid", "campaign", "number"), {}, ("uid",)) if rows else []
    _refuse_taken(known, rows)
    _refuse_orphans(known, rows)
    counts = dict.fromkeys(TABLES, 0)
    later: list[Row] = []
    for table, entries in groupby(rows, key=lambda entry: entry.table):
        link = _LINKS.get(table)
        for batch in _batches(entry.row for entry in entries):
            if link is not None:  # a row may refer to one that comes after it
                later += (row for row in batch if row.get(link))
            unlinked = [row | {link: None} for row in batch] if link is not None else batch
            tables.call("import_rows", {"of_table": table, "entries": unlinked})
            counts[table] += len(batch)
        for batch in _batches(later):
            tables.call("import_rows", {"of_table": table, "entries": batch})
        later.clear()
    return counts


def read_export(file: Path) -> list[Entry]:
    """Read all rows of a file of `export`.

    Raises:
        ConfigError: it is no such file, not a whole one, or has a row that could not be read from a database.
    """
    try:
        data = file.read_bytes()
        text = (gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data).decode()
        entries = [clean(json.loads(line)) for line in text.split("\n") if line]
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist: check the path") from None
    except RecursionError:
        raise ConfigError(f"{file} cannot be read: a row is nested too deep") from None
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ConfigError(f"{file} cannot be read: {error!s:.300}") from None
    if not entries or entries[0] != _HEAD:
        raise ConfigError(f"{file} was not written by 'pixelloop db export'")
    rows = [_entry(entry, f"{file} line {number}") for number, entry in enumerate(entries[1:], 2)]
    check_rows([(row.where, row.table, row.row) for row in rows])
    return rows


def renamed(rows: Sequence[Entry], name: str, file: Path) -> list[Entry]:
    """Return the rows with another name for their one campaign.

    Raises:
        ConfigError: the rows belong to several campaigns, or the name is none.
    """
    names = {str(row.row[column]) for row in rows if (column := _NAMES.get(row.table)) and row.row.get(column)}
    if len(names) != 1:
        raise ConfigError(f"{file} holds {len(names)} campaigns: export one with --campaign to give it another name")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise ConfigError(f"{name!r:.100} is no name for a campaign: take letters, digits, - and _")
    return [
        replace(row, row=row.row | {column: name}) if (column := _NAMES.get(row.table)) and row.row.get(column) else row
        for row in rows
    ]


def _entry(entry: Any, where: str) -> Entry:
    table, row = (entry.get("table"), entry.get("row")) if isinstance(entry, dict) else (None, None)
    if not isinstance(table, str) or table not in TABLES or not isinstance(row, dict) or not row:
        raise ConfigError(f"{where} was not written by 'pixelloop db export': it holds no row of a table")
    if not isinstance(row.get("campaign", ""), str | None) or not isinstance(row.get("number", 0), int | None):
        raise ConfigError(f"{where} was not written by 'pixelloop db export': its campaign or number is none")
    return Entry(table, row, where)


def _refuse_orphans(known: Sequence[Row], rows: Sequence[Entry]) -> None:
    """Check that the run of each row is in the file or the database, before anything is written."""
    runs = {str(row["uid"]) for row in known} | {str(e.row.get("uid")) for e in rows if e.table == "training_runs"}
    for entry in rows:
        for column in _RUNS.get(entry.table, ()):
            run = entry.row.get(column)
            if run is not None and str(run) not in runs:
                raise ConfigError(
                    f"{entry.where}: {entry.table}: {column} names run {run!s:.100}, which is neither in the file nor "
                    "in the database; nothing was imported"
                )


def _refuse_taken(known: Sequence[Row], rows: Sequence[Entry]) -> None:
    """Check that no run gets a number that another run has, before anything is written."""
    runs = [row.row for row in rows if row.table == "training_runs"]
    taken = {(row["campaign"], row["number"]): str(row["uid"]) for row in known if row["number"] is not None}
    clashes: dict[str, list[int]] = {}
    for run in runs:
        campaign, number, uid = run.get("campaign"), run.get("number"), str(run.get("uid"))
        if campaign is None or number is None:  # a row of the user's own table
            continue
        if taken.setdefault((campaign, number), uid) != uid:
            clashes.setdefault(campaign, []).append(number)
    for name, numbers in clashes.items():
        shown = ", ".join(map(str, sorted(numbers)[:_SHOWN])) + (", ..." if len(numbers) > _SHOWN else "")
        raise ConfigError(
            f"campaign {name} has other runs of the numbers {shown} already, so nothing was taken over: import "
            f"into another home, or export with --campaign {name} and import with --as NAME"
        )


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
