from __future__ import annotations

import io

import pytest
from rich.console import Console, RenderableType

from schema.findings import Decision
from tasks.reports.terminal import comparison_view, diagnosis_view, experiments_view, prediction_panel
from tests.tasks.reports import factory


def printed(view: RenderableType, width: int = 100) -> str:
    console = Console(width=width, file=io.StringIO(), color_system=None, record=True)
    console.print(view)
    return console.export_text()


def test_a_prediction_comes_with_the_gates_reason() -> None:
    text = printed(prediction_panel(factory.prediction(nearest=("night-001",)), factory.verdict(Decision.SKIP)), 140)
    for part in ("70.0", "62.0 to 78.0", "10 %", "night-001", "would be refused (known failure): 3 of 3 runs"):
        assert part in text
    assert "would run" in printed(prediction_panel(factory.prediction(), factory.verdict()))


@pytest.mark.parametrize("width", [80, 120])
def test_a_diagnosis_shows_every_epoch_the_cause_and_the_mend(width: int) -> None:
    text = printed(diagnosis_view(factory.night()[0]), width)
    for part in ("night-000", "31.0", "66.0", "wrong background", "cause", "mend", "0.0500"):
        assert part in text
    assert max(map(len, text.splitlines())) <= width


def test_a_run_that_failed_at_once_is_explained_without_epochs() -> None:
    text = printed(diagnosis_view(factory.night()[5]))
    assert "CUDA ran out of memory at step 1." in text
    assert "epoch" not in text


def test_a_healthy_run_is_said_to_be_healthy() -> None:
    assert "Nothing is wrong that was measured." in printed(diagnosis_view(factory.night()[1]))


def test_experiments_come_by_priority_with_their_reasons() -> None:
    text = printed(experiments_view(factory.analysis().hypotheses[::-1]))
    assert text.index("network_dim=8") < text.index("learning_rate=0.0003")
    assert "84.0 (+2.5)" in text
    assert "p(fail) 10 %, proposed" in " ".join(text.split())
    assert "No experiment is proposed yet" in printed(experiments_view([]))


def test_a_comparison_shows_only_what_differs_and_how_fair_it_is() -> None:
    night = factory.night()
    text = printed(comparison_view(night[0], night[1]))
    assert "learning_rate" in text
    assert "network_dim" not in text
    assert "+12.2" in text
    assert "2 parameters differ" in text
    assert "chance" in printed(comparison_view(night[0], night[0]))


def test_one_changed_parameter_is_a_paired_comparison() -> None:
    a, b = factory.history(0, (50.0,), {"network_dim": 8}), factory.history(1, (), {"network_dim": 16})
    assert "a paired comparison" in printed(comparison_view(a, b))
