from __future__ import annotations

import pickle
import uuid

import pytest

from schema import errors
from schema.runs import EpochMetrics, Outcome, epoch_uid, run_uid

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
