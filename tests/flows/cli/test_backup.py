"""Copies, backups and the caller's environment, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove

SECRET = "SECRETPW"


def pixelloop(*words: object, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    return subprocess.run(command, env={**os.environ, **environ}, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home with one run of two epochs, the score of one of them by a person, and its base model inside."""
    home = tmp_path_factory.mktemp("home")
    (home / "base").mkdir(parents=True)
    table = home / "scores.csv"
    table.write_text("run_name,epoch,quality,learning_rate\nold-000,1,50,0.001\nold-000,2,60,0.001\n")
    done = pixelloop("import", table, "--base-model", home / "base", "--home", home)
    assert done.returncode == 0, done.stderr
    yield home
    remove(EmbeddedPostgres(home / "postgres"))


def ratings(home: Path) -> int:
    server = EmbeddedPostgres(home / "postgres")
    with psycopg.connect(server.start()) as connection:
        found = connection.execute("select count(*) from human_ratings").fetchone()
    server.stop_if_idle()
    assert found is not None
    return int(found[0])


def test_a_copy_never_writes_into_the_original(home: Path, tmp_path: Path) -> None:
    subprocess.run(["cp", "-a", home, tmp_path / "copy"], check=True)
    original = EmbeddedPostgres(home / "postgres")
    original.start()  # as a campaign does
    try:
        before = ratings(home)
        done = pixelloop("log", 1, 9, 9, 9, "WRITTEN BY COPY", "--run", "old-000", "--home", tmp_path / "copy")
        assert done.returncode == 0, done.stderr
        assert "a copy of" in done.stdout + done.stderr
        assert (ratings(home), ratings(tmp_path / "copy")) == (before, before + 1)
        assert Home.at(home).uid != Home.at(tmp_path / "copy").uid
    finally:
        remove(EmbeddedPostgres(tmp_path / "copy" / "postgres"))
        original.stop_if_idle()


def test_a_restored_home_says_the_same_under_its_own_path(home: Path, tmp_path: Path) -> None:
    assert pixelloop("backup", tmp_path / "b", "--home", home).returncode == 0
    done = pixelloop("restore", tmp_path / "b", "--home", tmp_path / "new", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["runs"] == 1
    try:
        words = ("runs", "--json", "--home")
        assert pixelloop(*words, tmp_path / "new").stdout == pixelloop(*words, home).stdout
        server = EmbeddedPostgres(tmp_path / "new" / "postgres")
        with psycopg.connect(server.start()) as connection:
            assert connection.execute("select base_model from training_runs").fetchall() == [
                (str(tmp_path / "new" / "base"),)
            ]
        server.stop_if_idle()
    finally:
        remove(EmbeddedPostgres(tmp_path / "new" / "postgres"))


def test_a_lost_state_is_a_sentence_and_no_row_is_lost(home: Path) -> None:
    (home / "postgres" / "state.json").unlink()
    done = pixelloop("runs", "--json", "--home", home, PGSSLMODE="require", PGOPTIONS="-c statement_timeout=1")
    assert (done.returncode, [run["run_name"] for run in json.loads(done.stdout)]) == (0, ["old-000"])
    assert "nothing is lost" in done.stderr


@pytest.mark.parametrize("url", [f"postgresql://u:{SECRET}%@h/d", SECRET])
def test_a_wrong_address_is_refused_without_its_password(tmp_path: Path, url: str) -> None:
    home = Home.at(tmp_path / "home")
    _ = home.uid
    done = pixelloop("runs", "--home", home.root, DATABASE_URL=url)
    assert done.returncode == 2
    assert "DATABASE_URL" in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_variables_that_keep_the_start_from_succeeding_are_named_at_once(tmp_path: Path, postgres_url: str) -> None:
    home = Home.at(tmp_path / "home")
    _ = home.uid
    started = time.monotonic()
    address = postgres_url.replace("postgresql://", "postgres://")  # as some hosts spell it
    done = pixelloop("runs", "--home", home.root, DATABASE_URL=address, PGCLIENTENCODING="SQL_ASCII")
    usual = time.monotonic() - started
    assert done.returncode == 0, done.stderr
    for name, value in {"PGSSLMODE": "require", "PGHOSTADDR": "10.255.255.1"}.items():
        started = time.monotonic()
        done = pixelloop("runs", "--home", home.root, DATABASE_URL=postgres_url, **{name: value})
        assert (done.returncode, name in done.stderr) == (2, True), done.stderr
        assert time.monotonic() - started < 5 + 3 * usual  # 5 s beyond what any command takes on a busy machine


def test_doctor_says_what_is_wrong_and_ends_with_2(home: Path) -> None:
    done = pixelloop("doctor", "--home", home, "--json", PGSSLMODE="require")
    found = json.loads(done.stdout)
    assert (done.returncode, found["problems"]) == (0, 0), found
    assert not any("PREFECT_" in f["sentence"] for f in found["findings"])
    (home / "outbox" / "refused.jsonl").write_text('{"kind": "run", "reason": "no"}\n')
    done = pixelloop("doctor", "--home", home)
    assert done.returncode == 2
    assert "1 rows were refused" in done.stdout
