"""The setting worth running next: where the surrogate expects most improvement, and the run not to fail.

Expected improvement (Jones et al., 1998), its logarithm in the form of Ament et al. (2023), times the chance
of no failure (Gardner et al., 2014). It is maximised over points that fill the space and points around the
best runs, which are moved on in shrinking steps.
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

_FILLING = 512
_AROUND = 40
_BEST = 5
_WIDTHS = (0.05, 0.2)
_ROUNDS = (0.1, 0.05, 0.02)
_KEPT = 10
_JUMP = 0.3  # share of moved values that are drawn anew: a small step never leaves a category
_FAR = -5.0
_STRETCHES = (0.5, 2.0)
"""The length scales are uncertain while runs are few: shorter and longer ones have their say too."""


def log_improvement(mean: Array, sd: Array, best: float) -> Array:
    """Logarithm of the expected improvement upon `best`, shape (m,); finite however small it is."""
    z = (mean - best) / sd
    near = np.maximum(z, _FAR)
    exact = np.log(norm.pdf(near) + near * norm.cdf(near))
    far = np.minimum(z, _FAR)
    # Below, the two terms cancel: the first term of Mills' expansion is within 12 % there.
    tail = norm.logpdf(far) - 2 * np.log(-far)
    return np.asarray(np.where(z > _FAR, exact, tail) + np.log(sd))


class Acquisition:
    """What a point of the unit cube is worth running."""

    def __init__(self, surrogate: Surrogate, running: Array, best: float | None) -> None:
        """Look at a surrogate.

        Args:
            surrogate: fitted to what is known.
            running: encoded settings that run at present, shape (m, d): their result is taken as expected.
            best: quality to improve upon; None before anything was measured here, then the expectation counts.
        """
        self._surrogate = surrogate
        process = surrogate.wary
        stretches = (1, *_STRETCHES)
        with one_thread():
            self._processes = [] if process is None else [process.stretched(f).believing(running) for f in stretches]
        self._best = best

    def score(self, units: Array) -> Array:
        """Logarithm of the worth of points (m, number of searched parameters): shape (m,), comparable only."""
        x = self._surrogate.space.encode_units(units)
        safe = np.log1p(-self._surrogate.risks(x))
        if not self._processes:
            return np.asarray(safe)
        if self._best is None:
            return np.asarray(self._processes[0].expectation(x) * np.exp(safe))
        gains = [log_improvement(*process.certainty(x), self._best) for process in self._processes]
        return np.asarray(logsumexp(gains, axis=0) - math.log(len(gains)) + safe)

    def ranked(self, good: Array, rng: np.random.Generator) -> Array:
        """Points of the unit cube, the most worth first.

        Args:
            good: the best points so far, best first, shape (k, number of searched parameters).
            rng: of the search for them.
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
    """Quality points that the most promising setting is expected to gain upon our best run; None before there is one.

    The surface has an uncertainty of its own, so that this falls slowly and ends no search too soon.
    """
    if surrogate.best is None or surrogate.quality is None:
        return None
    acquisition = Acquisition(surrogate, np.empty((0, surrogate.x.shape[1])), surrogate.best)
    good = surrogate.units[np.argsort(-surrogate.worth)[:_BEST]]
    ranked = acquisition.ranked(good, np.random.default_rng(seed))
    return float(np.exp(acquisition.score(ranked[:1])[0]))


def _moved(units: Array, width: float, rng: np.random.Generator) -> Array:
    """Copies with some values moved a little or drawn anew, at least one each."""
    if not len(units):
        return units
    n, d = units.shape
    moved = rng.random((n, d)) < 0.4
    moved[np.arange(n), rng.integers(0, d, n)] = True
    near = np.clip(units + moved * rng.normal(0.0, width, (n, d)), 0.0, 1.0)
    return np.where(moved & (rng.random((n, d)) < _JUMP), rng.random((n, d)), near)
