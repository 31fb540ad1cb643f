"""What a run may be asked about: its quality, each main measure, how it failed, when it was best, what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.history import best_quality, judged_epoch
from optimizer.search.space import Space
from schema.runs import RunHistory

_METRICS = (
    "colour", "style", "background_accuracy", "hair_accuracy", "crown_accuracy", "pixel_art_purity", "edge_sharpness",
    "palette_score", "photorealism",
)  # fmt: skip
_LOWER_IS_BETTER = frozenset(("photorealism", "best_epoch", "seconds"))
_LEAST = 6


@dataclass(frozen=True)
class Measured:
    """One outcome over n runs.

    Attributes:
        values: (n,), nan where a run has none.
        rises: False where lower is better, as for failures and cost.
    """

    name: str
    values: NDArray[np.float64]
    rises: bool

    @property
    def known(self) -> NDArray[np.bool_]:
        """(n,) which runs have the outcome."""
        return ~np.isnan(self.values)


def measured_outcomes(runs: Sequence[RunHistory], quality: NDArray[np.float64], space: Space) -> list[Measured]:
    """The outcomes that enough runs have and that differ between them, quality first.

    Args:
        quality: (n,), the runs' qualities, those of failed ones filled in.
        space: says below which quality a run counts as failed.
    """
    columns = {"quality": quality, **{name: _metric(runs, name) for name in _METRICS}}
    for kind in sorted({str(h.run.outcome) for h in runs if h.run.outcome is not None and h.run.outcome.failed}):
        columns[f"failed: {kind}"] = np.array([float(str(h.run.outcome) == kind) for h in runs])
    low = [(q := best_quality(h)) is not None and q < space.failed_quality for h in runs]
    columns["failed: low quality"] = np.array(low, dtype=float)
    columns["best_epoch"] = _column([h.run.best_epoch for h in runs])
    columns["seconds"] = _column([h.run.total_training_time for h in runs])
    found = [Measured(n, v, n not in _LOWER_IS_BETTER and not n.startswith("failed")) for n, v in columns.items()]
    return [m for m in found if _tells(m)]


def _tells(outcome: Measured) -> bool:
    """Whether there is anything to learn: enough runs, and at least two that differ from the rest."""
    known = outcome.values[outcome.known]
    if len(known) < _LEAST or np.ptp(known) < 1e-9:
        return False
    _, counts = np.unique(known, return_counts=True)
    return bool(len(known) - counts.max() >= 2)


def _metric(runs: Sequence[RunHistory], name: str) -> NDArray[np.float64]:
    means = [e.quantitative_metrics.mean if (e := judged_epoch(h)) is not None else None for h in runs]
    return _column([None if mean is None else getattr(mean, name) for mean in means])


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else float(value) for value in values])
