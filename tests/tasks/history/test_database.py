"""A user's own tables are read alike through Postgres and through the Data API."""

from __future__ import annotations

import psycopg
from pydantic import SecretStr

from tasks.history.database import read_postgres, read_supabase
from tasks.store.migrate import migrate
from tasks.store.supabase import SupabaseStore
from tests.tasks.store.postgrest import SECRET_KEY, project
from tests.tasks.store.store_contract import make_epoch, make_run
from tests.tasks.store.test_migrate import USERS_TABLES


def test_a_project_tells_what_its_database_tells(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES.encode())
    migrate(empty_url)
    with project(empty_url) as served:
        ours = SupabaseStore(served.url, SecretStr(SECRET_KEY))
        ours.save_run(make_run(0))  # what pixelloop wrote itself is left out
        ours.save_epoch(make_epoch(make_run(0), 1))
        ours.close()
        found = read_supabase(served.url, SecretStr(SECRET_KEY))
    assert [f.run for f in found if f.facts] == ["sprites v7", "sprites v8", "sprites v9"]
    assert sum(len(f.epochs) for f in found) == 3
    assert found == read_postgres(empty_url)
