"""A data folder is never deleted, shared or mistaken for another."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from schema.errors import StoreError, StoreUnavailableError
from tasks.store import cluster
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    server = EmbeddedPostgres(tmp_path / "home" / "postgres")
    with psycopg.connect(server.start()) as connection:
        connection.execute("create table notes as select 42 as answer")
    yield server
    remove(server)


def notes(url: str) -> list[int]:
    with psycopg.connect(url) as connection:
        return [int(row[0]) for row in connection.execute("select answer from notes order by 1").fetchall()]


def copy(server: EmbeddedPostgres, tmp_path: Path) -> EmbeddedPostgres:
    subprocess.run(["cp", "-a", str(server.root.parent), str(tmp_path / "copy")], check=True)
    return EmbeddedPostgres(tmp_path / "copy" / "postgres")


def forge_old_state(server: EmbeddedPostgres) -> None:
    """Leave the state as code of November wrote it."""
    file = server.root / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({name: state[name] for name in ("password", "port", "data")}))


def test_a_lost_state_never_costs_a_row(server: EmbeddedPostgres) -> None:
    file = server.root / "state.json"
    for torn in (None, "", '{"password": "x', "null"):
        server.stop()
        file.unlink()
        if torn is not None:
            file.write_text(torn)
        told: list[str] = []
        assert notes(EmbeddedPostgres(server.root, told.append).start()) == [42]
        assert "nothing is lost" in told[0]


def test_a_state_lost_while_the_server_runs_is_recovered(server: EmbeddedPostgres) -> None:
    (server.root / "state.json").unlink()
    with pytest.raises(StoreError, match="other processes use the database"):
        EmbeddedPostgres(server.root).start()
    assert server._use is not None
    server._use.release()
    assert notes(EmbeddedPostgres(server.root).start()) == [42]


def test_only_an_unfinished_creation_is_removed(tmp_path: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    (server.root / "server" / "data").mkdir(parents=True)
    with pytest.raises(StoreError, match="restore the file or a backup"):
        server.start()
    (server.root / "creating").touch()
    server.start()
    remove(server)


def test_a_lost_data_folder_is_no_reason_for_a_new_one(server: EmbeddedPostgres) -> None:
    server.stop()
    shutil.rmtree(server.root / "server" / "data")
    with pytest.raises(StoreError, match="restore a backup"):
        EmbeddedPostgres(server.root).start()


def test_a_disk_that_vanishes_gets_no_new_database(server: EmbeddedPostgres) -> None:
    server.stop()
    away = server.root.rename(server.root.with_name("away"))
    with pytest.raises(StoreUnavailableError, match="is its disk still mounted"):
        server.start()  # a campaign that revives its database
    assert not server.root.exists()
    away.rename(server.root)
    assert notes(server.start()) == [42]


@pytest.mark.parametrize("old", [False, True], ids=["", "made by older code"])
def test_a_copy_of_a_running_home_gets_a_server_of_its_own(server: EmbeddedPostgres, tmp_path: Path, old: bool) -> None:
    server.stop()
    if old:
        forge_old_state(server)
    other = copy(server, tmp_path)
    original = server.start()
    copied = other.start()
    try:
        with psycopg.connect(copied) as connection:
            connection.execute("insert into notes values (43)")
        assert (notes(original), notes(copied)) == ([42], [42, 43])
        # a client of the original that reconnects where the copy listens is not let in
        foreign = original.replace(original.rpartition(":")[2], copied.rpartition(":")[2])
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(foreign)
    finally:
        remove(other)


def test_a_copy_made_while_the_original_runs_never_joins_it(server: EmbeddedPostgres, tmp_path: Path) -> None:
    other = copy(server, tmp_path)
    try:
        copied = other.start()
    except StoreError:
        return  # a copy of changing files may be useless, but it must not lead to the original
    assert copied != server.url()
    remove(other)


def test_a_server_left_by_a_kill_serves_no_copy(server: EmbeddedPostgres, tmp_path: Path) -> None:
    original = server.url()
    server.stop()
    other = copy(server, tmp_path)
    left = EmbeddedPostgres(server.root)
    left.start()
    assert left._use is not None
    left._use.release()  # its process is gone, the server is not
    copied = other.start()
    try:
        assert copied != original
        assert cluster.postmaster(server.root / "server" / "data") is not None
    finally:
        remove(other)


@pytest.mark.parametrize("link", ["symlink", "bind"])
def test_another_path_to_the_same_home_joins_its_server(server: EmbeddedPostgres, tmp_path: Path, link: str) -> None:
    other = tmp_path / "other"
    if link == "symlink":
        other.symlink_to(server.root.parent)
    else:
        other.mkdir()
        if subprocess.run(["mount", "--bind", str(server.root.parent), str(other)], capture_output=True).returncode:
            pytest.skip("no folder can be mounted here")
    try:
        joined = EmbeddedPostgres(other / "postgres")
        assert joined.start() == server.url()
        assert not joined.stop_if_idle()
    finally:
        if link == "bind":
            subprocess.run(["umount", str(other)], check=True)


def test_a_home_that_moves_while_its_server_runs_keeps_it(server: EmbeddedPostgres) -> None:
    url = server.url()
    moved = server.root.parent.rename(server.root.parent.with_name("moved")) / "postgres"
    server.root = moved
    assert EmbeddedPostgres(moved).start() == url


def test_a_home_of_older_code_opens_unchanged(server: EmbeddedPostgres) -> None:
    server.stop()
    forge_old_state(server)
    assert notes(server.start()) == [42]


def test_a_password_that_the_server_does_not_know_is_no_dead_end(server: EmbeddedPostgres) -> None:
    """An older state.json came back from a backup."""
    state = json.loads((server.root / "state.json").read_text())
    (server.root / "state.json").write_text(json.dumps(state | {"port": "9"}))
    assert notes(EmbeddedPostgres(server.root).start()) == [42]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs Postgres as another user")
def test_the_data_lie_in_the_home_where_the_servers_user_cannot_enter() -> None:
    with tempfile.TemporaryDirectory(dir="/root") as folder:
        umask = os.umask(0o077)
        server = EmbeddedPostgres(Path(folder) / "home" / "postgres")
        try:
            psycopg.connect(server.start()).close()
            assert server.data() == server.root / "server" / "data"
            server.stop()
            psycopg.connect(server.start()).close()
            os.kill((cluster.postmaster(server.root / "server" / "data") or (0,))[0], signal.SIGKILL)
            psycopg.connect(server.start()).close()
        finally:
            os.umask(umask)
            remove(server)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has data outside of a home")
def test_data_outside_of_the_home_serve_one_home_alone(server: EmbeddedPostgres, tmp_path: Path) -> None:
    server.stop()
    outside = Path(tempfile.mkdtemp(prefix="pixelloop-postgres-", dir="/var/lib"))
    try:
        shutil.rmtree(outside)
        shutil.move(server.root / "server", outside)
        (server.root / "server").mkdir()
        state = json.loads((server.root / "state.json").read_text())
        (server.root / "state.json").write_text(json.dumps(state | {"data": str(outside / "data")}))
        assert notes(server.start()) == [42]  # an old home still opens
        server.stop()
        other = copy(server, tmp_path)
        with pytest.raises(StoreError, match="is a copy, and its database lies in"):
            other.start()
        (server.root / "state.json").unlink()
        assert notes(server.start()) == [42]  # its owner record leads back
        server.stop()
        shutil.rmtree(outside)
        with pytest.raises(StoreError, match="which is not on this machine"):
            server.start()
    finally:
        shutil.rmtree(outside, ignore_errors=True)


def test_libpqs_environment_does_not_reach_our_server(
    server: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {
        "PGSSLMODE": "require",
        "PGHOSTADDR": "127.0.0.9",
        "PGSERVICE": "nosuch",
        "PGOPTIONS": "-c default_transaction_read_only=on",
        "PGCLIENTENCODING": "SQL_ASCII",
    }.items():
        monkeypatch.setenv(name, value)
        assert notes(EmbeddedPostgres(server.root).start(timeout=5)) == [42]
