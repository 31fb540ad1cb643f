"""Collect the outcomes of runs: quality, the main measures, kinds of failure, best epoch, training time."""

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
_MIN_RUNS = 6
"""Runs that must have an outcome. Chosen by hand: few permutations exist of fewer runs."""


@dataclass(frozen=True)
class Measured:
    """Hold one outcome of n runs.

    Attributes:
        name: Name of the outcome, such as ``quality`` or ``failed: diverged``.
        values: Its value in each run, shape (n,); nan where a run has none.
        rises: False if lower is better, as for failures and cost.
    """

    name: str
    values: NDArray[np.float64]
    rises: bool

    @property
    def known(self) -> NDArray[np.bool_]:
        """Return which runs have the outcome, shape (n,)."""
        return ~np.isnan(self.values)


def measured_outcomes(runs: Sequence[RunHistory], quality: NDArray[np.float64], space: Space) -> list[Measured]:
    """Return the outcomes that enough runs have and that differ between runs, quality first.

    Args:
        runs: The n runs.
        quality: Quality of each run, shape (n,), with values filled in for failed runs.
        space: Defines the quality below which a run counts as failed.
    """
    columns = {"quality": quality, **{name: _metric(runs, name) for name in _METRICS}}
    for kind in sorted({str(h.run.outcome) for h in runs if h.run.outcome is not None and h.run.outcome.failed}):
        columns[f"failed: {kind}"] = np.array([float(str(h.run.outcome) == kind) for h in runs])
    low = [(q := best_quality(h)) is not None and q < space.failed_quality for h in runs]
    columns["failed: low quality"] = np.array(low, dtype=float)
    columns["best_epoch"] = _column([h.run.best_epoch for h in runs])
    columns["seconds"] = _column([h.run.total_training_time for h in runs])
    found = [Measured(n, v, n not in _LOWER_IS_BETTER and not n.startswith("failed")) for n, v in columns.items()]
    return [m for m in found if _can_be_tested(m)]


def _can_be_tested(outcome: Measured) -> bool:
    """Return whether enough runs have an outcome, and at least two of them differ from the most common value."""
    known = outcome.values[outcome.known]
    if len(known) < _MIN_RUNS or np.ptp(known) < 1e-9:  # equal up to rounding
        return False
    # If only one run differed, that run alone would decide every test.
    _, counts = np.unique(known, return_counts=True)
    return bool(len(known) - counts.max() >= 2)


def _metric(runs: Sequence[RunHistory], name: str) -> NDArray[np.float64]:
    means = [e.quantitative_metrics.mean if (e := judged_epoch(h)) is not None else None for h in runs]
    return _column([None if mean is None else getattr(mean, name) for mean in means])


def _column(values: Sequence[float | None]) -> NDArray[np.float64]:
    return np.array([np.nan if value is None else float(value) for value in values])
