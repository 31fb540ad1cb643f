"""Convert qualities to normal scores of their ranks and back, so that a few collapsed runs do not distort a model.

The scores are van der Waerden's, at the midpoints of the weighted ranks, and are interpolated linearly. Beyond the
observed qualities, the line from their median to the outermost one is extended.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

Array = NDArray[np.float64]

_MIN_SLOPE = 1e-3  # quality points per score; keeps the line rising, so invertible, if all qualities are equal


@dataclass(frozen=True)
class NormalScores:
    """Hold a rising line through (score, quality) points, extended beyond the observed qualities."""

    scores: Array  # (k,), rising
    qualities: Array  # (k,), rising

    @classmethod
    def of(cls, y: Array, weight: Array) -> NormalScores:
        """Fit the scale to qualities of shape (n,), n >= 1, with weights of shape (n,)."""
        values, place = np.unique(y, return_inverse=True)
        share = np.bincount(place, weight) / weight.sum()
        # The midpoint of each rank, since the extremes would have scores of plus and minus infinity.
        scores = norm.ppf(np.cumsum(share) - share / 2)
        middle = float(np.interp(0.0, scores, values))
        # A single quality has the score 0, where the slope of its line is undefined.
        low, high = (
            max((values[end] - middle) / scores[end], _MIN_SLOPE) if scores[end] else _MIN_SLOPE for end in (0, -1)
        )
        far = 10.0  # scores to extend the line by; no prediction lies ten standard deviations out
        return cls(
            np.concatenate([[scores[0] - far], scores, [scores[-1] + far]]),
            np.concatenate([[values[0] - far * low], values, [values[-1] + far * high]]),
        )

    def score(self, qualities: Array) -> Array:
        """Return the scores of qualities, in the same shape."""
        return np.interp(qualities, self.qualities, self.scores)

    def quality(self, scores: Array) -> Array:
        """Return the qualities of scores, in the same shape."""
        return np.interp(scores, self.scores, self.qualities)
