"""Collect each measure over a run's epochs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from schema.runs import EpochMetrics, EpochResult


def _mean_of(field: str) -> Callable[[EpochMetrics], float | None]:
    return lambda metrics: getattr(metrics.mean, field) if metrics.mean is not None else None


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


MEASURES: dict[str, Callable[[EpochMetrics], float | None]] = {
    "colour": _mean_of("colour"),
    "background": _mean_of("background_accuracy"),
    "hair": _mean_of("hair_accuracy"),
    "crown": _mean_of("crown_accuracy"),
    "style": _mean_of("style"),
    "pixel-art purity": _mean_of("pixel_art_purity"),
    "worst prompt": lambda metrics: metrics.worst,
    "diversity": lambda metrics: metrics.diversity,
    "two-toned hair %": lambda metrics: _percent(metrics.two_tone_share),
    "photorealism": _mean_of("photorealism"),
    "memorised %": lambda metrics: _percent(metrics.memorised_share),
}
"""Measures over the epochs, all 0-100. For the last three, lower is better."""


@dataclass(frozen=True)
class Progression:
    """Hold one measure's figures, one an epoch; None where it was not measured."""

    measure: str
    figures: tuple[float | None, ...]


def progressions(epochs: Sequence[EpochResult]) -> list[Progression]:
    """Return the measures that at least one epoch has, in the order of `MEASURES`."""
    rows = [
        Progression(name, tuple(read(epoch.quantitative_metrics) for epoch in epochs))
        for name, read in MEASURES.items()
    ]
    return [row for row in rows if any(figure is not None for figure in row.figures)]
