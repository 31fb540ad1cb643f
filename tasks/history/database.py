"""Read training_runs and epoch_results, which a user may have filled by hand, from Postgres or Supabase."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

import psycopg
from psycopg.rows import dict_row
from pydantic import SecretStr

from schema.errors import StoreError, StoreUnavailableError
from tasks.history.facts import Fact, Found, Source
from tasks.history.observations import read_row

Rows = list[dict[str, Any]]


def read_postgres(url: str) -> list[Found]:
    """Read the runs of a Postgres database without changing it.

    Raises:
        StoreUnavailableError: the database cannot be reached.
        StoreError: it has no such tables.
    """
    try:
        with psycopg.connect(url, row_factory=dict_row, connect_timeout=10) as connection:
            runs = connection.execute("select * from training_runs order by id").fetchall()
            epochs = connection.execute("select * from epoch_results order by id").fetchall()
    except psycopg.OperationalError as error:
        raise StoreUnavailableError(f"the database cannot be reached: {str(error).splitlines()[0]}") from None
    except psycopg.Error as error:
        raise StoreError(f"its tables cannot be read: {str(error).splitlines()[0]}") from None
    return runs_of(runs, epochs)


def read_supabase(url: str, key: SecretStr) -> list[Found]:
    """Read the runs of a Supabase project with its secret key, without changing it.

    Raises:
        StoreUnavailableError: the project cannot be reached.
        StoreError: it has no such tables, or the key may not read them.
    """
    from tasks.store.supabase import SupabaseTables

    tables = SupabaseTables(url, key)
    try:
        return runs_of(*(tables.select(name, ("*",), {}, ("id",)) for name in ("training_runs", "epoch_results")))
    finally:
        tables.close()


def runs_of(runs: Sequence[Mapping[str, Any]], epochs: Sequence[Mapping[str, Any]]) -> list[Found]:
    """Convert rows of the two tables; rows that pixelloop wrote itself, which have a campaign, are left out."""
    own = [row for row in runs if row.get("campaign") is None]
    counts = Counter(row.get("run_name") for row in own)
    names = {row["id"]: _name(row, counts) for row in own}
    found = [_run(row, names[row["id"]]) for row in own]
    rows = [row for row in epochs if row.get("training_run_id") in names]
    for row in rows:
        kept = {k: v for k, v in row.items() if k in _OF_EPOCH} | {"run_name": names[row["training_run_id"]]}
        found.append(read_row(kept, f"epoch_results {row['id']}"))
    return found


_OF_EPOCH = (
    "epoch_number", "visual_quality_score", "style_match_score", "prompt_adherence_score", "quality_score", "verdict",
    "observations", "notes",
)  # fmt: skip


def _name(row: Mapping[str, Any], counts: Mapping[Any, int]) -> str:
    name = row.get("run_name") or f"run {row['id']}"
    return f"{name} #{row['id']}" if counts[row.get("run_name")] > 1 else str(name)


def _run(row: Mapping[str, Any], name: str) -> Found:
    place = f"training_runs {row['id']}"
    values = {**(row.get("all_parameters") or {}), **{k: _plain(v) for k, v in row.items()}}
    found = read_row({**values, "run_name": name, "epoch": None, "epoch_number": None}, place)
    facts = [f for f in found.facts if f.name != "notes"]
    words = [str(row[k]) for k in ("overall_verdict", "notes") if row.get(k)] + list(row.get("issues_found") or [])
    if words:
        facts.append(Fact("notes", "; ".join(words), Source.STATED, place))
    if (at := row.get("run_date")) is not None:
        facts.append(Fact("started_at", str(_plain(at)), Source.STATED, place))
    return replace(found, facts=tuple(facts))


def _plain(value: Any) -> Any:
    """Convert a database type to a JSON type."""
    if isinstance(value, datetime):
        return value.isoformat()
    return float(value) if type(value).__name__ == "Decimal" else value
