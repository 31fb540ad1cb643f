"""Runs of earlier days, a person's scores and moving house, as a person does them on the command line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove
from tests.flows.cli.test_main import pixelloop

SCORES = """run_name,epoch,visual,style,prompt,words,network_dim
knights-v7,7,6,6,6,colours bleed,64
knights-v8,7,8,9,7,background right at last,16
knights-v8,10,5,6,6,background wrong again,16
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a home that holds two imported runs."""
    place = tmp_path_factory.mktemp("drawer")
    (place / "scores.csv").write_text(SCORES)
    done = pixelloop("import", "scores.csv", "--home", "old", cwd=place)
    assert done.returncode == 0, done.stderr
    yield place
    for home in ("old", "new"):
        remove(EmbeddedPostgres(place / home / "postgres"))


def answer(place: Path, *arguments: str, home: str = "old") -> Any:
    done = pixelloop(*arguments, "--home", home, "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_importing_twice_changes_nothing(place: Path) -> None:
    again = answer(place, "import", "scores.csv")
    assert [(run["run_name"], run["end"]) for run in again["runs"]] == [
        ("knights-v7", "unchanged"), ("knights-v8", "unchanged")
    ]  # fmt: skip


def test_imported_runs_are_found_by_the_commands(place: Path) -> None:
    assert {run["run_name"] for run in answer(place, "status")["runs"]} == {"knights-v7", "knights-v8"}
    assert [run["run_name"] for run in answer(place, "runs", "--where", "network_dim > 32")] == ["knights-v7"]
    assert answer(place, "compare", "knights-v7", "knights-v8")["parameters"]["network_dim"] == [64, 16]


def test_what_needs_a_campaign_file_says_so(place: Path) -> None:
    done = pixelloop("impact", "--home", "old", cwd=place)
    assert done.returncode == 2
    assert "holds runs made elsewhere" in done.stderr


def test_a_persons_scores_are_kept_and_replaced(place: Path) -> None:
    for visual, quality in (("9", 80.0), ("10", 83.3)):
        told = answer(place, "log", "7", visual, "8", "7", "crown is there", "--run", "knights-v8")
        assert told["quality"] == pytest.approx(quality, abs=0.1)
    by_number = answer(place, "log", "7", "10", "8", "7", "--run", "1")
    assert by_number["run"] == "knights-v8"
    missing = pixelloop("log", "3", "9", "8", "7", "--run", "knights-v9", "--home", "old", cwd=place)
    assert missing.returncode == 2
    assert "no run knights-v9" in missing.stderr


def test_everything_moves_in_one_file(place: Path) -> None:
    out = answer(place, "db", "export", "all.jsonl.gz")
    assert out["training_runs"] == 2
    assert answer(place, "db", "import", "all.jsonl.gz", home="new") == out
    assert answer(place, "db", "export", "again.jsonl.gz", home="new") == out
    assert (place / "again.jsonl.gz").read_bytes() == (place / "all.jsonl.gz").read_bytes()
    assert answer(place, "db", "migrate", home="new") == {"applied": []}


def test_an_import_that_could_not_be_read_again_leaves_the_rows_alone(place: Path) -> None:
    answer(place, "db", "export", "good.jsonl")
    before = answer(place, "status")
    lines = [json.loads(line) for line in (place / "good.jsonl").read_text().splitlines()]
    for number, line in enumerate(lines, 1):
        if line.get("table") == "training_runs":
            line["row"]["all_parameters"], bad = [1, 2, 3], number
    (place / "bad.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = pixelloop("db", "import", "bad.jsonl", "--home", "old", cwd=place)
    assert done.returncode == 2
    assert "all_parameters cannot be [1, 2, 3]" in " ".join(done.stderr.split())
    assert bad
    assert answer(place, "status") == before


def test_a_database_that_is_gone_is_not_replaced_by_an_empty_one(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "runs" / "night" / "000").mkdir(parents=True)
    (home / "home.json").write_text(json.dumps({"uid": "c4aeadc8-dfde-46d6-9eaa-2ae71b0acacd"}))
    for command in (["status"], ["runs", "--json"]):
        done = pixelloop(*command, "--home", "home", cwd=tmp_path)
        assert done.returncode == 2
        assert "is missing, though the home holds trials: restore a backup" in " ".join(done.stderr.split())
    assert sorted(path.name for path in home.iterdir()) == ["home.json", "runs"]
