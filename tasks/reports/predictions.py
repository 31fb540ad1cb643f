"""Compare the surrogate's predictions with the results."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from schema.base import Frozen
from schema.findings import Prediction
from schema.runs import RunHistory, TrainingRun

TOLERANCE = 0.15
"""Largest error of a good prediction, as a share of the result. Messages and `within` say 15 % too."""


class PredictionCheck(Frozen):
    """Hold a prediction and the result."""

    run_name: str
    prediction: Prediction
    actual: float = Field(description="quality of the best epoch, 0-100")
    error: float = Field(description="actual minus predicted, quality points")
    within: bool = Field(description="off by at most 15 % of the result")
    in_interval: bool


def check_prediction(run: TrainingRun) -> PredictionCheck | None:
    """Compare a run's prediction with its quality; None if either is missing."""
    if run.predicted is None or run.quality is None:
        return None
    predicted, error = run.predicted, run.quality - run.predicted.quality
    return PredictionCheck(
        run_name=run.run_name,
        prediction=predicted,
        actual=run.quality,
        error=error,
        within=abs(error) <= TOLERANCE * run.quality,
        in_interval=predicted.low <= run.quality <= predicted.high,
    )


def check_predictions(history: Sequence[RunHistory]) -> list[PredictionCheck]:
    """Return all comparisons that can be made, by campaign and trial number."""
    runs = sorted((each.run for each in history), key=lambda run: (run.campaign, run.number))
    return [check for run in runs if (check := check_prediction(run)) is not None]


def tally(checks: Sequence[PredictionCheck]) -> str:
    """Summarise the comparisons in one sentence."""
    if not checks:
        return "No run has both a prediction and a result yet."
    within, inside = sum(c.within for c in checks), sum(c.in_interval for c in checks)
    return f"{within} of {len(checks)} within 15 % of the result; {inside} of {len(checks)} inside their interval."
