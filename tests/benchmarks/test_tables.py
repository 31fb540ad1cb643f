from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.made_up import made_up_tables
from benchmarks.replay import Replay, is_grid, regret
from benchmarks.tables import load_table, load_tables
from schema.errors import ConfigError

ABOUT = {
    "parameters": [
        {"name": "lr", "low": 1e-4, "high": 1e-1, "log": True, "integer": False},
        {"name": "kind", "choices": ["a", "b"], "ordered": False},
    ]
}


def write(folder: Path, configs: str, curves: str, about: object = ABOUT) -> Path:
    folder.mkdir()
    (folder / "table.json").write_text(json.dumps(about), encoding="utf-8")
    (folder / "configs.csv").write_text("config,lr,kind,failed\n" + configs, encoding="utf-8")
    with gzip.open(folder / "curves.csv.gz", "wt", encoding="utf-8") as file:
        file.write("config,1,2\n" + curves)
    return folder


def test_a_table_is_read_with_its_failures(tmp_path: Path) -> None:
    configs = "0,0.001,a,0\n1,0.01,b,0\n2,0.1,a,1\n3,0.1,b,0\n"
    table = load_table(write(tmp_path / "one-x", configs, "0,3,2\n1,2,2.5\n2,4,\n3,1,\n"))
    assert table.settings[1] == {"lr": 0.01, "kind": "b"}
    assert table.failed.tolist() == [False, False, True, True]  # a curve that breaks off is a failure too
    assert table.losses[:2].tolist() == [2.0, 2.0]
    assert table.family == "one"
    assert load_tables(tmp_path)[0].name == "one-x"


def test_a_folder_that_holds_none_is_told_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no tables"):
        load_tables(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_table(write(tmp_path / "bad", "0,fast,a,0\n1,slow,b,0\n", "0,1,2\n1,1,2\n"))


def test_a_grid_answers_with_what_was_measured() -> None:
    sweep = next(t for t in made_up_tables() if t.name.startswith("sweep"))
    assert is_grid(sweep)
    replay = Replay(sweep)
    for row, setting in enumerate(sweep.settings):
        ran = replay.run(setting)
        assert ran.failed == sweep.failed[row]
        if not ran.failed:
            assert ran.quality == pytest.approx(float(replay.quality(sweep.losses[row : row + 1])[0]))
    best = sweep.settings[int(np.nanargmin(sweep.losses))]
    assert regret(replay.run(best).quality) == pytest.approx(0.0)


def test_a_model_answers_near_what_was_measured_and_fails_as_often() -> None:
    table = next(t for t in made_up_tables() if t.name == "failing-a")
    replay = Replay(table)
    rng = np.random.default_rng(1)
    ran = [replay.run(table.space.at(u)) for u in rng.random((150, len(table.space.names)))]
    assert np.mean([r.failed for r in ran]) == pytest.approx(table.failed.mean(), abs=0.1)
    assert all(r.cost < 1 for r in ran if r.failed)
    told = [replay.run(table.settings[i]).quality for i in range(40) if not table.failed[i]]
    came = [replay.measured(i).quality for i in range(40) if not table.failed[i]]
    known = [(a, b) for a, b in zip(told, came, strict=True) if a is not None and b is not None]
    assert np.corrcoef(*zip(*known, strict=True))[0, 1] > 0.9
