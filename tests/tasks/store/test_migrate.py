from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from schema.errors import StoreError
from schema.findings import Diagnosis
from schema.runs import EpochMetrics, HumanRating, PictureMetrics, rating_uid
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.postgres import PostgresStore
from tests.tasks.store.store_contract import make_epoch, make_run

FILES = sorted((Path(__file__).parents[3] / "schema" / "supabase" / "migrations").glob("*.sql"))

USERS_TABLES = """
create table training_runs (
    id serial primary key, run_name varchar(255) not null, run_date timestamp default '2026-05-01 21:30',
    status varchar(50) default 'completed', base_model varchar(255), model_type varchar(50), num_images integer,
    caption_version varchar(50), resolution integer, network_dim integer, network_alpha integer,
    learning_rate numeric(12, 10), keep_tokens integer, shuffle_caption boolean, noise_offset numeric,
    quality_score integer check (quality_score between 0 and 10), best_epoch integer, overall_verdict text,
    production_ready boolean default false, issues_found text[], notes text, all_parameters jsonb
);
create table epoch_results (
    id serial primary key, training_run_id integer references training_runs (id), epoch_number integer not null,
    visual_quality_score integer, style_match_score integer, prompt_adherence_score numeric(3, 1),
    has_wrong_backgrounds boolean, is_photorealistic boolean, is_overtrained boolean, verdict varchar(20),
    observations text, lora_path text
);
insert into training_runs (run_name, base_model, model_type, num_images, caption_version, resolution, network_dim,
    learning_rate, quality_score, best_epoch, overall_verdict, issues_found, notes)
values
    ('sprites v7', 'sd15.safetensors', 'sd15', 203, 'v5', 512, 64, 0.0001, 4, 7, 'photoreal faces',
        array['photorealistic', 'wrong "background"'], E'grün\n👑'),
    ('sprites v8', 'sd15.safetensors', 'sd15', 203, 'v6', 512, 32, 0.0000300001, 8, 8, 'good', '{}', null),
    ('sprites v9', null, null, null, null, null, null, null, null, null, null, null, null);
insert into epoch_results (training_run_id, epoch_number, visual_quality_score, style_match_score,
    prompt_adherence_score, has_wrong_backgrounds, is_photorealistic, is_overtrained, verdict, observations)
values (1, 7, 5, 4, 6.5, true, true, false, 'skip', 'background right for the first time'),
    (1, 10, 3, 4, 5, true, true, true, 'fail', 'wrong again'), (2, 8, 8, 9, 7, false, false, null, 'good', null);
"""


def query(url: str, sql: str) -> list[tuple[object, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(sql.encode()).fetchall()


def users_rows(url: str) -> list[list[tuple[object, ...]]]:
    """Every value of the user's own columns, as text with its type."""
    found = []
    for table, part in (("training_runs", USERS_TABLES.split(");")[0]), ("epoch_results", USERS_TABLES.split(");")[1])):
        words = [piece.split() for piece in re.split(r",\s+(?![\d])", part.partition(" (\n")[2])]
        columns = [word[0] for word in words if word]
        shown = ", ".join(f"{c}::text, pg_typeof({c})::text" for c in columns)
        found.append(query(url, f"select {shown} from {table} order by id"))
    return found


def test_each_file_is_applied_once(empty_url: str) -> None:
    assert migrate(empty_url) == [file.name for file in FILES]
    assert migrate(empty_url) == []
    versions = query(empty_url, "select version from supabase_migrations.schema_migrations order by 1")
    assert versions == [(file.name.partition("_")[0],) for file in FILES]


def test_two_programs_may_migrate_at_once(empty_url: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        applied = list(pool.map(lambda _: migrate(empty_url), range(2)))
    assert sorted(map(len, applied)) == [0, len(FILES)]


def test_a_users_tables_keep_every_row_and_value(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES.encode())
    before = users_rows(empty_url)
    assert [len(table) for table in before] == [3, 3]
    assert [len(table[0]) for table in before] == [2 * 22, 2 * 12]
    migrate(empty_url)
    assert users_rows(empty_url) == before
    assert query(empty_url, "select bool_and(uid is not null) from training_runs") == [(True,)]
    store = PostgresStore(empty_url)
    store.save_run(make_run(0))
    store.save_epoch(make_epoch(make_run(0), 1))
    assert [h.run.run_name for h in store.history()] == ["night-000"]
    assert len(store.history()[0].epochs) == 1
    store.close()
    assert [table[:3] for table in users_rows(empty_url)] == before


def test_the_views_show_a_users_rows_beside_ours(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES.encode())
    migrate(empty_url)
    runs = query(empty_url, "select run_name, quality_score from v_training_comparison order by run_name")
    assert runs == [("sprites v7", 4), ("sprites v8", 8), ("sprites v9", None)]
    epochs = query(
        empty_url,
        "select run_name, epoch_number, visual_quality_score, prompt_adherence_score::text"
        " from v_epoch_metrics_progression order by 1, 2",
    )
    assert epochs == [("sprites v7", 7, 5, "6.5"), ("sprites v7", 10, 3, "5.0"), ("sprites v8", 8, 8, "7.0")]


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
        connection.execute(USERS_TABLES.encode())
        connection.execute("insert into epoch_results (training_run_id, epoch_number) values (1, 7)")
    migrate(empty_url)
    assert query(empty_url, "select count(*) from epoch_results") == [(4,)]
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


SUPABASES_DEFAULTS = """
alter default privileges in schema public grant all on tables to anon, authenticated, service_role;
alter default privileges in schema public grant all on sequences to anon, authenticated, service_role;
alter default privileges in schema public grant all on functions to anon, authenticated, service_role;
"""


@pytest.fixture
def hosted(template: str, empty_url: str) -> str:
    """A database with a table of the user's own, and what Supabase grants by default."""
    with psycopg.connect(empty_url) as connection:
        connection.execute(SUPABASES_DEFAULTS.encode())
        connection.execute("create table shop (id serial primary key)")
        connection.execute(USERS_TABLES.encode())
    migrate(empty_url)
    return empty_url


GRANTS = """
select c.relname, c.relkind, array_agg(lower(a.privilege_type) order by a.privilege_type)
from pg_class c join pg_namespace n on n.oid = c.relnamespace, aclexplode(c.relacl) a
where n.nspname = 'public' and c.relkind in ('r', 'v', 'S') and c.relname not like 'shop%%'
    and a.grantee = (select oid from pg_roles where rolname = %s)
group by c.relname, c.relkind
"""


def test_no_role_keeps_more_than_it_uses(hosted: str) -> None:
    used = {"r": ["delete", "insert", "select", "update"], "v": ["select"], "S": ["select", "usage"]}
    with psycopg.connect(hosted) as connection:
        for role in ("anon", "authenticated"):
            assert connection.execute(GRANTS, [role]).fetchall() == []
            for (table,) in connection.execute(
                "select relname from pg_class where relnamespace = 'public'::regnamespace and relkind in ('r', 'v')"
            ).fetchall():
                rights = "select, insert, update, delete, truncate, references, trigger"
                allowed = connection.execute("select has_table_privilege(%s, %s, %s)", [role, table, rights]).fetchone()
                assert allowed == (table == "shop",), (role, table)
            functions = connection.execute(
                """select proname from pg_proc where pronamespace = 'public'::regnamespace
                   and has_function_privilege(%s, oid, 'execute')""", [role],
            ).fetchall()  # fmt: skip
            assert functions == []
        kept = connection.execute(GRANTS, ["service_role"]).fetchall()
        assert len(kept) > 20
        assert [row for row in kept if row[2] != used[row[1]]] == []


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
def test_nobody_empties_a_table_through_the_api(hosted: str, role: str) -> None:
    with psycopg.connect(hosted) as connection:
        connection.execute(f"set role {role}".encode())
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("truncate epoch_results")
    with psycopg.connect(hosted) as connection:
        connection.execute("set role anon")
        connection.execute("insert into shop default values")  # the project's own tables are left alone


def test_a_users_table_stays_open_to_those_whom_a_policy_lets_in(template: str, empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(SUPABASES_DEFAULTS.encode())
        connection.execute(USERS_TABLES.encode())
        connection.execute("create policy page on training_runs for select to anon using (true)")
    migrate(empty_url)
    with psycopg.connect(empty_url) as connection:
        connection.execute("set role anon")
        assert connection.execute("select count(*) from training_runs").fetchone() == (3,)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("truncate training_runs cascade")


def test_a_failing_file_names_itself_and_leaves_nothing(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("create table training_runs (id text primary key, uid integer)")
    with pytest.raises(StoreError, match=FILES[0].name):
        migrate(empty_url)
    assert query(empty_url, "select to_regclass('campaigns')") == [(None,)]


def test_a_word_of_a_person_goes_into_the_columns_of_the_users_table(empty_url: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute(USERS_TABLES.encode())
    migrate(empty_url)
    store, run = PostgresStore(empty_url), make_run(0)
    store.save_run(run)
    store.save_epoch(make_epoch(run, 1))
    store.save_rating(
        HumanRating(
            uid=rating_uid(run.uid, 1),
            run_uid=run.uid,
            epoch_number=1,
            visual=7,
            prompt=6.5,
            words="ok",
            created_at=run.started_at,
        )
    )
    store.close()
    own = "visual_quality_score, style_match_score, prompt_adherence_score::text, observations"
    assert query(empty_url, f"select {own} from epoch_results order by id desc limit 1") == [(7, None, "6.5", "ok")]


def test_what_measurements_say_goes_into_the_users_columns(postgres_url: str) -> None:
    store, run = PostgresStore(postgres_url), make_run(0)
    overtrained = Diagnosis(
        issue="overtrained", category="progression", severity=0.5, cause="", recommendation="", confidence=1
    )
    mean = PictureMetrics(
        background_accuracy=20.0, edge_sharpness=1, pixel_art_purity=1, palette_size=9, palette_score=1, photorealism=1,
        dithering_score=1, grid_confidence=1, style=1, overall=1,
    )  # fmt: skip
    wrong = overtrained.changed(issue="wrong_background")
    store.save_run(run)
    store.save_epoch(make_epoch(run, 1).changed(quantitative_metrics=EpochMetrics(mean=mean), diagnosed_issues=()))
    store.save_epoch(
        make_epoch(run, 2).changed(quantitative_metrics=EpochMetrics(mean=mean), diagnosed_issues=(wrong,))
    )
    store.save_epoch(make_epoch(run, 3))  # without a measured picture
    store.save_run(run.changed(best_epoch=1, root_cause_diagnosis=(overtrained,), finished_at=run.started_at))
    store.close()
    flags = "select is_photorealistic, has_wrong_backgrounds, is_overtrained from epoch_results order by epoch_number"
    roadmap = "select quantitative_metrics->'color_accuracy'->>'background' from epoch_results where epoch_number = 1"
    assert query(postgres_url, roadmap) == [("20.0",)]
    assert query(postgres_url, "select all_parameters->>'network_dim' from training_runs") == [("16",)]
    assert query(postgres_url, flags) == [(False, False, False), (False, True, True), (None, None, None)]
