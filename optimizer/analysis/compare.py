"""Two runs side by side: what was set differently, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.history import best_quality, judged_epoch
from optimizer.space import active
from schema.parameters import ParameterValue
from schema.runs import RunHistory


@dataclass(frozen=True)
class Comparison:
    """Differences of run b against run a.

    Attributes:
        parameters: (a, b) of each parameter that differs; None where it is not set or without effect.
        quality: best qualities, 0-100.
        metrics: (a, b) of each measurement that differs at the best epochs.
        curves: (epoch, quality) of both.
    """

    parameters: dict[str, tuple[ParameterValue, ParameterValue]]
    quality: tuple[float | None, float | None]
    metrics: dict[str, tuple[float | None, float | None]]
    curves: tuple[tuple[tuple[int, float], ...], tuple[tuple[int, float], ...]]


def compare(a: RunHistory, b: RunHistory) -> Comparison:
    """Set two runs against each other."""
    one, two = active(a.run.all_parameters), active(b.run.all_parameters)
    left, right = _figures(a), _figures(b)
    return Comparison(
        parameters={name: (one[name], two[name]) for name in one if one[name] != two[name]},
        quality=(best_quality(a), best_quality(b)),
        metrics={n: (left.get(n), right.get(n)) for n in left | right if left.get(n) != right.get(n)},
        curves=(a.curve, b.curve),
    )


def _figures(run: RunHistory) -> dict[str, float]:
    """All measured numbers of the best epoch."""
    judged = judged_epoch(run)
    mean = judged.quantitative_metrics.mean if judged is not None else None
    if mean is None:
        return {}
    return {n: float(v) for n, v in mean if isinstance(v, int | float) and not isinstance(v, bool)}
