from __future__ import annotations

import json
import random

import pytest
from rich.console import Console

from schema.runs import Outcome
from tasks.reports.leaderboard import base_row, best_result, differing_parameters, leaderboard, rich_table
from tests.tasks.reports import factory


def printed(*args: object, width: int) -> str:
    console = Console(width=width, record=True, color_system=None, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*args)
    return console.export_text()


def test_runs_are_ranked_by_quality_and_failed_ones_stand_last() -> None:
    rows = leaderboard(factory.night())
    assert [row.run_name for row in rows] == [f"night-00{n}" for n in (1, 0, 4, 2, 3, 5)]
    assert [row.rank for row in rows] == [1, 2, 3, 4, None, None]
    assert [row.failed for row in rows] == [False] * 4 + [True] * 2


def test_a_failed_run_is_last_however_good_it_looked() -> None:
    rows = leaderboard([factory.history(0, (99.0,), outcome=Outcome.DIVERGED), factory.history(1, (30.0,))])
    assert [(row.number, row.rank) for row in rows] == [(1, 1), (0, None)]


def test_the_order_of_the_history_does_not_matter() -> None:
    night = factory.night()
    shuffled = random.Random(3).sample(night, len(night))
    assert leaderboard(shuffled) == leaderboard(night)


def test_a_tie_goes_to_the_earlier_run() -> None:
    rows = leaderboard([factory.history(2, (50.0,)), factory.history(1, (50.0,))])
    assert [row.number for row in rows] == [1, 2]


def test_a_running_run_takes_part_with_its_best_epoch_so_far() -> None:
    rows = leaderboard([factory.history(0, (40.0,)), factory.history(1, (35.0, 61.0, 55.0), outcome=None)])
    assert (rows[0].run_name, rows[0].quality, rows[0].best_epoch) == ("night-001", 61.0, 2)
    assert rows[0].outcome == "running"


def test_figures_are_those_of_the_best_epoch() -> None:
    first = leaderboard(factory.night())[0]
    best = best_result(factory.night()[1])
    assert best is not None
    mean = best.quantitative_metrics.mean
    assert mean is not None
    assert (first.colour, first.background, first.purity) == (
        mean.colour,
        mean.background_accuracy,
        mean.pixel_art_purity,
    )
    assert first.crown is None


def test_a_run_that_began_with_the_base_model_is_not_judged_by_it() -> None:
    history = factory.history(0, (20.0,))
    base = factory.epoch(history.run.uid, 0, 90.0)
    with_base = history.changed(epochs=(base, *history.epochs), run=history.run.changed(best_epoch=None))
    best = best_result(with_base)
    assert best is not None
    assert best.epoch_number == 1


def test_only_parameters_that_differ_are_listed_in_taxonomy_order() -> None:
    assert differing_parameters(factory.night()) == ["network_dim", "learning_rate", "keep_tokens"]
    assert differing_parameters([factory.history(0, (50.0,))]) == []


def test_a_computed_parameter_is_no_setting() -> None:
    runs = [
        factory.history(n, (50.0,), all_parameters={"total_steps": n, "network_dim": 8, "of_an_old_kohya": n})
        for n in (1, 2)
    ]
    assert differing_parameters(runs) == ["of_an_old_kohya"]


def test_an_empty_history_has_an_empty_leaderboard() -> None:
    assert leaderboard([]) == []
    assert "quality" in printed(rich_table([]), width=80)


def test_rows_are_json() -> None:
    rows = [row.model_dump(mode="json") for row in leaderboard(factory.night())]
    assert json.loads(json.dumps(rows))[0]["parameters"] == {
        "network_dim": 16,
        "learning_rate": 4e-4,
        "keep_tokens": 1,
    }


@pytest.mark.parametrize("width", [60, 80, 140])
def test_every_run_its_outcome_and_settings_fit_the_terminal(width: int) -> None:
    text = printed(rich_table(leaderboard(factory.night()), base_row(factory.base_model())), width=width)
    for number in range(6):
        assert f"night-00{number}" in text
    assert "out of memory" in text
    assert "base model" in text
    assert "network_dim=16, learning_rate=0.0004" in text
    assert max(map(len, text.splitlines())) <= width


def test_names_that_look_like_markup_are_printed_as_they_are() -> None:
    rows = leaderboard([factory.history(0, (50.0,), run_name="[red]x[/]")])
    assert "[red]x[/]" in printed(rich_table(rows), width=120)
