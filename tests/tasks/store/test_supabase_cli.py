"""Supabase's own tool applies the migrations and finds no fault with them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import psycopg
import pytest

import schema
from tasks.store.migrate import migrate
from tasks.store.postgres import PostgresStore
from tests.tasks.store.postgrest import MODULES, needed
from tests.tasks.store.store_contract import make_epoch, make_run
from tests.tasks.store.test_migrate import USERS_TABLES, users_rows

PLACE = Path(schema.__file__).parent
VERSIONS = sorted(file.name.partition("_")[0] for file in (PLACE / "supabase" / "migrations").glob("*.sql"))


def supabase(*words: str, url: str, home: Path) -> subprocess.CompletedProcess[str]:
    """Run the tool on a database; it is told to ask nothing and to send nothing."""
    binary = needed(MODULES / "@supabase" / "cli-linux-x64" / "bin" / "supabase")
    environment = {**os.environ, "HOME": str(home), "SUPABASE_TELEMETRY_DISABLED": "1", "DO_NOT_TRACK": "1"}
    command = [str(binary), *words, f"--remote={url}?sslmode=disable", "--workdir", str(PLACE), "--yes"]
    return subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=120)


@pytest.fixture
def project(template: str, empty_url: str) -> str:
    """A database without tables, on a server that has Supabase's roles as another database was migrated there."""
    return empty_url


def test_push_applies_what_our_runner_would(project: str, tmp_path: Path) -> None:
    pushed = supabase("db", "push", url=project, home=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    assert migrate(project) == []
    store = PostgresStore(project)
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    assert len(store.history()[0].epochs) == 1
    store.close()


def test_the_tool_sees_what_our_runner_has_applied(postgres_url: str, tmp_path: Path) -> None:
    listed = supabase("migration", "list", "--output-format", "json", url=postgres_url, home=tmp_path)
    assert listed.returncode == 0, listed.stderr
    rows = json.loads(listed.stdout)["migrations"]
    assert [(row["local"], row["remote"]) for row in rows] == [(version, version) for version in VERSIONS]
    again = supabase("db", "push", url=postgres_url, home=tmp_path)
    assert "up to date" in again.stdout + again.stderr


QUESTIONS = """
select from training_runs where parent_run_uid = gen_random_uuid();
select from training_runs where all_parameters @> '{"network_dim": 64}';
select from epoch_results where training_run_id = 1;
select from epoch_results where run_uid = gen_random_uuid() order by epoch_number;
select from epoch_results where quantitative_metrics @> '{"worst": 1}';
select from refused_proposals where campaign = 'night' order by number;
select from hypotheses where campaign = 'night' and state = 'proposed' order by priority;
select from human_ratings where run_uid = gen_random_uuid() order by epoch_number;
select from picture_votes where run_uid = gen_random_uuid() and epoch_number = 1;
select from picture_votes where other_run_uid = gen_random_uuid();
select from artifacts where run_uid = gen_random_uuid() order by epoch_number;
select from training_runs where changed_in >= '7';
select from epoch_results where changed_in >= '7';
"""


def test_the_advisors_find_nothing(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url) as connection:  # an index that nobody has asked yet counts as superfluous
        connection.execute("set enable_seqscan = off")
        for question in QUESTIONS.strip().splitlines():
            connection.execute(question.encode())
    advice = supabase("db", "advisors", "--level", "info", "--fail-on", "info", url=postgres_url, home=tmp_path)
    assert advice.returncode == 0, advice.stdout + advice.stderr


def test_the_advisors_would_find_a_fault(postgres_url: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("alter table campaigns disable row level security")
    advice = supabase("db", "advisors", "--fail-on", "error", url=postgres_url, home=tmp_path)
    assert advice.returncode == 1
    assert "policy_exists_rls_disabled" in advice.stdout + advice.stderr


def test_an_old_project_is_adopted_by_a_push(project: str, tmp_path: Path) -> None:
    with psycopg.connect(project) as connection:
        connection.execute(USERS_TABLES.encode())
    before = users_rows(project)
    pushed = supabase("db", "push", url=project, home=tmp_path)
    assert pushed.returncode == 0, pushed.stderr
    assert users_rows(project) == before
    advice = supabase("db", "advisors", "--fail-on", "warn", url=project, home=tmp_path)
    assert advice.returncode == 0, advice.stdout
