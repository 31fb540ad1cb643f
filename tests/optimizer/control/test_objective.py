from __future__ import annotations

import pytest

from optimizer.control.objective import CurveState, best_epoch, curve_state, quality_of
from schema.runs import EpochMetrics
from tests.optimizer.worlds import metrics


def test_quality_is_the_mean_overall_score_or_nothing() -> None:
    assert quality_of(metrics(63.5)) == 63.5
    assert quality_of(EpochMetrics()) is None
    assert quality_of(metrics(float("nan"))) is None


def test_best_epoch_is_the_earliest_of_equals() -> None:
    assert best_epoch([(1, 40.0), (2, 60.0), (3, 60.0), (4, 50.0)]) == (2, 60.0)
    assert best_epoch([]) is None


@pytest.mark.parametrize(
    ("values", "state"),
    [
        ([], "improving"),
        ([40], "improving"),
        ([10, 20, 30, 40], "improving"),
        ([10, 30, 50, 50.5, 50.2, 50.8, 50.4], "converged"),
        ([10, 40, 60, 60.5, 58.2, 60.1], "plateau"),
        ([10, 40, 70, 62, 55], "degrading"),
        ([30, 50, 30, 50, 30], "oscillating"),
    ],
)
def test_state_of_a_curve(values: list[float], state: str) -> None:
    assert curve_state(list(enumerate(values, start=1))) is CurveState(state)
