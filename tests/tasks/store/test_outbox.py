"""Rows are neither lost nor doubled where the database goes away: real servers, really killed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import psycopg
import pytest
from pydantic import SecretStr

from schema.base import Frozen
from schema.errors import NotFoundError, NumberTakenError, RowRefusedError, StoreUnavailableError
from schema.runs import RunStatus
from tasks.store import outbox
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.outbox import OutboxStore
from tasks.store.postgres import PostgresStore
from tasks.store.spool import refused_rows
from tasks.store.supabase import SupabaseStore
from tests.conftest import remove
from tests.tasks.store.postgrest import SECRET_KEY, project
from tests.tasks.store.store_contract import StoreContract, make_epoch, make_run


class TestOutboxStore(StoreContract):
    @pytest.fixture
    def store(self, postgres_url: str, tmp_path: Path) -> Iterator[OutboxStore]:
        store = OutboxStore(PostgresStore(postgres_url), tmp_path / "outbox")
        yield store
        assert store.waiting == 0
        store.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedPostgres]:
    """A server that a test may kill."""
    server = EmbeddedPostgres(tmp_path / "home" / "postgres")
    migrate(server.start())
    yield server
    remove(server)


def kill(server: EmbeddedPostgres) -> None:
    state = json.loads((server.root / "state.json").read_text())
    postmaster = psutil.Process(int((server.root / state["data"] / "postmaster.pid").read_text().split()[0]))
    family = [postmaster, *postmaster.children()]
    for process in family:
        process.kill()
    psutil.wait_procs(family, timeout=10)


def counted(url: str) -> tuple[int, int]:
    """Rows of runs and of epochs."""
    with psycopg.connect(url) as connection:
        runs = connection.execute("select count(*) from training_runs").fetchone()
        epochs = connection.execute("select count(*) from epoch_results").fetchone()
    assert runs is not None
    assert epochs is not None
    return runs[0], epochs[0]


def test_a_killed_database_costs_nothing(
    server: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_RETRY", 0.0)
    told: list[str] = []
    store = OutboxStore(PostgresStore(server.url()), tmp_path / "outbox", told.append)
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    kill(server)
    store.save_epoch(make_epoch(make_run(0), 2))
    store.save_run(make_run(1))
    store.save_epoch(make_epoch(make_run(1), 1))
    assert [len(h.epochs) for h in store.history("night")] == [2, 1]  # what decisions see is complete
    assert store.waiting == 3
    server.start()
    assert counted(server.url()) == (1, 1)
    store.save_run(make_run(0).changed(quality=50.0))
    assert store.waiting == 0
    assert counted(server.url()) == (2, 3)
    assert store.run("night", 0).quality == 50.0
    assert "goes on" in told[0]
    assert "back" in told[-1]
    store.close()


def test_what_waits_outlives_the_program(server: EmbeddedPostgres, tmp_path: Path) -> None:
    first = OutboxStore(PostgresStore(server.url()), tmp_path / "outbox")
    first.save_run(make_run(0))
    kill(server)
    first.save_epoch(make_epoch(make_run(0), 1))  # and then the program is killed too
    server.start()
    second = OutboxStore(PostgresStore(server.url()), tmp_path / "outbox")
    assert len(second.epochs(make_run(0).uid)) == 1
    assert (second.waiting, counted(server.url())) == (0, (1, 1))
    second.close()


def test_a_letter_that_is_delivered_twice_changes_nothing(postgres_url: str, tmp_path: Path) -> None:
    store = OutboxStore(PostgresStore(postgres_url), tmp_path / "outbox")
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    letters = [
        {"kind": "run", "data": make_run(0).model_dump(mode="json")},
        {"kind": "epoch", "data": make_epoch(make_run(0), 1).model_dump(mode="json")},
    ]
    lines = "".join(json.dumps(letter) + "\n" for letter in letters * 2)
    (tmp_path / "outbox" / "waiting.jsonl").write_text(lines + '{"kind": "run", "da')  # the last one torn by a kill
    assert store.flush()
    assert counted(postgres_url) == (1, 1)
    store.close()


def test_a_row_that_is_never_taken_is_set_aside_with_its_reason(postgres_url: str, tmp_path: Path) -> None:
    told: list[str] = []
    store = OutboxStore(PostgresStore(postgres_url), tmp_path / "outbox", told.append)
    store.save_run(make_run(0))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("alter table training_runs add constraint no_knights check (run_name <> 'night-001')")
    with pytest.raises(RowRefusedError, match="night-001"):
        store.save_run(make_run(1))
    store.save_run(make_run(2))
    (refused,) = store.refused()
    assert (refused.kind, refused.data["run_name"]) == ("run", "night-001")
    assert "no_knights" in refused.reason
    assert "set aside" in told[0]
    assert [run.number for run in store.runs()] == [0, 2]
    store.close()


def _line(kind: str, record: Frozen, **changed: object) -> bytes:
    return json.dumps({"kind": kind, "data": record.model_dump(mode="json") | changed}).encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"kind": "run", "data": {"uid"', "torn"),
        (b'{"kind": "nosuch", "data": {}}', "'nosuch' is no kind of row"),
        (b'{"kind": "rating", "data": {"uid": 5}}', "uid"),
        (b'{"kind": "campaign", "data": {"name": "a"}}', "settings"),
        (b'{"kind": "campaign", "data": {"name": 1, "settings": {}, "status": "x", "end_reason": null}}', "texts"),
        (b'{"kind": "effects", "data": {"run_uid": 7, "effects": []}}', "cannot be read"),
        (b'{"kind": "run"}', "data"),
        (b'{"kind": ["run"], "data": {}}', "cannot be read"),
        (b"[1, 2]", "cannot be read"),
        (b"\xff\xfe\x00", "torn"),
        (b"[" * 200_000, "torn"),
        (
            b'{"kind": "epoch", "data": ' + make_epoch(make_run(5), 1).model_dump_json().encode() + b"}",
            "not in the store",
        ),
        (_line("run", make_run(3), run_name="a\ud800"), ""),
        (_line("run", make_run(3), number=10**26), "out of range"),
    ],
)
def test_a_line_that_cannot_be_stored_is_set_aside_and_the_rest_goes_on(
    postgres_url: str, tmp_path: Path, line: bytes, reason: str
) -> None:
    folder = tmp_path / "outbox"
    folder.mkdir()
    rows = [{"kind": "run", "data": make_run(n).model_dump(mode="json")} for n in (0, 1)]
    before, after = (json.dumps(row).encode() for row in rows)
    (folder / "waiting.jsonl").write_bytes(b"\n".join([before, line, after, b""]))
    store = OutboxStore(PostgresStore(postgres_url), folder)
    assert [run.number for run in store.runs()] == [0, 1]
    assert store.waiting == 0
    (refused,) = store.refused()
    assert reason in refused.reason
    assert len(refused.sentence) < 500
    assert refused_rows(folder) == [refused]
    store.save_run(make_run(2))
    assert OutboxStore(PostgresStore(postgres_url), folder).retry() in (0, 1)
    assert [row.sentence for row in store.refused()] == [refused.sentence]
    store.close()


def test_a_whole_row_behind_a_torn_one_in_the_same_line_is_stored(postgres_url: str, tmp_path: Path) -> None:
    folder = tmp_path / "outbox"
    folder.mkdir()
    row = json.dumps({"kind": "run", "data": make_run(0).model_dump(mode="json")})
    (folder / "waiting.jsonl").write_text('{"kind": "run", "data": {"uid' + row + "\n")
    store = OutboxStore(PostgresStore(postgres_url), folder)
    assert [run.number for run in store.runs()] == [0]
    assert [row.kind for row in store.refused()] == ["unreadable"]
    store.close()


def test_a_row_is_never_appended_to_a_torn_one(server: EmbeddedPostgres, tmp_path: Path) -> None:
    store = OutboxStore(PostgresStore(server.url()), tmp_path / "outbox")
    store.save_run(make_run(0))
    kill(server)
    (tmp_path / "outbox" / "waiting.jsonl").write_text('{"kind": "run", "da')  # of a process that was killed
    store.save_run(make_run(1))
    server.start()
    again = OutboxStore(PostgresStore(server.url()), tmp_path / "outbox")
    assert [run.number for run in again.runs()] == [0, 1]
    assert again.refused() == []
    again.close()


def test_a_row_that_was_refused_is_stored_once_the_reason_is_gone(postgres_url: str, tmp_path: Path) -> None:
    store = OutboxStore(PostgresStore(postgres_url), tmp_path / "outbox")
    with psycopg.connect(postgres_url) as connection:
        connection.execute("alter table training_runs add constraint no_knights check (run_name <> 'night-001')")
    with pytest.raises(RowRefusedError):
        store.save_run(make_run(1))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("alter table training_runs drop constraint no_knights")
    assert store.retry() == 1
    assert ([run.number for run in store.runs()], store.refused()) == ([1], [])
    store.close()


def test_two_homes_never_share_a_number(postgres_url: str, tmp_path: Path) -> None:
    mine = OutboxStore(PostgresStore(postgres_url), tmp_path / "mine")
    theirs = OutboxStore(PostgresStore(postgres_url), tmp_path / "theirs")
    mine.save_run(make_run(0))
    theirs.save_run(make_run(1).changed(uid=uuid.uuid4()))
    with pytest.raises(NumberTakenError, match="run 1 of another home"):
        mine.add_run(make_run(1))
    mine.add_run(make_run(2))
    assert [run.number for run in mine.runs()] == [0, 1, 2]
    assert mine.refused() == []
    mine.close()
    theirs.close()


def test_an_epoch_without_its_run_is_a_mistake_at_once(postgres_url: str, tmp_path: Path) -> None:
    store = OutboxStore(PostgresStore(postgres_url), tmp_path / "outbox")
    with pytest.raises(NotFoundError, match="not in the store"):
        store.save_epoch(make_epoch(make_run(0), 1))
    store.close()


def test_without_a_database_at_the_start_nothing_goes_on(tmp_path: Path) -> None:
    store = OutboxStore(PostgresStore("postgresql://nobody@127.0.0.1:9/none"), tmp_path / "outbox")
    for work in (lambda: store.save_run(make_run(0)), store.history):
        with pytest.raises(StoreUnavailableError, match="cannot be reached"):
            work()
    assert store.waiting == 0


def test_the_copy_has_what_was_there_before(server: EmbeddedPostgres, tmp_path: Path) -> None:
    first = OutboxStore(PostgresStore(server.url()), tmp_path / "first")
    first.save_run(make_run(0))
    first.save_epoch(make_epoch(make_run(0), 1))
    first.save_campaign("night", {"a": 1}, "running")
    kept = first.history()
    first.close()
    second = OutboxStore(PostgresStore(server.url()), tmp_path / "second")
    second.save_run(make_run(1))
    kill(server)
    assert second.history()[:1] == kept
    assert [c.settings for c in second.campaigns()] == [{"a": 1}]


def test_runs_that_have_ended_are_in_memory_once_whoever_ran_them(server: EmbeddedPostgres, tmp_path: Path) -> None:
    store = OutboxStore(PostgresStore(server.url()), tmp_path / "mine")
    other = OutboxStore(PostgresStore(server.url()), tmp_path / "theirs")
    for number, writer in enumerate((store, other)):
        run = make_run(number)
        writer.save_run(run)
        writer.save_epoch(make_epoch(run, 1))
        writer.save_run(run.changed(status=RunStatus.FINISHED, finished_at=run.started_at))
    known = store.history()
    kill(server)
    copied = store.history()
    assert copied == known
    assert all(a.run is b.run and a.epochs[0] is b.epochs[0] for a, b in zip(copied, known, strict=True))


def test_a_service_that_is_away_costs_nothing(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox, "_RETRY", 0.0)
    with project(postgres_url) as served:
        store = OutboxStore(SupabaseStore(served.url, SecretStr(SECRET_KEY)), tmp_path / "outbox")
        store.save_run(make_run(0))
        served.trouble += [503] * 40  # longer than all tries of all that follows
        store.save_epoch(make_epoch(make_run(0), 1))
        store.save_run(make_run(1))
        assert [h.run.number for h in store.history()] == [0, 1]
        assert store.waiting == 2
        served.trouble.clear()
        store.save_epoch(make_epoch(make_run(1), 1))
        assert (store.waiting, counted(postgres_url)) == (0, (2, 2))
        store.close()
