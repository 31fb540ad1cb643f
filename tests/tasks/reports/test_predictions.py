from __future__ import annotations

import pytest

from tasks.reports.charts import calibration
from tasks.reports.predictions import check_prediction, check_predictions, tally
from tests.tasks.reports import factory


@pytest.mark.parametrize(("predicted", "within"), [(68.1, True), (91.9, True), (67.9, False), (92.1, False)])
def test_fifteen_percent_are_counted_from_the_result(predicted: float, within: bool) -> None:
    check = check_prediction(factory.history(0, (80.0,), predicted=factory.prediction(predicted)).run)
    assert check is not None
    assert check.within is within
    assert check.error == pytest.approx(80.0 - predicted)


def test_runs_without_prediction_or_result_are_left_out() -> None:
    checks = check_predictions(factory.night()[::-1])
    assert [check.run_name for check in checks] == ["night-000", "night-001", "night-002", "night-004"]
    assert tally([]) == "No run has both a prediction and a result yet."


def test_the_chart_lays_results_over_predictions_with_their_intervals() -> None:
    night = factory.night()
    points, exact = calibration(night)["data"]
    checks = check_predictions(night)
    assert points["x"] == [check.prediction.quality for check in checks]
    assert points["y"] == [check.actual for check in checks]
    assert all(width >= 0 for side in ("array", "arrayminus") for width in points["error_x"][side])
    assert exact["x"] == exact["y"] == [min(points["x"] + points["y"]), max(points["x"] + points["y"])]
    assert calibration([])["data"][0]["x"] == []
