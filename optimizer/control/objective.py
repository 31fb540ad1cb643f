"""Define the objective: quality of an epoch, best epoch, and the state of a learning curve."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import StrEnum

from schema.runs import EpochMetrics

Curve = Sequence[tuple[int, float]]
"""(epoch, quality) pairs in order of epochs. Quality is 0-100."""

TOLERANCE = 1.0
"""Quality points that count as no change. This is about the noise of a prompt suite drawn with fixed seeds."""

_FALL = 2 * TOLERANCE
"""Quality points that count as a large change: twice the noise. Chosen by hand."""

_WINDOW = 4
"""Epochs (converged), or changes between epochs (oscillating), to judge a curve by. Chosen by hand."""


class CurveState(StrEnum):
    """Name the state of a learning curve at its last epoch."""

    IMPROVING = "improving"
    PLATEAU = "plateau"
    DEGRADING = "degrading"
    OSCILLATING = "oscillating"
    CONVERGED = "converged"


def quality_of(metrics: EpochMetrics) -> float | None:
    """Return the quality of an epoch (0-100), the mean overall score of its pictures; None if nothing was measured."""
    if metrics.mean is None or not math.isfinite(metrics.mean.overall):
        return None
    return min(max(metrics.mean.overall, 0.0), 100.0)


def best_epoch(curve: Curve) -> tuple[int, float] | None:
    """Return number and quality of the best epoch, the earliest of equals; None for an empty curve."""
    return max(curve, key=lambda point: (point[1], -point[0]), default=None)


def curve_state(curve: Curve) -> CurveState:
    """Classify the end of a learning curve. The first state that applies is returned.

    Converged: the last four epochs lie within one point, near the best. Oscillating: the last four changes are large
    and each reverses the one before. Degrading: the last two epochs lie well below the best.
    Plateau: the last two epochs are not better by more than a point. Improving: all others, and curves of
    fewer than three epochs.
    """
    values = [q for _, q in curve]
    if len(values) < 3:
        return CurveState.IMPROVING
    best = max(values)
    window = values[-_WINDOW:]
    if len(window) == _WINDOW and max(window) - min(window) <= TOLERANCE and best - max(window) <= _FALL:
        return CurveState.CONVERGED
    # Four changes need five epochs.
    if _reversals(values[-_WINDOW - 1 :]) >= _WINDOW - 1:
        return CurveState.OSCILLATING
    if max(values[-2:]) < best - _FALL:
        return CurveState.DEGRADING
    if max(values[-2:]) <= max(values[:-2]) + TOLERANCE:
        return CurveState.PLATEAU
    return CurveState.IMPROVING


def _reversals(values: Sequence[float]) -> int:
    """Count the large changes that are followed by a large change in the other direction."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return sum(a * b < 0 and min(abs(a), abs(b)) > _FALL for a, b in itertools.pairwise(steps))
