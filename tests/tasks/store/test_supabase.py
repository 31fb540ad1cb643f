"""The store through supabase-py, on a real PostgREST."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest
from pydantic import SecretStr

from schema.errors import StoreError, StoreUnavailableError
from tasks.history.database import read_supabase
from tasks.store.base import Condition
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.supabase import SupabaseStore
from tests.tasks.store.postgrest import PUBLISHABLE_KEY, SECRET_KEY, Project, project
from tests.tasks.store.store_contract import StoreContract, make_epoch, make_run


@pytest.fixture(scope="module")
def served(postgres: EmbeddedPostgres) -> Iterator[Project]:
    url = postgres.ensure_database("supabase_project")
    migrate(url)
    with project(url) as running:
        yield running


@pytest.fixture
def empty(served: Project) -> Project:
    """The project without rows."""
    with psycopg.connect(served.database_url) as connection:
        tables = connection.execute(
            "select string_agg(format('public.%I', tablename), ', ') from pg_tables where schemaname = 'public'"
        ).fetchone()
        assert tables is not None
        connection.execute(f"truncate {tables[0]} cascade".encode())
    served.trouble.clear()
    return served


def store_of(served: Project, key: str = SECRET_KEY, timeout: float = 30.0) -> SupabaseStore:
    return SupabaseStore(served.url, SecretStr(key), timeout)


class TestSupabaseStore(StoreContract):
    @pytest.fixture
    def store(self, empty: Project) -> Iterator[SupabaseStore]:
        store = store_of(empty)
        yield store
        store.close()


def fill(database_url: str, runs: int) -> None:
    with psycopg.connect(database_url) as connection:
        connection.execute(
            """insert into training_runs (campaign, number, run_name, base_model, dataset, all_parameters, started_at,
                                          status)
               select 'big', n, 'big-' || n, 'base', 'data', jsonb_build_object('network_dim', n), now(), 'running'
               from generate_series(1, %s) n""",
            [runs],
        )


def test_more_rows_than_a_page_come_all(empty: Project) -> None:
    fill(empty.database_url, 2345)
    store = store_of(empty)
    assert sorted(run.number for run in store.runs("big")) == list(range(1, 2346))
    store.close()


@pytest.mark.parametrize(("max_rows", "runs"), [(100, 250), (100, 200), (7, 100)])
def test_all_rows_come_whatever_the_projects_max_rows(postgres_url: str, max_rows: int, runs: int) -> None:
    fill(postgres_url, runs)
    with psycopg.connect(postgres_url) as connection:
        connection.execute(
            """insert into epoch_results (run_uid, epoch_number, quantitative_metrics, created_at)
               select uid, e, '{}', now() from training_runs, generate_series(1, 2) e"""
        )
    numbers = list(range(1, runs + 1))
    with project(postgres_url, max_rows) as served:
        store = store_of(served)
        assert sorted(run.number for run in store.runs("big")) == numbers
        history = store.history()
        assert sorted(h.run.number for h in history) == numbers
        assert {len(h.epochs) for h in history} == {2}
        above = store.find_runs([Condition.parse("network_dim > 0")])
        assert sorted(run.number for run in above) == numbers
        exported = store.tables.call("export_rows", {"of_table": "training_runs", "of_campaign": None}, ("key", "data"))
        assert len({row["key"] for row in exported}) == len(exported) == runs
        assert len([f for f in read_supabase(served.url, SecretStr(SECRET_KEY)) if f.run]) == 0  # all are ours
        store.close()


@pytest.mark.parametrize("status", [502, 503, 504])
def test_a_service_that_is_away_for_a_moment_is_asked_again(empty: Project, status: int) -> None:
    store = store_of(empty)
    empty.trouble += [status, status]
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    assert len(store.history()[0].epochs) == 1
    store.close()


def test_a_service_that_stays_away_is_an_outage_without_the_key_in_it(empty: Project) -> None:
    store = store_of(empty)
    empty.trouble += [503] * 8
    with pytest.raises(StoreUnavailableError, match="away") as error:
        store.save_run(make_run(0))
    assert SECRET_KEY not in str(error.value)
    store.close()


def test_a_silent_service_is_an_outage(empty: Project) -> None:
    store = store_of(empty, timeout=0.2)
    empty.trouble += [1.0] * 4
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.save_run(make_run(0))
    store.close()


def test_an_address_where_nobody_answers_is_an_outage() -> None:
    store = SupabaseStore("http://127.0.0.1:9", SecretStr(SECRET_KEY))
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        store.runs()


@pytest.mark.parametrize("key", [PUBLISHABLE_KEY, "sb_secret_other"])
def test_a_key_that_may_not_is_refused_in_a_sentence(empty: Project, key: str) -> None:
    store = store_of(empty, key)
    with pytest.raises(StoreError) as error:
        store.save_run(make_run(0))
    assert key not in str(error.value)
    assert "\n" not in str(error.value)
    store.close()
