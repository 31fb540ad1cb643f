from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "home" / "postgres")
    yield server
    remove(server)


def pid_file(server: EmbeddedPostgres) -> Path:
    return server.root / json.loads((server.root / "state.json").read_text())["data"] / "postmaster.pid"


def postmaster(server: EmbeddedPostgres) -> int:
    return int(pid_file(server).read_text().split()[0])


def test_starting_joins_a_running_server_and_keeps_the_port(server: EmbeddedPostgres) -> None:
    url = server.start()
    pid = postmaster(server)
    assert EmbeddedPostgres(server.root).start() == url
    assert postmaster(server) == pid
    server.stop()
    assert server.start() == url


def test_another_container_starts_no_second_server_on_the_same_data(server: EmbeddedPostgres) -> None:
    """With process numbers and a network of its own it sees nothing of the first."""
    apart = ["unshare", "--fork", "--pid", "--net", "--mount-proc"]
    if subprocess.run([*apart, "true"], capture_output=True).returncode:
        pytest.skip("no namespaces can be made here")
    url = server.start()
    pid = postmaster(server)
    program = f"from tasks.store.embedded import *; EmbeddedPostgres(Path({str(server.root)!r})).start(timeout=2)"
    other = subprocess.run([*apart, sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "is held from another container or machine" in other.stderr
    assert postmaster(server) == pid
    psycopg.connect(url).close()


def test_rows_survive_a_killed_server(server: EmbeddedPostgres) -> None:
    url = server.start()
    with psycopg.connect(url) as connection:
        connection.execute("create table kept as select 42 as answer")
    os.kill(postmaster(server), signal.SIGKILL)
    server.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_rows_survive_a_killed_server_whose_client_was_at_work(server: EmbeddedPostgres) -> None:
    url = server.start()
    with psycopg.connect(url, autocommit=True) as busy, ThreadPoolExecutor(1) as pool:
        busy.execute("create table kept as select 42 as answer")
        pool.submit(busy.execute, "select count(*) from generate_series(1, 40000000)")  # seconds, deaf meanwhile
        running = "select from pg_stat_activity where state = 'active' and query like 'select count(*) from gen%'"
        with psycopg.connect(url, autocommit=True) as looking:
            while looking.execute(running.encode()).fetchone() is None:
                pass
        os.kill(postmaster(server), signal.SIGKILL)
        server.start()
    with psycopg.connect(url) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_a_pid_file_that_names_another_program_does_not_stand_in_the_way(server: EmbeddedPostgres) -> None:
    url = server.start()
    server.stop()
    pid_file(server).write_text(f"{os.getpid()}\n{pid_file(server).parent}\n0\n1\n\n127.0.0.1\n\nready\n")
    assert server.start() == url


def test_a_port_that_another_program_took_is_given_up(server: EmbeddedPostgres) -> None:
    url = server.start()
    server.stop()
    with socket.create_server(("127.0.0.1", urlsplit(url).port)):
        moved = server.start()
    assert moved != url
    assert server.start() == moved
    psycopg.connect(moved).close()


def test_a_home_may_move_to_another_folder(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.start()) as connection:
        connection.execute("create table kept as select 42 as answer")
    server.stop()
    home = server.root.parent
    server.root = home.rename(home.with_name("moved")) / "postgres"
    with psycopg.connect(server.start()) as connection:
        assert connection.execute("select answer from kept").fetchone() == (42,)


def test_folders_above_the_home_keep_their_modes(server: EmbeddedPostgres, tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    psycopg.connect(server.start()).close()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_a_home_that_everybody_may_enter_holds_its_data(server: EmbeddedPostgres) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        server.root = Path(folder) / "postgres"
        psycopg.connect(server.start()).close()
        assert server.root in pid_file(server).parents
        server.stop()


def test_it_starts_without_path(server: EmbeddedPostgres) -> None:
    """Cron jobs and services may have none."""
    program = f"from tasks.store.embedded import *; EmbeddedPostgres(Path({str(server.root)!r})).start()"
    bare = {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run([sys.executable, "-c", program], env=bare, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_only_data_that_were_never_there_are_missing(server: EmbeddedPostgres) -> None:
    assert server.is_missing()
    server.start()
    assert not server.is_missing()
    server.stop()
    (server.root / "state.json").unlink()
    assert not server.is_missing()
    server.start()


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


def test_a_server_that_somebody_has_joined_is_not_idle_before_it_is_connected(server: EmbeddedPostgres) -> None:
    server.start()
    joined = EmbeddedPostgres(server.root)
    url = joined.start()
    assert not server.stop_if_idle()
    psycopg.connect(url).close()
    assert joined.stop_if_idle()
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)
