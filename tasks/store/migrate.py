"""Bring a database up to date with the files in schema/supabase/migrations.

The history is kept where the Supabase CLI keeps it, so either may apply a file.
"""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import psycopg

from schema.errors import StoreError, StoreUnavailableError
from tasks.store.address import postgres_address
from tasks.store.libpq import connect, reason

_LOCK = 7_150_031  # any constant: two programs must not migrate at once

_BOOTSTRAP = """
do $$
declare
    r text;
begin
    foreach r in array array['anon', 'authenticated', 'service_role'] loop
        if not exists (select from pg_roles where rolname = r) then
            begin
                -- row level security without a policy lets nobody in but a role that bypasses it
                execute format('create role %I nologin %s', r, case r when 'service_role' then 'bypassrls' else '' end);
            exception when duplicate_object or unique_violation then null; -- another database's migration was faster
            end;
        end if;
    end loop;
end
$$;
grant usage on schema public to anon, authenticated, service_role;
"""

_HISTORY = """
create schema if not exists supabase_migrations;
create table if not exists supabase_migrations.schema_migrations (
    version text primary key, statements text[], name text
);
create schema if not exists optuna;
"""


def migrate(url: str) -> list[str]:
    """Apply the migrations that are missing, each in a transaction of its own.

    Returns:
        Names of the files that were applied now.

    Raises:
        ConfigError: `url` is no address of a Postgres.
        StoreUnavailableError: no connection.
        StoreError: a file failed, so it and the later ones were not applied; or the user may not change the database.
    """
    applied = []
    url = postgres_address(url, "the address of the database")
    try:
        with connect(url, autocommit=True) as connection:
            connection.execute("select pg_advisory_lock(%s)", [_LOCK])
            make_roles(connection)
            connection.execute(_HISTORY)
            known = connection.execute("select version from supabase_migrations.schema_migrations").fetchall()
            for name, text in _files():
                version, _, title = name.removesuffix(".sql").partition("_")
                if (version,) not in known:
                    _apply(connection, version, title, text)
                    applied.append(name)
    except psycopg.OperationalError as error:
        raise StoreUnavailableError(f"the database cannot be reached: {reason(error)}") from error
    except psycopg.Error as error:
        raise StoreError(
            f"the database cannot be set up: {reason(error)}; let its owner or a superuser migrate it once"
        ) from error
    return applied


def make_roles(connection: psycopg.Connection[Any]) -> None:
    """Make Supabase's roles, which the tables' rights name, where they are missing."""
    connection.execute(_BOOTSTRAP)


def _files() -> list[tuple[str, str]]:
    folder = files("schema") / "supabase" / "migrations"
    return sorted((f.name, f.read_text(encoding="utf-8")) for f in folder.iterdir() if f.name.endswith(".sql"))


def _apply(connection: psycopg.Connection[tuple[object, ...]], version: str, title: str, text: str) -> None:
    try:
        with connection.transaction():
            connection.execute(text.encode())
            connection.execute(
                "insert into supabase_migrations.schema_migrations (version, statements, name) values (%s, %s, %s)",
                [version, [text], title],
            )
    except psycopg.Error as error:
        raise StoreError(f"migration {version}_{title}.sql failed: {reason(error)}") from error
