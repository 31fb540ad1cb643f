"""Gaussian process regression for tens to a few hundred runs.

Matern 5/2 kernel with one length scale a column, fitted by maximum a posteriori. Equations from
Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006): 2.25, 2.26 (prediction) and 5.9
(gradient). The prior on length scales, centred at ``sqrt(d) * exp(sqrt(2))`` on a unit
cube, is that of Hvarfner et al. (2024): it keeps few runs in many dimensions from being overfitted.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

_NOISE_PRIOR = (-4.0, 1.5)  # mean and sd of the log noise variance, on standardised targets
_AMPLITUDE_PRIOR = (0.0, 1.0)
_JITTER = 1e-8
_STEPS = 40


@dataclass(frozen=True)
class GaussianProcess:
    """A fitted process. Targets are standardised inside; all results are in the targets' units."""

    x: Array  # (n, d)
    scales: Array  # (d,)
    amplitude: float
    cholesky: Array  # (n, n), lower
    alpha: Array  # (n,)
    mean: float
    unit: float
    noise: float

    @classmethod
    def fit(cls, x: Array, y: Array, weight: Array, mean: float | None = None, quick: bool = False) -> GaussianProcess:
        """Fit to n points.

        Args:
            x: shape (n, d), about the unit cube.
            y: shape (n,).
            weight: shape (n,), in (0, 1]: how much a point counts; its noise variance is divided by it.
            mean: value far from all points; the weighted mean of `y` if left out.
            quick: search the scales from one start instead of two.
        """
        centre = float(np.average(y, weights=weight)) if mean is None else mean
        unit = max(float(np.sqrt(np.average((y - centre) ** 2, weights=weight))), 1e-6)
        target = (y - centre) / unit
        squares = (x[:, None, :] - x[None, :, :]) ** 2  # (n, n, d)
        with _blas().limit(limits=1):  # on matrices this small, threads that wait for each other cost tenfold
            theta = _maximise(squares, target, weight, quick)
        amplitude, noise, scales = math.exp(theta[0]), math.exp(theta[1]), np.exp(theta[2:])
        covariance = amplitude * _matern(squares @ scales**-2.0)[0] + np.diag(noise / weight + _JITTER)
        lower = np.asarray(cho_factor(covariance, lower=True)[0])
        alpha = cho_solve((lower, True), target)
        return cls(x, scales, amplitude, np.tril(lower), alpha, centre, unit, noise)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of a new observation, noise included, each of shape (m,), at x (m, d)."""
        cross = self.amplitude * _matern(self.distances(x))[0]  # (m, n)
        mean = cross @ self.alpha
        half = solve_triangular(self.cholesky, cross.T, lower=True)  # (n, m)
        variance = np.maximum(self.amplitude - (half**2).sum(axis=0), 0.0) + self.noise
        return self.mean + self.unit * mean, self.unit * np.sqrt(variance)

    def distances(self, x: Array) -> Array:
        """Squared distances in length scales between new points (m, d) and the fitted ones: (m, n)."""
        scaled, own = x / self.scales, self.x / self.scales
        squares = (scaled**2).sum(1)[:, None] + (own**2).sum(1)[None, :] - 2 * scaled @ own.T
        return np.asarray(np.maximum(squares, 0.0))


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _matern(squares: Array) -> tuple[Array, Array]:
    """Matern 5/2 correlation at squared scaled distances, and its derivative factor ``-2 dk/d(r^2)``."""
    r = np.sqrt(5.0 * np.maximum(squares, 0.0))
    decay = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * decay, 5.0 / 3.0 * (1.0 + r) * decay


def _maximise(squares: Array, target: Array, weight: Array, quick: bool) -> Array:
    """Most probable log amplitude, log noise variance and log length scales: shape (2 + d,)."""
    d = squares.shape[2]
    centre = math.sqrt(2.0) + 0.5 * math.log(d)
    prior_mean = np.array([_AMPLITUDE_PRIOR[0], _NOISE_PRIOR[0], *[centre] * d])
    prior_sd = np.array([_AMPLITUDE_PRIOR[1], _NOISE_PRIOR[1], *[math.sqrt(3.0)] * d])

    def loss(theta: Array) -> tuple[float, Array]:
        value, gradient = _negative_log_likelihood(theta, squares, target, weight)
        off = (theta - prior_mean) / prior_sd
        return value + 0.5 * float(off @ off), gradient + off / prior_sd

    bounds = [(-4.0, 4.0), (-9.0, 1.0)] + [(-3.0, 5.0)] * d
    # Two starts: everything matters a little, and as the prior has it. The likelihood has both kinds of maxima.
    starts = [np.array([0.0, -2.0, *[math.log(first)] * d]) for first in (0.5, math.exp(centre))][: 1 if quick else 2]
    results = [
        minimize(loss, s, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": _STEPS}) for s in starts
    ]
    return np.asarray(min(results, key=lambda result: float(result.fun)).x)


def _negative_log_likelihood(theta: Array, squares: Array, target: Array, weight: Array) -> tuple[float, Array]:
    amplitude, noise, inverse_squares = math.exp(theta[0]), math.exp(theta[1]), np.exp(-2.0 * theta[2:])
    correlation, slope = _matern(squares @ inverse_squares)
    n = len(target)
    factor = cho_factor(amplitude * correlation + np.diag(noise / weight + _JITTER), lower=True)
    inverse = cho_solve(factor, np.eye(n))
    alpha = inverse @ target
    value = 0.5 * float(target @ alpha) + float(np.log(np.diag(factor[0])).sum()) + 0.5 * n * math.log(2 * math.pi)
    sensitivity = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / d covariance
    by_scale = amplitude * np.einsum("ij,ij,ijk->k", sensitivity, slope, squares) * inverse_squares
    by_amplitude = amplitude * float((sensitivity * correlation).sum())
    by_noise = noise * float((np.diag(sensitivity) / weight).sum())
    return value, np.array([by_amplitude, by_noise, *by_scale])
