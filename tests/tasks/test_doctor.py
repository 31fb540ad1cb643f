from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from schema.errors import StoreError
from tasks.doctor import Finding, Severity, check_database, check_environment, check_home, check_outbox, examine
from tasks.home import Home
from tasks.store import cluster
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove


def worst(findings: Iterator[Finding]) -> tuple[Severity, str]:
    """The gravest finding; each that is not in order names a fix."""
    found = list(findings)
    assert all(f.fix for f in found if f.severity is not Severity.OK)
    gravest = max(found, key=lambda f: list(Severity).index(f.severity))
    return gravest.severity, gravest.sentence


def test_a_database_is_examined_without_being_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres")
    assert worst(check_database(Home.at(tmp_path))) == (Severity.OK, "none yet: the first campaign makes one")
    assert not server.root.exists()
    server.start()
    monkeypatch.setenv("PGSSLMODE", "require")
    try:
        assert worst(check_database(Home.at(tmp_path)))[0] is Severity.OK
        assert server._use is not None
        server._use.release()  # its process was killed
        assert worst(check_database(Home.at(tmp_path)))[1].endswith("was left running by a process that was killed")
        server.stop()
        found = list(check_database(Home.at(tmp_path)))
        assert [(f.check, f.severity) for f in found] == [("database", Severity.OK), ("server", Severity.OK)]
        state = (server.root / "state.json").read_text()
        (server.root / "state.json").write_text("")
        assert worst(check_database(Home.at(tmp_path)))[0] is Severity.WARNING
        assert cluster.postmaster(server.root / "server" / "data") is None
        (server.root / "state.json").write_text(state)
        settings = server.root / "server" / "data" / "postgresql.conf"
        settings.rename(settings.with_name("away.conf"))
        severity, sentence = worst(check_database(Home.at(tmp_path)))
        assert (severity, sentence.partition(":")[0]) == (Severity.PROBLEM, f"{settings} is missing")
        (server.root / "server" / "data" / "PG_VERSION").write_text("17\n")
        assert "was written by Postgres 17" in worst(check_database(Home.at(tmp_path)))[1]
    finally:
        remove(server)
    shutil.rmtree(server.root / "server", ignore_errors=True)
    assert worst(check_database(Home.at(tmp_path)))[0] is Severity.PROBLEM


@pytest.mark.parametrize(
    ("environ", "severity", "sentence"),
    [
        ({"PGSSLMODE": "require"}, Severity.OK, "not used for the home's own"),
        ({"PGSSLMODE": "require", "DATABASE_URL": "postgresql://h/d"}, Severity.WARNING, "used for DATABASE_URL"),
        ({"DATABASE_URL": "mysql://u:SECRETPW@h/d"}, Severity.PROBLEM, "another kind of database"),
        ({"DATABASE_URL": "block:db"}, Severity.OK, ""),
        ({"http_proxy": "http://x"}, Severity.WARNING, "no_proxy does not name"),
        ({"http_proxy": "http://x", "NO_PROXY": "a, 127.0.0.1"}, Severity.OK, ""),
        ({"PREFECT_API_URL": "http://x"}, Severity.WARNING, "PREFECT_API_URL"),
    ],
)
def test_variables_that_matter_are_named(environ: dict[str, str], severity: Severity, sentence: str) -> None:
    found = list(check_environment(environ)) or [Finding(check="", severity=Severity.OK, sentence="")]
    assert (worst(iter(found))[0], sentence in worst(iter(found))[1]) == (severity, True)
    assert "SECRETPW" not in str(found)


def test_rows_that_did_not_arrive_are_counted(tmp_path: Path) -> None:
    assert list(check_outbox(tmp_path)) == []
    (tmp_path / "waiting.jsonl").write_text('{"kind": "run"}\n{"torn')
    assert worst(check_outbox(tmp_path))[0] is Severity.WARNING
    (tmp_path / "refused.jsonl").write_text('{"kind": "run", "reason": "no such column"}\n')
    severity, sentence = worst(check_outbox(tmp_path))
    assert severity is Severity.PROBLEM
    assert "1 rows were refused" in sentence


def test_rows_that_wait_and_cannot_be_read_are_counted(tmp_path: Path) -> None:
    (tmp_path / "waiting.jsonl").write_text('{"kind": "run"}\nx\n{"torn')
    first, second = check_outbox(tmp_path)
    assert (first.severity, second.severity) == (Severity.WARNING, Severity.WARNING)
    assert first.sentence.startswith("2 of 3 lines in ")
    assert second.sentence == "3 rows wait for the database"


def test_a_database_that_is_gone_while_its_trials_are_here_is_a_problem(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    _ = home.uid
    home.trial("night", 0).root.mkdir(parents=True)
    severity, sentence = worst(check_database(home))
    assert severity is Severity.PROBLEM
    assert sentence == f"the database of {tmp_path} is missing, though the home holds trials"
    assert worst(check_database(home, rows_elsewhere=True))[0] is Severity.OK
    assert not home.postgres.exists()


def test_a_lost_identity_is_not_taken_for_a_new_home(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    home.trial("night", 0).root.mkdir(parents=True)
    severity, sentence = worst(check_home(home))
    assert severity is Severity.PROBLEM
    assert sentence == f"{home.root / 'home.json'} is missing, though {home.root} holds a database or trials"
    assert "database" in {f.check for f in examine(home, {})}
    (home.root / "home.json").mkdir()
    assert worst(check_home(home)) == (Severity.PROBLEM, f"{home.root / 'home.json'} is a folder")


def test_a_state_that_is_a_folder_is_named(tmp_path: Path) -> None:
    state = tmp_path / "postgres" / "state.json"
    state.mkdir(parents=True)
    assert worst(check_database(Home.at(tmp_path))) == (Severity.PROBLEM, f"{state} is a folder")
    with pytest.raises(StoreError, match="is a folder: move it away"):
        EmbeddedPostgres(tmp_path / "postgres").start()


def test_a_home_is_examined_without_being_made(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    assert worst(check_home(home))[0] is Severity.PROBLEM
    assert not home.root.exists()
    _ = home.uid
    assert worst(check_home(home)) == (Severity.OK, str(home.root))
    moved = Home.at(home.root.rename(tmp_path / "moved"))
    assert "the next command changes the paths" in worst(check_home(moved))[1]
    (moved.root / "home.json").write_text("{")
    assert worst(check_home(moved))[0] is Severity.PROBLEM


def test_all_checks_run(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "home")
    (home.root / "outbox").mkdir(parents=True)
    (home.root / "home.json").write_text(json.dumps({"uid": "c4aeadc8-dfde-46d6-9eaa-2ae71b0acacd"}))
    assert {"python", "disk", "home", "database", "torch"} <= {f.check for f in examine(home, dict(os.environ))}
