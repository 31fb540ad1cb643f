from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tasks.store.embedded import EmbeddedPostgres


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "home" / "postgres")
    yield server
    server.stop()


def postmaster(server: EmbeddedPostgres) -> int:
    data = json.loads((server.root / "state.json").read_text())["data"]
    return int((Path(data) / "postmaster.pid").read_text().split()[0])


def test_starting_joins_a_running_server_and_keeps_the_port(server: EmbeddedPostgres) -> None:
    url = server.start()
    pid = postmaster(server)
    assert EmbeddedPostgres(server.root).start() == url
    assert postmaster(server) == pid
    server.stop()
    assert server.start() == url


def test_rows_survive_a_killed_server(server: EmbeddedPostgres) -> None:
    url = server.start()
    with psycopg.connect(url) as connection:
        connection.execute("create table kept as select 42 as answer")
    os.kill(postmaster(server), signal.SIGKILL)
    server.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_the_last_one_out_stops_it(server: EmbeddedPostgres) -> None:
    url = server.start()
    with psycopg.connect(url):
        assert not server.stop_if_idle()
    assert server.stop_if_idle()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url, connect_timeout=2)


def test_the_password_is_asked_for_and_not_readable_by_others(server: EmbeddedPostgres) -> None:
    url = server.start()
    assert stat.S_IMODE((server.root / "state.json").stat().st_mode) == 0o600
    port = url.rsplit(":", 1)[1]
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"postgresql://postgres:wrong@127.0.0.1:{port}")


def test_databases_are_made_once(server: EmbeddedPostgres) -> None:
    server.start()
    assert server.ensure_database("prefect") == server.ensure_database("prefect")
