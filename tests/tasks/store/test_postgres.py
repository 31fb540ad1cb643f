from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from schema.errors import StoreError, StoreUnavailableError
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.postgres import PostgresStore
from tests.tasks.store.store_contract import StoreContract, make_run


class TestPostgresStore(StoreContract):
    @pytest.fixture
    def store(self, postgres_url: str) -> Iterator[PostgresStore]:
        store = PostgresStore(postgres_url)
        yield store
        store.close()


def test_a_cut_connection_is_mended_by_itself(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.save_run(make_run(0))
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(pid) from pg_stat_activity where pid <> pg_backend_pid()")
    assert store.run("night", 0) == make_run(0)
    store.close()


def test_threads_mend_a_cut_connection_together(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as admin, ThreadPoolExecutor(4) as pool:
        saved = [pool.submit(store.save_run, make_run(n)) for n in range(40)]
        admin.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where datname = current_database() and pid <> pg_backend_pid()"
        )
        for future in saved:
            future.result()
    assert len(store.runs()) == 40
    store.close()


def test_a_row_changed_to_nonsense_is_named(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.save_run(make_run(0))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("update training_runs set status = 'done'")
    with pytest.raises(StoreError, match=r"night-000 cannot be read: status"):
        store.runs()
    store.close()


def test_a_server_that_is_away_is_said_in_one_sentence() -> None:
    store = PostgresStore("postgresql://postgres:secret@127.0.0.1:9/none")
    with pytest.raises(StoreUnavailableError, match="cannot be reached") as error:
        store.runs()
    assert "secret" not in str(error.value)


def test_a_database_without_our_tables_is_an_error_not_an_outage(empty_url: str) -> None:
    store = PostgresStore(empty_url)
    with pytest.raises(StoreError, match="training_runs"):
        store.runs()
    store.close()


def test_rows_of_a_users_own_table_are_left_alone(postgres_url: str) -> None:
    with psycopg.connect(postgres_url) as connection:
        connection.execute("insert into training_runs (run_name, status) values ('old run', 'completed')")
    store = PostgresStore(postgres_url)
    assert store.runs() == []
    store.close()


def test_a_server_of_our_own_is_started_again_where_it_has_died(postgres_url: str, postgres: EmbeddedPostgres) -> None:
    asked: list[str] = []

    def revive() -> None:
        asked.append(postgres.start())

    store = PostgresStore(postgres_url, revive)
    store.save_run(make_run(0))
    postgres.stop()
    assert store.runs() == [make_run(0)]
    assert len(asked) == 1
    store.close()


def test_notes_that_a_person_wrote_into_the_table_stay(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.save_run(make_run(0))
    with psycopg.connect(postgres_url) as connection:
        connection.execute("update training_runs set notes = 'odd'")
    store.save_run(make_run(0).changed(quality=50.0))
    assert (store.run("night", 0).notes, store.run("night", 0).quality) == ("odd", 50.0)
    store.close()
