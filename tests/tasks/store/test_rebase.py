from __future__ import annotations

from pathlib import Path

import psycopg
import pytest

from tasks.store.rebase import rebase_database, rebase_files

OLD, NEW = "/data/old home", "/data/old home/new \\ 'ü'"


@pytest.mark.parametrize(("old", "new"), [(OLD, NEW), (NEW, OLD), ("/a.b", "/a-b/c")])
def test_paths_change_everywhere_and_nothing_else_does(empty_url: str, old: str, new: str) -> None:
    with psycopg.connect(empty_url) as connection:
        connection.execute("create table t (a text, b jsonb, c text generated always as (a || 'x') stored)")
        connection.execute("create schema optuna create table u (value_json varchar)")
        connection.execute("insert into t (a, b) values (%s, %s::jsonb)", [f"{old}/base", "{}"])
        connection.execute(
            "insert into t (a, b) values (%s, jsonb_build_object('a', %s::text, 'b', jsonb_build_array(%s::text)))",
            [f"look in {old}: it is there", f"{old}/base", old],
        )
        connection.execute("insert into t (a, b) values (%s, '{}')", [f"{old}er/base /x{old}/base {old}-2"])
    assert rebase_database(empty_url, old, new) == 3
    assert rebase_database(empty_url, old, new) == 0 or old.startswith(new)
    with psycopg.connect(empty_url) as connection:
        rows = connection.execute("select a, b->>'a', b->'b'->>0 from t").fetchall()
    assert (f"{new}/base", None, None) in rows
    assert (f"look in {new}: it is there", f"{new}/base", new) in rows
    assert (f"{old}er/base /x{old}/base {old}-2", None, None) in rows


def test_what_trainers_wrote_down_changes_too(tmp_path: Path) -> None:
    trial = tmp_path / "night" / "000"
    trial.mkdir(parents=True)
    (trial / "events.jsonl").write_text('{"checkpoint": "/old/runs/a.safetensors"}\n{"torn": "/old/x')
    (trial / "trial.toml").write_text('model = "/older"\n')
    assert rebase_files(tmp_path, "/old", "/new") == 1
    assert (trial / "events.jsonl").read_text() == '{"checkpoint": "/new/runs/a.safetensors"}\n{"torn": "/new/x'
