from __future__ import annotations

import logging
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import get_all_artifact_meta
from optuna_dashboard import get_note

from schema.errors import NotFoundError, StoreError
from tasks.dashboard.annotate import annotate_study, annotate_trial, attach_sheet
from tasks.reports.charts import calibration, quality_curves
from tests.tasks.reports import factory


def note_of(study: optuna.Study, number: int = 0) -> str:
    return str(get_note(optuna.Trial(study, study.trials[number]._trial_id)))


def test_a_sheet_is_attached_while_the_trial_runs(study: optuna.Study, artifact_dir: Path, sheets: list[Path]) -> None:
    artifact = attach_sheet(study, 0, artifact_dir, sheets[0])
    [meta] = get_all_artifact_meta(study_or_trial=study.trials[0], storage=study._storage)
    assert (meta.artifact_id, meta.filename, meta.mimetype) == (artifact, "epoch-001.png", "image/png")
    assert (artifact_dir / artifact).read_bytes() == sheets[0].read_bytes()


def test_a_replayed_epoch_replaces_its_sheet(study: optuna.Study, artifact_dir: Path, sheets: list[Path]) -> None:
    first = attach_sheet(study, 0, artifact_dir, sheets[0])
    sheets[0].write_bytes(sheets[1].read_bytes())
    assert attach_sheet(study, 0, artifact_dir, sheets[0]) == first
    assert (artifact_dir / first).read_bytes() == sheets[1].read_bytes()
    assert len(get_all_artifact_meta(study_or_trial=study.trials[0], storage=study._storage)) == 1


def test_a_picture_lost_after_its_record_was_written_comes_back(
    study: optuna.Study, artifact_dir: Path, sheets: list[Path]
) -> None:
    artifact = attach_sheet(study, 0, artifact_dir, sheets[0])
    (artifact_dir / artifact).unlink()
    attach_sheet(study, 0, artifact_dir, sheets[0])
    assert (artifact_dir / artifact).exists()


def test_a_finished_trial_takes_no_new_sheet_but_a_replayed_one(
    study: optuna.Study, artifact_dir: Path, sheets: list[Path]
) -> None:
    known = attach_sheet(study, 0, artifact_dir, sheets[0])
    study.tell(0, 71.0)
    assert attach_sheet(study, 0, artifact_dir, sheets[0]) == known
    with pytest.raises(StoreError, match=r"trial 0 is finished, so epoch-002\.png cannot be attached"):
        attach_sheet(study, 0, artifact_dir, sheets[1])


def test_missing_trials_and_sheets_are_named(study: optuna.Study, artifact_dir: Path, sheets: list[Path]) -> None:
    with pytest.raises(NotFoundError, match="study night has no trial 7"):
        attach_sheet(study, 7, artifact_dir, sheets[0])
    with pytest.raises(NotFoundError, match=r"absent\.png does not exist"):
        attach_sheet(study, 0, artifact_dir, sheets[0].with_name("absent.png"))
    assert not get_all_artifact_meta(study_or_trial=study.trials[0], storage=study._storage)


def test_the_note_shows_the_newest_sheet_and_can_be_rewritten_after_the_end(
    study: optuna.Study, artifact_dir: Path, sheets: list[Path]
) -> None:
    annotate_trial(study, 0, artifact_dir, "first", [sheets[2], sheets[0], sheets[1]])
    newest = attach_sheet(study, 0, artifact_dir, sheets[2])
    study.tell(0, 71.0)
    annotate_trial(study, 0, artifact_dir, "last word " + "x" * 5000)
    note = note_of(study)
    assert note.startswith("![epoch-003.png](/artifacts/")
    assert note.splitlines()[0].endswith(f"/{newest})")
    assert note.endswith("last word " + "x" * 5000)


def test_a_trial_without_sheets_has_a_plain_note(study: optuna.Study, artifact_dir: Path) -> None:
    annotate_trial(study, 0, artifact_dir, "gated")
    assert note_of(study) == "gated"


def test_the_study_shows_its_note_and_charts(study: optuna.Study) -> None:
    chart = quality_curves(factory.night(), factory.base_model(), "night-001")
    annotate_study(study, "# night", {"quality": chart})
    annotate_study(study, "# night, later", {"quality": chart, "predicted": calibration(factory.night())})
    assert get_note(study) == "# night, later"
    attributes = study._storage.get_study_system_attrs(study._study_id)
    for name in ("quality", "predicted"):
        assert any(key.startswith(f"dashboard:plot_data:{name}:") for key in attributes)


def test_a_chart_too_large_for_the_dashboard_is_left_out_with_a_warning(
    study: optuna.Study, caplog: pytest.LogCaptureFixture
) -> None:
    huge = {"data": [{"type": "scatter", "y": list(range(60_000))}], "layout": {}}
    with caplog.at_level(logging.WARNING):
        annotate_study(study, "note", {"huge": huge})
    assert "chart huge is left out of the dashboard" in caplog.text
    assert get_note(study) == "note"
