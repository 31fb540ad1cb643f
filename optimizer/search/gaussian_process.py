"""Gaussian process regression for tens to a few hundred runs.

Matern 5/2 kernel with one length scale a column, fitted by maximum a posteriori. Equations from
Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006): 2.25, 2.26 (prediction), 5.9
(gradient), 5.12 (leave one out). The prior on length scales is centred at the side of the unit cube: on
measured tables longer ones (Hvarfner et al., 2024) overlook the narrow peak beside a cliff.
"""

from __future__ import annotations

import functools
import math
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve, lapack, solve_triangular
from scipy.optimize import minimize
from threadpoolctl import ThreadpoolController

Array = NDArray[np.float64]

_NOISE_PRIOR = (-4.0, 1.5)  # mean and sd of the log noise variance, on standardised targets
_AMPLITUDE_PRIOR = (0.0, 1.0)
_SCALE_PRIOR = (0.0, 1.0)  # of the log length scales
_JITTER = 1e-8
_STEPS = 30
_FEW = 5
_START = math.log(0.5)
_CHEAP = 40
_SEARCHED = 70
"""Points that the length scales are found from: more of them cost much and move them little."""


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
    weight: Array  # (n,)

    @classmethod
    def fit(
        cls, x: Array, y: Array, weight: Array, mean: float | None = None, near: GaussianProcess | None = None
    ) -> GaussianProcess:
        """Fit to n points.

        Args:
            x: shape (n, d), about the unit cube.
            y: shape (n,).
            weight: shape (n,), in (0, 1]: how much a point counts; its noise variance is divided by it.
            mean: value far from all points; the weighted mean of `y` if left out.
            near: a process fitted to nearly the same points, from which a few steps are enough.
        """
        centre = float(np.average(y, weights=weight)) if mean is None else mean
        unit = max(float(np.sqrt(np.average((y - centre) ** 2, weights=weight))), 1e-6)
        target = (y - centre) / unit
        part = _spread_out(weight)
        with one_thread():
            theta = _maximise(x[part], target[part], weight[part], None if near is None else near._theta)
            return _conditioned(x, target, weight, theta, centre, unit)

    def believing(self, x: Array) -> GaussianProcess:
        """The process as if its own expectation had been observed at points (m, d) that still run."""
        if not len(x):
            return self
        target = np.concatenate([self.target, (self.predict(x)[0] - self.mean) / self.unit])
        weight = np.concatenate([self.weight, np.ones(len(x))])
        return _conditioned(np.vstack([self.x, x]), target, weight, self._theta, self.mean, self.unit)

    def stretched(self, factor: float) -> GaussianProcess:
        """The process with its length scales multiplied."""
        theta = np.log([self.amplitude, self.noise, *(self.scales * factor)])
        return _conditioned(self.x, self.target, self.weight, theta, self.mean, self.unit)

    @property
    def _theta(self) -> Array:
        return np.log([self.amplitude, self.noise, *self.scales])

    @property
    def target(self) -> Array:
        """The standardised observations, shape (n,)."""
        return np.asarray(self.cholesky @ (self.cholesky.T @ self.alpha))

    def left_out(self) -> tuple[Array, Array]:
        """Mean and standard deviation of each observation had it been left out: each of shape (n,)."""
        inverse = cho_solve((self.cholesky, True), np.eye(len(self.x)))
        precision = np.diag(inverse)
        mean = self.target - self.alpha / precision
        return self.mean + self.unit * mean, self.unit / np.sqrt(precision)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of a new observation, noise included, each of shape (m,), at x (m, d)."""
        cross = self.amplitude * _matern(self.distances(x))[0]  # (m, n)
        mean = cross @ self.alpha
        half = solve_triangular(self.cholesky, cross.T, lower=True)  # (n, m)
        variance = np.maximum(self.amplitude - (half**2).sum(axis=0), 0.0) + self.noise
        return self.mean + self.unit * mean, self.unit * np.sqrt(variance)

    def expectation(self, x: Array) -> Array:
        """The mean of `predict` alone, at a fraction of its cost."""
        return np.asarray(self.mean + self.unit * (self.amplitude * _matern(self.distances(x))[0] @ self.alpha))

    def certainty(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the surface itself, without the noise of an observation: each (m,)."""
        mean, sd = self.predict(x)
        return mean, np.sqrt(np.maximum(sd**2 - self.unit**2 * self.noise, (1e-4 * self.unit) ** 2))

    def distances(self, x: Array) -> Array:
        """Squared distances in length scales between new points (m, d) and the fitted ones: (m, n)."""
        scaled, own = x / self.scales, self.x / self.scales
        squares = (scaled**2).sum(1)[:, None] + (own**2).sum(1)[None, :] - 2 * scaled @ own.T
        return np.asarray(np.maximum(squares, 0.0))


def one_thread() -> AbstractContextManager[object]:
    """Linear algebra on one thread: on matrices this small, threads that wait for each other cost tenfold."""
    limited: AbstractContextManager[object] = _blas().limit(limits=1)
    return limited


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _matern(squares: Array) -> tuple[Array, Array]:
    """Matern 5/2 correlation at squared scaled distances, and its derivative factor ``-2 dk/d(r^2)``."""
    r = np.sqrt(5.0 * np.maximum(squares, 0.0))
    decay = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * decay, 5.0 / 3.0 * (1.0 + r) * decay


def _spread_out(weight: Array) -> NDArray[np.int64]:
    """Which points to search with: those that count most, evenly taken over time."""
    n = len(weight)
    if n <= _SEARCHED:
        return np.arange(n)
    own = np.flatnonzero(weight == weight.max())
    chosen = own if len(own) <= _SEARCHED else own[np.linspace(0, len(own) - 1, _SEARCHED).round().astype(int)]
    rest = np.setdiff1d(np.arange(n), own)
    more = min(len(rest), _SEARCHED - len(chosen))
    return np.sort(np.concatenate([chosen, rest[np.linspace(0, len(rest) - 1, more).round().astype(int)]]))


def _conditioned(x: Array, target: Array, weight: Array, theta: Array, centre: float, unit: float) -> GaussianProcess:
    amplitude, noise, scales = math.exp(theta[0]), math.exp(theta[1]), np.exp(theta[2:])
    scaled = x / scales
    squares = ((scaled[:, None, :] - scaled[None, :, :]) ** 2).sum(axis=2)
    covariance = amplitude * _matern(squares)[0] + np.diag(noise / weight + _JITTER)
    lower = np.tril(np.asarray(cho_factor(covariance, lower=True)[0]))
    alpha = cho_solve((lower, True), target)
    return GaussianProcess(x, scales, amplitude, lower, alpha, centre, unit, noise, weight)


def _maximise(x: Array, target: Array, weight: Array, near: Array | None) -> Array:
    """Most probable log amplitude, log noise variance and log length scales: shape (2 + d,)."""
    d = x.shape[1]
    squares = (x[:, None, :] - x[None, :, :]) ** 2  # (n, n, d)
    prior_mean = np.array([_AMPLITUDE_PRIOR[0], _NOISE_PRIOR[0], *[_SCALE_PRIOR[0]] * d])
    prior_sd = np.array([_AMPLITUDE_PRIOR[1], _NOISE_PRIOR[1], *[_SCALE_PRIOR[1]] * d])

    def loss(theta: Array) -> tuple[float, Array]:
        value, gradient = negative_log_likelihood(theta, squares, target, weight)
        off = (theta - prior_mean) / prior_sd
        return value + 0.5 * float(off @ off), gradient + off / prior_sd

    bounds = [(-4.0, 4.0), (-9.0, 1.0)] + [(-3.0, 5.0)] * d
    # Two starts while they are cheap: little noise and much; the likelihood has both kinds of maxima.
    starts = [np.array([0.0, noise, *[_START] * d]) for noise in (-2.0, -5.0)][: 2 if len(x) <= _CHEAP else 1]
    starts, steps = (starts, _STEPS) if near is None else ([near], _FEW)
    results = [
        minimize(loss, s, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": steps}) for s in starts
    ]
    return np.asarray(min(results, key=lambda result: float(result.fun)).x)


def negative_log_likelihood(theta: Array, squares: Array, target: Array, weight: Array) -> tuple[float, Array]:
    """Return the negative log marginal likelihood and its gradient (Rasmussen and Williams 2006, 5.8 and 5.9).

    Args:
        theta: log amplitude, log noise variance and log length scales, shape (2 + d,).
        squares: squared differences between points in each column, shape (n, n, d).
        target: standardised observations, shape (n,).
        weight: shape (n,); a point's noise variance is divided by it.

    Raises:
        numpy.linalg.LinAlgError: the covariance is not positive definite.
    """
    amplitude, noise, inverse_squares = math.exp(theta[0]), math.exp(theta[1]), np.exp(-2.0 * theta[2:])
    correlation, slope = _matern(squares @ inverse_squares)
    n = len(target)
    covariance = amplitude * correlation
    covariance.flat[:: n + 1] += noise / weight + _JITTER
    factor, fault = lapack.dpotrf(covariance, lower=1)
    if fault:
        raise np.linalg.LinAlgError("the covariance of the past runs is not positive definite")
    half, _ = lapack.dpotri(factor, lower=1)  # the inverse's lower half, at a fraction of a solve's cost
    inverse = np.tril(half) + np.tril(half, -1).T
    alpha = inverse @ target
    value = 0.5 * float(target @ alpha) + float(np.log(np.diag(factor)).sum()) + 0.5 * n * math.log(2 * math.pi)
    sensitivity = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / d covariance
    by_scale = amplitude * ((sensitivity * slope).ravel() @ squares.reshape(n * n, -1)) * inverse_squares
    by_amplitude = amplitude * float((sensitivity * correlation).sum())
    by_noise = noise * float((np.diag(sensitivity) / weight).sum())
    return value, np.array([by_amplitude, by_noise, *by_scale])
