from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from schema.errors import StoreError
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.postgres import PostgresStore
from tests.tasks.store.store_contract import make_epoch, make_run

FILES = sorted((Path(__file__).parents[3] / "schema" / "supabase" / "migrations").glob("*.sql"))

USERS_TABLES = """
create table training_runs (
    id serial primary key, run_name varchar(255) not null, run_date timestamp, status varchar(50) default 'completed',
    base_model varchar(255), num_images integer, network_dim integer, quality_score integer, best_epoch integer,
    overall_verdict text, production_ready boolean, issues_found text[], notes text
);
create table epoch_results (
    id serial primary key, training_run_id integer references training_runs (id), epoch_number integer not null,
    visual_quality_score integer, is_photorealistic boolean, verdict text, observations text
);
insert into training_runs (run_name, network_dim, quality_score) values ('sprites v7', 64, 4), ('sprites v8', 32, 8);
insert into epoch_results (training_run_id, epoch_number, is_photorealistic) values (1, 7, true);
"""


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


def test_each_file_is_applied_once(empty_url: str) -> None:
    assert migrate(empty_url) == [file.name for file in FILES]
    assert migrate(empty_url) == []
    versions = query(empty_url, "select version from supabase_migrations.schema_migrations order by 1")
    assert versions == [(file.name.partition("_")[0],) for file in FILES]


def test_two_programs_may_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        applied = list(pool.map(lambda _: migrate(empty_url), range(2)))
    assert sorted(map(len, applied)) == [0, len(FILES)]


def test_a_users_tables_keep_every_row_and_column(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES)
    migrate(empty_url)
    rows = query(
        empty_url, "select run_name, network_dim, quality_score, uid is not null from training_runs order by id"
    )
    assert rows == [("sprites v7", 64, 4, True), ("sprites v8", 32, 8, True)]
    assert query(empty_url, "select epoch_number, is_photorealistic from epoch_results") == [(7, True)]
    store = PostgresStore(empty_url)
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    assert len(store.history()[0].epochs) == 1
    store.close()


def test_a_users_table_that_demands_its_own_columns_takes_our_rows(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(
            "create table training_runs (id serial primary key, run_name text not null, network_dim int not null,"
            " best_epoch int not null default 0);"
            "insert into training_runs (run_name, network_dim) values ('sprites v7', 64)"
        )
    migrate(empty_url)
    store = PostgresStore(empty_url)
    store.save_run(make_run(0))
    assert store.runs() == [make_run(0)]
    store.close()
    assert query(empty_url, "select network_dim from training_runs order by id") == [(64,), (None,)]


def test_a_users_repeated_epochs_are_kept_and_ours_are_single(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES)
        connection.execute("insert into epoch_results (training_run_id, epoch_number) values (1, 7)")
    migrate(empty_url)
    assert query(empty_url, "select count(*) from epoch_results") == [(2,)]
    store = PostgresStore(empty_url)
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    with pytest.raises(StoreError, match="epoch_results_run_epoch"):
        store.save_epoch(make_epoch(make_run(0), 1).changed(uid=make_run(1).uid))
    store.close()


def test_two_databases_of_one_server_may_be_migrated_at_once(postgres: EmbeddedPostgres) -> None:
    urls = [postgres.ensure_database(f"pair_{n}") for n in range(2)]
    with ThreadPoolExecutor(2) as pool:
        assert [len(applied) for applied in pool.map(migrate, urls)] == [len(FILES)] * 2


def test_a_user_who_may_not_change_the_database_is_told_so(postgres: EmbeddedPostgres, empty_url: str) -> None:
    with psycopg.connect(empty_url, autocommit=True) as connection:
        connection.execute("create role weak login password 'weak'")
    weak = psycopg.conninfo.make_conninfo(empty_url, user="weak", password="weak")
    with pytest.raises(StoreError, match="superuser"):
        migrate(weak)


def test_only_the_secret_keys_role_sees_rows(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    store.save_run(make_run(0))
    store.close()
    with psycopg.connect(postgres_url) as connection:
        connection.execute("set role service_role")
        assert connection.execute("select run_name from training_runs").fetchall() == [("night-000",)]
        connection.execute("set role anon")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select run_name from training_runs")


def test_every_table_has_row_level_security_and_an_explicit_grant(postgres_url: str) -> None:
    tables = query(
        postgres_url,
        """select c.relname, c.relrowsecurity, has_table_privilege('service_role', c.oid, 'insert'),
                  has_table_privilege('anon', c.oid, 'select')
           from pg_class c where c.relnamespace = 'public'::regnamespace and c.relkind = 'r'""",
    )
    assert len(tables) == 12
    assert all(secured and service and not anon for _, secured, service, anon in tables)


def test_a_failing_file_names_itself_and_leaves_nothing(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("create table training_runs (id text primary key, uid integer)")
    with pytest.raises(StoreError, match=FILES[0].name):
        migrate(empty_url)
    assert query(empty_url, "select to_regclass('campaigns')") == [(None,)]
