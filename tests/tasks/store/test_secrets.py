"""Passwords and keys stand in no error, no log, no record of settings."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from schema.errors import PixelloopError
from schema.settings import Settings
from tasks.history.database import read_postgres, read_supabase
from tasks.store.bucket import BucketObjects
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.outbox import OutboxStore
from tasks.store.postgres import PostgresStore
from tasks.store.supabase import SupabaseStore

SECRET = "s3cret-Of_A_kind"
NOBODY = "http://127.0.0.1:9"
AWAY = f"postgresql://user:{SECRET}@127.0.0.1:9/postgres"

FAILING: dict[str, Callable[[str], object]] = {
    "postgres": lambda _: PostgresStore(AWAY).runs(),
    "wrong password": lambda url: PostgresStore(wrong(url)).runs(),
    "migrate": lambda url: migrate(wrong(url)),
    "migrate away": lambda _: migrate(AWAY),
    "import": lambda url: read_postgres(wrong(url)),
    "malformed": lambda _: PostgresStore(f"postgresql://user:{SECRET}@127.0.0.1:nowhere/postgres").runs(),
    "supabase": lambda _: SupabaseStore(NOBODY, SecretStr(SECRET)).runs(),
    "no project": lambda _: SupabaseStore("nowhere", SecretStr(SECRET)).runs(),
    "import supabase": lambda _: read_supabase(NOBODY, SecretStr(SECRET)),
    "storage": lambda _: BucketObjects(NOBODY, SecretStr(SECRET), "loras").delete("a"),
}


def wrong(url: str) -> str:
    """The address with a password that is not the server's."""
    server = url.rpartition("@")[2]
    return f"postgresql://postgres:{SECRET}@{server}"


@pytest.mark.parametrize("name", FAILING)
def test_no_error_and_no_log_holds_a_secret(
    postgres: EmbeddedPostgres, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(PixelloopError) as error:
        FAILING[name](postgres.url())
    assert SECRET not in str(error.value)
    assert SECRET not in "".join(traceback.format_exception(error.value))
    assert SECRET not in caplog.text


def test_settings_hide_what_is_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", AWAY)
    monkeypatch.setenv("SUPABASE_KEY", SECRET)
    monkeypatch.setenv("PIXELLOOP_NOTIFY", f"json://user:{SECRET}@host")
    settings = Settings()
    assert SECRET not in repr(settings) + settings.model_dump_json() + str(settings.model_dump())


def test_waiting_rows_hold_no_secret(tmp_path: Path, postgres_url: str) -> None:
    store = OutboxStore(PostgresStore(postgres_url), tmp_path)
    store.save_campaign("night", {"file": "a.toml"}, "running")
    store.close()
    password = postgres_url.partition("postgres:")[2].partition("@")[0]
    assert password
    assert not any(password in p.read_text() for p in tmp_path.iterdir() if p.is_file())
