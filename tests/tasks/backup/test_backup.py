"""A home in use goes into a file and comes back elsewhere."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from schema.errors import ConfigError
from tasks.backup.archive import written
from tasks.backup.backup import back_up, restore
from tasks.backup.files import Choice, chosen
from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tests.conftest import remove


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    home = Home.at(tmp_path / "home")
    _ = home.uid
    server = EmbeddedPostgres(home.postgres)
    server.start()
    migrate(server.url())
    with psycopg.connect(server.ensure_database("prefect")) as connection:
        connection.execute("create table flow_run (parameters json)")
        connection.execute("insert into flow_run values (json_build_object('home', %s::text))", [str(home.root)])
    for name in ("runs/night/000/trial.toml", "runs/night/000/claim", "latents/a", "up.json"):
        (home.root / name).parent.mkdir(parents=True, exist_ok=True)
        (home.root / name).write_text(f'model = "{home.root}/base"\n')
    yield home
    remove(server)


def test_a_backup_beside_writers_is_consistent_and_leads_to_the_new_home(home: Home, tmp_path: Path) -> None:
    server, ended = EmbeddedPostgres(home.postgres), threading.Event()
    with psycopg.connect(server.url()) as connection:
        connection.execute("create table a (n int); create table b (n int)")

    def write() -> None:
        with psycopg.connect(server.url()) as connection:
            n = 0
            while not ended.is_set():
                n += 1
                for table in ("a", "b"):  # in one transaction: both or none
                    connection.execute(f"insert into {table} values ({n})".encode())
                connection.commit()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        made = back_up(home, tmp_path / "b.pixelloop", Choice.ALL, server)
    finally:
        ended.set()
        writer.join()
    assert made.rows["public.a"] == made.rows["public.b"]
    new = Home.at(tmp_path / "elsewhere" / "new home")
    assert restore(tmp_path / "b.pixelloop", new) == made
    restored = EmbeddedPostgres(new.postgres)
    restored.start()
    try:
        with psycopg.connect(restored.url("prefect")) as connection:
            assert connection.execute("select parameters->>'home' from flow_run").fetchall() == [(str(new.root),)]
        assert migrate(restored.url()) == []
        with psycopg.connect(server.url()) as connection:
            rows = connection.execute("select count(*) from a").fetchone()
        assert rows is not None
        assert rows[0] >= made.rows["public.a"]
    finally:
        remove(restored)
    assert (new.trial("night", 0).root / "trial.toml").read_text() == f'model = "{new.root}/base"\n'
    assert new.uids == {new.uid, home.uid}
    assert not (new.root / "latents").exists()
    assert not new.trial("night", 0).claim.exists()
    assert sorted(p.name for p in new.root.iterdir()) == ["home.json", "postgres", "runs"]


def test_a_home_that_is_there_is_never_overwritten(home: Home, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b", Choice.NONE, None)
    with pytest.raises(ConfigError, match="exists: restore into a new folder"):
        restore(tmp_path / "b", home)
    (tmp_path / "empty").mkdir()
    restore(tmp_path / "b", Home.at(tmp_path / "empty"), instead=True)
    assert Home.at(tmp_path / "empty").uid == home.uid


def test_a_backup_in_the_home_it_holds_is_refused(home: Home) -> None:
    with pytest.raises(ConfigError, match="lies in the home"):
        back_up(home, home.root / "b", Choice.ALL, None)


def test_a_backup_with_a_database_folder_is_refused(home: Home, tmp_path: Path) -> None:
    with written(tmp_path / "evil") as archive:
        archive.add("files/postgres/state.json", home.postgres / "state.json")
        archive.close(
            made_at="2026-11-28T00:00:00Z", uid=str(home.uid), earlier=(), path="/", choice="all", databases={},
            elsewhere=None, files=1,
        )  # fmt: skip
    with pytest.raises(ConfigError, match="which no backup of pixelloop does"):
        restore(tmp_path / "evil", Home.at(tmp_path / "new"))
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / ".new.restoring").exists()


def test_a_restore_that_is_killed_leaves_no_home_and_can_be_repeated(home: Home, tmp_path: Path) -> None:
    back_up(home, tmp_path / "b", Choice.NONE, EmbeddedPostgres(home.postgres))
    program = (
        "import sys; from pathlib import Path; from tasks.backup.backup import restore; from tasks.home import Home;"
        "restore(Path(sys.argv[1]), Home.at(Path(sys.argv[2])))"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "b"), str(tmp_path / "new")])
    while not (tmp_path / ".new.restoring" / "postgres" / "state.json").exists():
        assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "new").exists()
    new = Home.at(tmp_path / "new")
    restore(tmp_path / "b", new)
    remove(EmbeddedPostgres(new.postgres))
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (Choice.NONE, ["campaign.toml", "campaigns/a.toml", "outbox/waiting.jsonl"]),
        (Choice.BEST, ["0/checkpoints/best", "0/samples/1.png", "1/checkpoints/other", "1/state/x/t.pt"]),
        (Choice.ALL, ["0/checkpoints/best", "0/checkpoints/other", "0/samples/1.png", "0/state/x/t.pt"]),
    ],
)
def test_what_goes_in_is_chosen(tmp_path: Path, choice: Choice, expected: list[str]) -> None:
    for name in (
        "campaign.toml", "campaigns/a.toml", "outbox/waiting.jsonl", "outbox/lock", "best-a.safetensors",
        "base/unet/model.safetensors", "latents/x", "postgres/state.json", "up.json", "runs/a.part",
        *(f"runs/a/{n}/{p}" for n in (0, 1) for p in ("samples/1.png", "state/x/t.pt", "checkpoints/other", "claim")),
        "runs/a/0/checkpoints/best",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [name for name, _ in chosen(tmp_path, choice, {"runs/a/0/checkpoints/best"}, {"runs/a/1"})]
    always = ["campaign.toml", "campaigns/a.toml", "outbox/waiting.jsonl"]
    more = ["base/unet/model.safetensors", "best-a.safetensors", "runs/a/1/samples/1.png"]
    more += ["runs/a/1/checkpoints/other", "runs/a/1/state/x/t.pt"]
    wanted = always if choice is Choice.NONE else [*always, *more, *(f"runs/a/{name}" for name in expected)]
    assert sorted(found) == sorted(set(wanted))
