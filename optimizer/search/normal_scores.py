"""Qualities as normal scores and back: a model of ranks is not thrown off by a few runs that went to nothing.

Van der Waerden's scores at the midpoints of the weighted ranks; in between, and back, straight lines. Beyond the
qualities seen, the line from their median to the last one goes on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]

_LEAST_SLOPE = 1e-3  # quality points a score, where all that were seen are equal


@dataclass(frozen=True)
class NormalScores:
    """A rising line through (score, quality), the ends included that go on beyond what was seen."""

    scores: Array  # (k,), rising
    qualities: Array  # (k,), rising

    @classmethod
    def of(cls, y: Array, weight: Array) -> NormalScores:
        """Learn the scale from qualities (n,), n at least 1, that count by their weights (n,)."""
        values, place = np.unique(y, return_inverse=True)
        share = np.bincount(place, weight) / weight.sum()
        scores = norm.ppf(np.cumsum(share) - share / 2)
        middle = float(np.interp(0.0, scores, values))
        low, high = (
            max((values[end] - middle) / scores[end], _LEAST_SLOPE) if scores[end] else _LEAST_SLOPE for end in (0, -1)
        )
        far = 10.0
        return cls(
            np.concatenate([[scores[0] - far], scores, [scores[-1] + far]]),
            np.concatenate([[values[0] - far * low], values, [values[-1] + far * high]]),
        )

    def score(self, qualities: Array) -> Array:
        """Qualities as scores."""
        return np.interp(qualities, self.qualities, self.scores)

    def quality(self, scores: Array) -> Array:
        """Scores as qualities."""
        return np.interp(scores, self.scores, self.qualities)
