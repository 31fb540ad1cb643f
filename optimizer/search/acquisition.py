"""Find the setting to run next: the one with the highest expected improvement that is not likely to fail.

The acquisition function is the expected improvement (Jones et al., 1998), as a logarithm (Ament et al., 2023), times
the probability of no failure (Gardner et al., 2014). It is maximised over space-filling points and points around the
best runs, which are then refined in shrinking steps.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp
from scipy.stats import norm, qmc

from optimizer.search.gaussian_process import one_thread
from optimizer.search.surrogate import Surrogate

Array = NDArray[np.float64]

# The sizes of the search are chosen by hand. They suffice: on tables, 20 times the points found 8 % more expected
# improvement at most (benchmarks/RESULTS.md), and a proposal has to take under 50 ms beside 100 runs.
_FILLING = 512  # space-filling points; a power of two keeps a Sobol sequence balanced
_AROUND = 40  # points around each good run, per width
_BEST = 5  # good runs to search around
_WIDTHS = (0.05, 0.2)  # standard deviations of these points, in the unit cube: one near, one far
_ROUNDS = (0.1, 0.05, 0.02)  # standard deviations of the refinement, in the unit cube; one round each
_KEPT = 10  # best points that each round refines
_MOVED = 0.4  # probability that a value of a new point changes, so that most points differ in few values
_JUMP = 0.3  # share of changed values that are drawn anew, since a small step never leaves a category
_FAR = -5.0  # improvement in standard deviations below which the exact formula cancels; see `log_improvement`
_STRETCHES = (0.5, 2.0)
"""Factors on the length scales, which are uncertain while runs are few. The acquisition averages over them."""


def log_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Return the logarithm of the expected improvement over `best`, shape (m,). It is finite however small that is."""
    z = (mean - best) / sd
    near = np.maximum(z, _FAR)
    exact = np.log(norm.pdf(near) + near * norm.cdf(near))
    far = np.minimum(z, _FAR)
    # Far below the best, the two terms cancel. There the first term of Mills' expansion is within 12 %.
    tail = norm.logpdf(far) - 2 * np.log(-far)
    return np.asarray(np.where(z > _FAR, exact, tail) + np.log(sd))


class Acquisition:
    """Score points of the unit cube by how much a run there is expected to gain."""

    def __init__(self, surrogate: Surrogate, running: Array, best: float | None) -> None:
        """Prepare to score points.

        Args:
            surrogate: Model fitted to the past runs.
            running: Encoded settings of active runs, shape (m, d). They count as if they ended as expected.
            best: Quality to improve on; None before anything was measured here. Then the expected quality counts.
        """
        self._surrogate = surrogate
        process = surrogate.penalised
        stretches = (1, *_STRETCHES)
        with one_thread():
            self._processes = [] if process is None else [process.stretched(f).believing(running) for f in stretches]
        self._best = best

    def score(self, units: Array) -> Array:
        """Return the score of points of shape (m, number of searched parameters): shape (m,), higher is better.

        With a best quality this is the logarithm of the expected gain in quality points. Without one, scores can only
        be compared with each other.
        """
        x = self._surrogate.space.encode_units(units)
        safe = np.log1p(-self._surrogate.risks(x))
        if not self._processes:
            return np.asarray(safe)
        if self._best is None:
            # Without a best quality there is no improvement: prefer high expectations at a low risk.
            return np.asarray(self._processes[0].expectation(x) * np.exp(safe))
        gains = [log_improvement(*process.certainty(x), self._best) for process in self._processes]
        return np.asarray(logsumexp(gains, axis=0) - math.log(len(gains)) + safe)

    def ranked(self, good: Array, rng: np.random.Generator) -> Array:
        """Return candidate points of the unit cube, best score first.

        Args:
            good: Points of the best runs, best first, shape (k, number of searched parameters).
            rng: Source of randomness of the search.
        """
        with one_thread():
            return self._ranked(good, rng)

    def _ranked(self, good: Array, rng: np.random.Generator) -> Array:
        d = len(self._surrogate.space.names)
        points = [qmc.Sobol(d, rng=rng).random(_FILLING)]
        points += [_moved(np.repeat(good[:_BEST], _AROUND, axis=0), width, rng) for width in _WIDTHS]
        units = np.vstack(points)
        scores = self.score(units)
        for width in _ROUNDS:
            kept = np.argsort(-scores, kind="stable")[:_KEPT]
            new = _moved(np.repeat(units[kept], _KEPT + 2, axis=0), width, rng)
            units, scores = np.vstack([units[kept], new]), np.concatenate([scores[kept], self.score(new)])
        return np.asarray(units[np.argsort(-scores, kind="stable")])


def expected_gain(surrogate: Surrogate, seed: int) -> float | None:
    """Return the quality points that the most promising setting is expected to gain; None before a best run exists.

    The uncertainty of the surface is included, so this falls slowly and does not end a search too soon.
    """
    if surrogate.best is None or surrogate.quality is None:
        return None
    acquisition = Acquisition(surrogate, np.empty((0, surrogate.x.shape[1])), surrogate.best)
    good = surrogate.units[np.argsort(-surrogate.levels)[:_BEST]]
    ranked = acquisition.ranked(good, np.random.default_rng(seed))
    return float(np.exp(acquisition.score(ranked[:1])[0]))


def _moved(units: Array, width: float, rng: np.random.Generator) -> Array:
    """Return copies of the points with at least one value each moved a little or drawn anew."""
    if not len(units):
        return units
    n, d = units.shape
    moved = rng.random((n, d)) < _MOVED
    moved[np.arange(n), rng.integers(0, d, n)] = True
    near = np.clip(units + moved * rng.normal(0.0, width, (n, d)), 0.0, 1.0)
    return np.where(moved & (rng.random((n, d)) < _JUMP), rng.random((n, d)), near)
