from __future__ import annotations

import json
import pickle
import uuid

import pytest

from schema import errors
from schema.runs import EpochMetrics, Outcome, PictureMetrics, epoch_uid, run_uid

HOME = uuid.UUID(int=1)


def test_identities_are_the_same_each_time_and_differ_between_runs() -> None:
    assert run_uid(HOME, "night", 3) == run_uid(HOME, "night", 3)
    assert len({run_uid(HOME, "night", 3), run_uid(HOME, "night", 4), run_uid(uuid.UUID(int=2), "night", 3)}) == 3
    assert epoch_uid(run_uid(HOME, "night", 3), 1) != epoch_uid(run_uid(HOME, "night", 3), 2)


@pytest.mark.parametrize("outcome", Outcome)
def test_only_divergence_and_memory_blame_the_parameters(outcome: Outcome) -> None:
    assert outcome.blames_parameters == (outcome in {Outcome.DIVERGED, Outcome.OUT_OF_MEMORY})
    assert not outcome.blames_parameters or outcome.failed


def test_records_refuse_unknown_fields() -> None:
    with pytest.raises(ValueError, match="extra"):
        EpochMetrics.model_validate({"qualty": 3})


@pytest.mark.parametrize("error", [e for e in vars(errors).values() if isinstance(e, type)])
def test_errors_travel_between_processes(error: type[Exception]) -> None:
    assert str(pickle.loads(pickle.dumps(error("disk full: free some space")))) == "disk full: free some space"


def test_colour_accuracy_is_written_beside_the_rest_and_ignored_when_read() -> None:
    mean = PictureMetrics(
        background_accuracy=90.0, colour=60.25, accessories={"hat": 40.0}, edge_sharpness=1, pixel_art_purity=1,
        palette_size=9, palette_score=1, dithering_score=1, photorealism=1, grid_confidence=1, style=1, overall=1,
    )  # fmt: skip
    metrics = EpochMetrics(mean=mean)
    written = json.loads(metrics.model_dump_json())
    assert written["color_accuracy"] == {
        "overall": 60.25, "background": 90.0, "hair": None, "crown": None, "purity": None, "hat": 40.0
    }  # fmt: skip
    written["color_accuracy"]["overall"] = 1.0
    assert EpochMetrics.model_validate(written) == metrics
    assert EpochMetrics.model_validate_json(json.dumps(written)) == metrics
    assert EpochMetrics().model_dump()["color_accuracy"] == {}
