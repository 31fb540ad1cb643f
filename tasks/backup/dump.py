"""Dump a database while it is in use, and load the dump elsewhere, with Postgres' own programs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from schema.errors import StoreError
from tasks.store.cluster import binaries
from tasks.store.migrate import make_roles

Counts = dict[str, int]
_TABLES = """
select n.nspname, c.relname from pg_class c join pg_namespace n on n.oid = c.relnamespace
where c.relkind = 'r' and n.nspname not in ('pg_catalog', 'information_schema') and n.nspname not like 'pg\\_%'
order by 1, 2
"""


def dump(url: str, file: Path) -> Counts:
    """Write all schemas of a database into a file, as they are at one moment.

    Returns:
        Rows by table at that same moment.

    Raises:
        StoreError: the database cannot be dumped.
    """
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        snapshot = connection.execute("select pg_export_snapshot()").fetchone()
        assert snapshot is not None
        counts = _count(connection)
        _run("pg_dump", connection, "--format=custom", f"--snapshot={snapshot[0]}", "--no-owner", f"--file={file}")
    return counts


def load(url: str, file: Path, expected: Counts) -> None:
    """Load a dump into an empty database, whole or not at all, and count its rows.

    Raises:
        StoreError: it cannot be loaded, or rows are missing.
    """
    with psycopg.connect(url, autocommit=True) as connection:
        make_roles(connection)
        options = ("--single-transaction", "--exit-on-error", "--no-owner")
        _run("pg_restore", connection, *options, f"--dbname={connection.info.dbname}", str(file))
        found = _count(connection)
    wrong = [f"{name} has {found.get(name, 0)} of {n} rows" for name, n in expected.items() if found.get(name) != n]
    if wrong:
        raise StoreError(f"the restored database is not what was backed up: {wrong[0]}")


def _count(connection: psycopg.Connection[Any]) -> Counts:
    counts: Counts = {}
    for schema, table in connection.execute(_TABLES).fetchall():
        query = sql.SQL("select count(*) from {}").format(sql.Identifier(schema, table))
        counts[f"{schema}.{table}"] = int(connection.execute(query).fetchall()[0][0])
    return counts


def _run(program: str, connection: psycopg.Connection[Any], *arguments: str) -> None:
    """Run a program on the database of a connection. The password goes by the environment, which others cannot see."""
    info = connection.info
    name = [] if program == "pg_restore" else [f"--dbname={info.dbname}"]
    done = subprocess.run(
        [binaries() / program, "-h", info.host, "-p", str(info.port), "-U", info.user, "-w", *name, *arguments],
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "PGPASSWORD": info.password},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StoreError(f"{program} failed: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}")
