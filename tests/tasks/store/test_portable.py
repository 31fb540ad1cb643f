from __future__ import annotations

import gzip
import uuid
from datetime import timedelta
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr

from schema.errors import ConfigError, StoreError
from schema.findings import Analysis, Hypothesis, RefusedProposal
from schema.runs import Artifact, HumanRating, artifact_uid, rating_uid
from tasks.store.base import Store
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.portable import TABLES, export, read_export, renamed, restore
from tasks.store.postgres import PostgresStore
from tasks.store.supabase import SupabaseStore
from tests.tasks.store.postgrest import SECRET_KEY, project
from tests.tasks.store.store_contract import HOME, PREDICTION, START, VERDICT, make_epoch, make_run
from tests.tasks.store.test_migrate import USERS_TABLES

HEAD = '{"pixelloop": "export", "version": 1}\n'


def fill(store: Store, url: str) -> None:
    """A row or more in each table."""
    for campaign in ("night", "other"):
        store.save_campaign(campaign, {"text": "grün \U0001f451", "x": 0.1}, "finished", "budget spent")
        run = make_run(0, campaign)
        store.save_run(run)
        for epoch in (2, 1):
            store.save_epoch(make_epoch(run, epoch, quality=1 / 3))
        rating = {"uid": rating_uid(run.uid, 1), "run_uid": run.uid, "epoch_number": 1, "created_at": START}
        store.save_rating(HumanRating(**rating, visual=7.5, words='"\n'))
        file = {"uid": artifact_uid(run.uid, "a"), "run_uid": run.uid, "kind": "checkpoint", "path": "a"}
        store.save_artifact(Artifact(**file, storage="local", bytes=2**50, created_at=START))
        one = uuid.uuid5(HOME, campaign)
        given = {"uid": one, "campaign": campaign, "parameters": {"network_dim": 8}, "created_at": START}
        store.save_refusal(RefusedProposal(**given, number=3, verdict=VERDICT))
        more = {"priority": 1, "change": {}, "rationale": "r", "expected": PREDICTION, "gain": 1.0}
        store.save_hypotheses([Hypothesis(**given, **more)])
        for hours in (1, 2):
            store.save_analysis(Analysis(campaign=campaign, n_runs=1, created_at=START + timedelta(hours=hours)))
    with psycopg.connect(url) as connection:
        connection.execute(
            """insert into test_prompts values ('night', 0, 'a', 'b', '{}');
               insert into caption_versions values ('knights@1', 'v1', 3, null, now());
               insert into principles
               values (gen_random_uuid(), 'rule', 3, 1, '{}', 'observed', 'proposed', null, now());
               insert into picture_votes select gen_random_uuid(), uid, 1, uid, 2, 'queen-s1', 'tie', now()
               from training_runs where campaign = 'night';
               insert into training_runs (run_name, parent_run_uid) select 'child ' || n, r.uid
               from training_runs r, generate_series(1, 1200) n where r.campaign = 'night'"""
        )


def test_a_file_moves_everything_and_comes_back_byte_for_byte(
    postgres: EmbeddedPostgres, postgres_url: str, tmp_path: Path
) -> None:
    first, second, third = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl.gz"))
    store = PostgresStore(postgres_url)
    fill(store, postgres_url)
    counts = export(store.tables, first)
    assert all(counts[table] for table in TABLES)
    hosted_url = postgres.ensure_database(f"hosted_{uuid.uuid4().hex[:8]}")
    migrate(hosted_url)
    with project(hosted_url) as running:
        hosted = SupabaseStore(running.url, SecretStr(SECRET_KEY))
        assert restore(hosted.tables, read_export(first)) == counts
        assert restore(hosted.tables, read_export(first)) == counts
        assert export(hosted.tables, second) == counts
        assert hosted.history() == store.history()
        hosted.close()
    assert second.read_bytes() == first.read_bytes()
    assert restore(store.tables, read_export(second)) == counts
    export(store.tables, third)
    assert gzip.decompress(third.read_bytes()) == first.read_bytes()
    with psycopg.connect(hosted_url) as connection:
        found = connection.execute("select count(*), count(training_run_id), count(run_uid) from epoch_results")
        assert found.fetchone() == (4, 4, 4)
    store.close()


def test_one_campaign_may_be_moved_alone(postgres: EmbeddedPostgres, postgres_url: str, tmp_path: Path) -> None:
    store = PostgresStore(postgres_url)
    fill(store, postgres_url)
    export(store.tables, tmp_path / "night.jsonl", "night")
    url = postgres.ensure_database(f"moved_{uuid.uuid4().hex[:8]}")
    migrate(url)
    moved = PostgresStore(url)
    restore(moved.tables, read_export(tmp_path / "night.jsonl"))
    assert [c.name for c in moved.campaigns()] == ["night"]
    assert moved.history() == store.history("night")
    assert moved.refusals("night") == store.refusals("night")
    assert moved.latest_analysis("night") == store.latest_analysis("night")
    export(moved.tables, tmp_path / "again.jsonl", "night")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "night.jsonl").read_bytes()
    store.close()
    moved.close()


def test_columns_of_the_users_own_are_never_lost_in_silence(empty_url: str, postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES.encode())
    migrate(empty_url)
    own, ours = PostgresStore(empty_url), PostgresStore(postgres_url)
    export(own.tables, tmp_path / "own.jsonl")
    with pytest.raises(StoreError, match=r"lacks columns that the file has:.* network_alpha"):
        restore(ours.tables, read_export(tmp_path / "own.jsonl"))
    own.close()
    ours.close()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "x",
        HEAD + '{"table": "pg_authid", "row": {}}',
        HEAD + '{"table": ["campaigns"], "row": {}}',
        HEAD + '{"table": "campaigns", "row": [1]}',
        HEAD + '{"table": "campaigns"}',
        HEAD + "[]",
        HEAD + "[" * 200_000,
        HEAD + '{"table": "training_runs", "row": {"uid"',
    ],
)
def test_another_file_is_refused(postgres_url: str, tmp_path: Path, text: str) -> None:
    (tmp_path / "a").write_text(text)
    store = PostgresStore(postgres_url)
    with pytest.raises(ConfigError):
        restore(store.tables, read_export(tmp_path / "a"))
    with pytest.raises(ConfigError, match="does not exist"):
        restore(store.tables, read_export(tmp_path / "b"))
    with pytest.raises(StoreError, match="no table of pixelloop"):
        store.tables.call("export_rows", {"of_table": "pg_authid"}, ("key", "data"))
    with pytest.raises(StoreError, match="no table of pixelloop"):
        store.tables.call("import_rows", {"of_table": "pg_authid", "entries": {"a": 1}})
    store.close()


def test_a_number_that_another_run_has_stops_the_import_before_anything_is_written(
    postgres: EmbeddedPostgres, postgres_url: str, tmp_path: Path
) -> None:
    store = PostgresStore(postgres_url)
    fill(store, postgres_url)
    file = tmp_path / "night.jsonl"
    export(store.tables, file, "night")
    url = postgres.ensure_database(f"other_{uuid.uuid4().hex[:8]}")
    migrate(url)
    other = PostgresStore(url)
    own = make_run(0).changed(uid=uuid.uuid4())
    other.save_run(own)
    with pytest.raises(ConfigError, match="campaign night has other runs of the numbers 0 already"):
        restore(other.tables, read_export(file))
    assert (other.runs(), other.campaigns()) == ([own], [])
    for _ in range(2):
        restore(other.tables, renamed(read_export(file), "night-2", file))
    assert {(run.campaign, run.number) for run in other.runs()} == {("night", 0), ("night-2", 0)}
    assert len(other.history("night-2")[0].epochs) == 2
    assert [c.name for c in other.campaigns()] == ["night-2"]
    with pytest.raises(ConfigError, match="no name for a campaign"):
        renamed(read_export(file), "../up", file)
    export(store.tables, file)
    with pytest.raises(ConfigError, match="holds 2 campaigns"):
        renamed(read_export(file), "new", file)
    store.close()
    other.close()
