"""Small statistics that benchmarks share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties half; nan where either is empty.

    From the sum of ranks (Mann and Whitney 1947), so that thousands cost nothing.
    """
    if not positive or not negative:
        return float("nan")
    ranks = rankdata([*positive, *negative])[: len(positive)]
    wins = ranks.sum() - len(positive) * (len(positive) + 1) / 2
    return float(wins / (len(positive) * len(negative)))


def mean(values: Sequence[float] | Sequence[bool]) -> float:
    """Mean; nan of nothing."""
    return float(np.mean(values)) if len(values) else float("nan")
