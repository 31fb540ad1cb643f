"""The figure that is optimised: quality of an epoch, best epoch, and where a learning curve stands."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from enum import StrEnum

from schema.runs import EpochMetrics

Curve = Sequence[tuple[int, float]]
"""(epoch, quality 0-100) in order of epochs."""

TOLERANCE = 1.0
"""Quality points that count as no change: about the noise of a prompt suite drawn with fixed seeds."""

_FALL = 2 * TOLERANCE
_WINDOW = 4


class CurveState(StrEnum):
    """Where a learning curve stands at its last epoch."""

    IMPROVING = "improving"
    PLATEAU = "plateau"
    DEGRADING = "degrading"
    OSCILLATING = "oscillating"
    CONVERGED = "converged"


def quality_of(metrics: EpochMetrics) -> float | None:
    """Quality of an epoch (0-100): the mean overall score of its pictures; None where nothing was measured."""
    if metrics.mean is None or not math.isfinite(metrics.mean.overall):
        return None
    return min(max(metrics.mean.overall, 0.0), 100.0)


def best_epoch(curve: Curve) -> tuple[int, float] | None:
    """Epoch and quality of the best epoch, the earliest of equals; None for an empty curve."""
    return max(curve, key=lambda point: (point[1], -point[0]), default=None)


def curve_state(curve: Curve) -> CurveState:
    """Judge the last epochs of a curve.

    Converged: the last four epochs lie within a point. Oscillating: the last four changes are large
    and each reverses the one before. Degrading: the last two epochs lie well below the best.
    Plateau: no better by a point for two epochs. Else improving, as is a curve too short to tell.
    """
    values = [q for _, q in curve]
    if len(values) < 3:
        return CurveState.IMPROVING
    best = max(values)
    window = values[-_WINDOW:]
    if len(window) == _WINDOW and max(window) - min(window) <= TOLERANCE and best - max(window) <= _FALL:
        return CurveState.CONVERGED
    if _reversals(values[-_WINDOW - 1 :]) >= _WINDOW - 1:
        return CurveState.OSCILLATING
    if max(values[-2:]) < best - _FALL:
        return CurveState.DEGRADING
    if max(values[-2:]) <= max(values[:-2]) + TOLERANCE:
        return CurveState.PLATEAU
    return CurveState.IMPROVING


def _reversals(values: Sequence[float]) -> int:
    """How often a large change is followed by a large one the other way."""
    steps = [b - a for a, b in itertools.pairwise(values)]
    return sum(a * b < 0 and min(abs(a), abs(b)) > _FALL for a, b in itertools.pairwise(steps))
