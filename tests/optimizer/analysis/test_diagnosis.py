from __future__ import annotations

from typing import Any

import pytest

from optimizer.analysis import diagnose_epoch, diagnose_run
from schema.runs import EpochMetrics, Outcome, RunHistory
from tests.optimizer.worlds import a_run, metrics, random_runs, space_of

SPACE = space_of()


def epoch_issues(found: EpochMetrics) -> set[str]:
    run = a_run(0, SPACE.complete({}), 50.0).run
    return {d.issue for d in diagnose_epoch(found, 3, 5, run, [])}


@pytest.mark.parametrize(
    ("found", "issue"),
    [
        (metrics(photorealism=80.0), "photorealistic"),
        (metrics(shares={"photorealistic_share": 0.5}), "photorealistic"),
        (metrics(background_accuracy=20.0), "wrong_background"),
        (metrics(hair_accuracy=20.0), "wrong_hair"),
        (metrics(shares={"two_tone_share": 0.6}), "two_toned_hair"),
        (metrics(shares={"crown_share": 0.1}), "missing_crown"),
        (metrics(palette_score=10.0, palette_size=400), "noisy_palette"),
        (metrics(edge_sharpness=10.0), "blurred"),
        (metrics(colour=0.0, photorealism=90.0, edge_sharpness=10.0, background_accuracy=0.0), "collapsed"),
    ],
)
def test_each_issue_is_found_alone(found: EpochMetrics, issue: str) -> None:
    assert epoch_issues(found) == {issue}


def test_clean_or_unmeasured_pictures_have_no_issues() -> None:
    assert epoch_issues(metrics(80.0)) == set()
    assert epoch_issues(EpochMetrics()) == set()
    assert epoch_issues(metrics(background_accuracy=None, hair_accuracy=None)) == set()


def ranked(dims: list[int]) -> list[RunHistory]:
    """Runs that are photorealistic from rank 64 on, and nothing else."""
    return [
        a_run(i, SPACE.complete({"network_dim": d}), epochs=[metrics(60.0, photorealism=80.0 if d >= 64 else 5.0)])
        for i, d in enumerate(dims)
    ]


def test_the_cause_is_learnt_from_runs_with_and_without_the_issue() -> None:
    history = ranked([8, 16, 24, 32, 64, 96, 128, 12, 80])
    (found,) = diagnose_run(history[6], history, SPACE)
    assert found.issue == "photorealistic"
    assert found.cause.startswith("network_dim >= 64: 4 of 4 such runs show it, but 0 of the 5 others")
    assert "network_dim = " in found.recommendation
    assert found.confidence > 0.6
    assert "night-004" in found.evidence


def test_without_history_general_experience_is_named_as_such() -> None:
    (found,) = diagnose_run(ranked([128])[0], [], SPACE)
    assert "general experience" in found.cause
    assert "network_dim = 128" in found.cause
    assert found.confidence < 0.5


def test_runs_on_other_data_are_no_evidence() -> None:
    history = ranked([8, 16, 24, 32, 64, 96, 128, 12, 80])
    foreign = [RunHistory(run=h.run.changed(dataset="other"), epochs=h.epochs) for h in history[:6]]
    (found,) = diagnose_run(history[6], foreign, SPACE)
    assert "general experience" in found.cause


def test_parameters_that_changed_together_are_never_blamed_singly() -> None:
    history = [
        a_run(i, SPACE.complete({"network_dim": d, "caption_dropout_rate": d / 1000}), None if d >= 64 else 60.0)
        for i, d in enumerate([8, 16, 24, 32, 64, 96, 128, 12, 80])
    ]
    (found,) = diagnose_run(history[6], history, SPACE)
    assert "network_dim" in found.cause
    assert "caption_dropout_rate" in found.cause
    assert "changed together" in found.cause


def test_an_issue_that_others_outgrew_is_normal_for_the_epoch() -> None:
    early, late = metrics(30.0, background_accuracy=20.0), metrics(70.0)
    history = [a_run(i, SPACE.complete({"network_dim": 8 + i}), epochs=[early, early, late, late]) for i in range(4)]
    run = a_run(9, SPACE.complete({}), 50.0).run
    (at_two,) = diagnose_epoch(early, 2, 4, run, history)
    assert at_two.normal_for_epoch
    assert any("4 of 4" in e for e in at_two.evidence)
    (at_four,) = diagnose_epoch(early, 4, 4, run, history)
    assert not at_four.normal_for_epoch
    assert diagnose_epoch(early, 0, 4, run, history) == ()


@pytest.mark.parametrize(
    ("made", "issue"),
    [
        ({"outcome": Outcome.DIVERGED}, "diverged"),
        ({"outcome": Outcome.OUT_OF_MEMORY}, "oom"),
        ({"outcome": Outcome.BAD_DATA}, "bad_data"),
        ({"outcome": Outcome.CRASHED, "failure": "the disk is full"}, "crashed"),
        ({"quality": 4.0}, "low_quality"),
        ({"curve": [30, 60, 70, 50, 40]}, "overtrained"),
        ({"curve": [30, 40, 50, 60, 70]}, "undertrained"),
        ({"curve": [30, 60, 30, 60, 30]}, "oscillating"),
    ],
)
def test_every_bad_end_gets_a_diagnosis_with_something_to_do(made: dict[str, Any], issue: str) -> None:
    found = diagnose_run(a_run(0, SPACE.complete({}), **made), [], SPACE)
    assert [d.issue for d in found] == [issue]
    assert found[0].recommendation
    assert found[0].evidence


def test_every_failed_run_of_a_night_is_diagnosed() -> None:
    history = random_runs(SPACE, 30, seed=3)
    for run in history:
        bad = run.run.quality is None or run.run.quality < SPACE.failed_quality
        assert bool(diagnose_run(run, history, SPACE)) == bad
