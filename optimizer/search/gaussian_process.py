"""Fit Gaussian processes to tens or a few hundred runs.

The kernel is Matern 5/2 with one length scale per column, fitted by maximum a posteriori. The equations are from
Rasmussen and Williams, *Gaussian Processes for Machine Learning* (2006): 2.25 and 2.26 (prediction), 5.9
(gradient), 5.12 (leave one out). The prior on the length scales is centred at the side of the unit cube. On
measured tables, longer scales (Hvarfner et al., 2024) overlook the narrow peak beside a cliff.
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

# Priors, as mean and standard deviation of a logarithm. Targets are standardised and columns span the unit cube, so
# the same priors suit every campaign. Other priors predicted no better (benchmarks/RESULTS.md).
_NOISE_PRIOR = (-4.0, 1.5)  # of the noise variance: about 2 % of the variance of the targets
_AMPLITUDE_PRIOR = (0.0, 1.0)  # of the signal variance: about that of the targets
_SCALE_PRIOR = (0.0, 1.0)  # of the length scales: about the side of the unit cube
_JITTER = 1e-8  # added to the diagonal, so that equal points do not make the covariance singular
_STEPS = 30  # of the optimizer; chosen by hand, since a fit has a few milliseconds
_FEW_STEPS = 5  # of the optimizer when it starts from nearly the same fit, as in cross-validation
_START = math.log(0.5)  # log length scale to start from: half the side of the cube; chosen by hand
_TWO_STARTS_UP_TO = 40  # points; more make each start too slow for a proposal; chosen by hand
_SEARCHED = 70
"""Points to fit the length scales to. More points cost much time and hardly change the scales."""


@dataclass(frozen=True)
class GaussianProcess:
    """Predict with a fitted process. Targets are standardised inside; all results are in the units of the targets."""

    x: Array  # (n, d)
    scales: Array  # (d,)
    amplitude: float
    cholesky: Array  # (n, n), lower factor of the covariance
    alpha: Array  # (n,), inverse covariance times standardised targets
    mean: float  # of the process, far from all points, in units of the targets
    unit: float  # scale of the standardised targets
    noise: float  # variance at weight 1, standardised
    weight: Array  # (n,)

    @classmethod
    def fit(
        cls, x: Array, y: Array, weight: Array, mean: float | None = None, near: GaussianProcess | None = None
    ) -> GaussianProcess:
        """Fit a process to n points.

        Args:
            x: Points, shape (n, d), roughly in the unit cube.
            y: Targets, shape (n,).
            weight: Weight of each point in (0, 1], shape (n,). The noise variance of a point is divided by it.
            mean: Mean of the process far from all points; by default the weighted mean of `y`.
            near: Process fitted to nearly the same points. The optimizer starts there and takes few steps.
        """
        centre = float(np.average(y, weights=weight)) if mean is None else mean
        # The floor avoids a division by zero if all targets are equal.
        unit = max(float(np.sqrt(np.average((y - centre) ** 2, weights=weight))), 1e-6)
        target = (y - centre) / unit
        part = _spread_out(weight)
        with one_thread():
            theta = _maximise(x[part], target[part], weight[part], None if near is None else near._theta)
            return _conditioned(x, target, weight, theta, centre, unit)

    def believing(self, x: Array) -> GaussianProcess:
        """Return the process as if its expectation had been observed at `x`, shape (m, d): points of active runs."""
        if not len(x):
            return self
        target = np.concatenate([self.target, (self.predict(x)[0] - self.mean) / self.unit])
        weight = np.concatenate([self.weight, np.ones(len(x))])
        return _conditioned(np.vstack([self.x, x]), target, weight, self._theta, self.mean, self.unit)

    def stretched(self, factor: float) -> GaussianProcess:
        """Return the process with its length scales multiplied by `factor`."""
        theta = np.log([self.amplitude, self.noise, *(self.scales * factor)])
        return _conditioned(self.x, self.target, self.weight, theta, self.mean, self.unit)

    @property
    def _theta(self) -> Array:
        return np.log([self.amplitude, self.noise, *self.scales])

    @property
    def target(self) -> Array:
        """Return the standardised observations, shape (n,)."""
        return np.asarray(self.cholesky @ (self.cholesky.T @ self.alpha))

    def left_out(self) -> tuple[Array, Array]:
        """Return leave-one-out mean and standard deviation of each observation, each of shape (n,).

        Length scales and noise stay as fitted to all observations.
        """
        inverse = cho_solve((self.cholesky, True), np.eye(len(self.x)))
        precision = np.diag(inverse)
        mean = self.target - self.alpha / precision
        return self.mean + self.unit * mean, self.unit / np.sqrt(precision)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of new observations at `x`, shape (m, d): each (m,). Noise is included."""
        cross = self.amplitude * _matern(self.distances(x))[0]  # (m, n)
        mean = cross @ self.alpha
        half = solve_triangular(self.cholesky, cross.T, lower=True)  # (n, m)
        variance = np.maximum(self.amplitude - (half**2).sum(axis=0), 0.0) + self.noise
        return self.mean + self.unit * mean, self.unit * np.sqrt(variance)

    def expectation(self, x: Array) -> Array:
        """Return the mean of `predict` only, at a fraction of the cost."""
        return np.asarray(self.mean + self.unit * (self.amplitude * _matern(self.distances(x))[0] @ self.alpha))

    def certainty(self, x: Array) -> tuple[Array, Array]:
        """Return mean and standard deviation of the surface at `x`, shape (m, d): each (m,). Noise is excluded."""
        mean, sd = self.predict(x)
        return mean, np.sqrt(np.maximum(sd**2 - self.unit**2 * self.noise, (1e-4 * self.unit) ** 2))

    def distances(self, x: Array) -> Array:
        """Return squared distances, in length scales, between `x` of shape (m, d) and the fitted points: (m, n)."""
        scaled, own = x / self.scales, self.x / self.scales
        squares = (scaled**2).sum(1)[:, None] + (own**2).sum(1)[None, :] - 2 * scaled @ own.T
        return np.asarray(np.maximum(squares, 0.0))  # the expansion can round below zero


def one_thread() -> AbstractContextManager[object]:
    """Return a context that limits BLAS to one thread. On matrices this small, more threads take ten times as long."""
    limited: AbstractContextManager[object] = _blas().limit(limits=1)
    return limited


@functools.cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()


def _matern(squares: Array) -> tuple[Array, Array]:
    """Return the Matern 5/2 correlation at squared scaled distances, and its derivative factor ``-2 dk/d(r^2)``."""
    r = np.sqrt(5.0 * np.maximum(squares, 0.0))
    decay = np.exp(-r)
    return (1.0 + r + r * r / 3.0) * decay, 5.0 / 3.0 * (1.0 + r) * decay


def _spread_out(weight: Array) -> NDArray[np.int64]:
    """Return the indices of the points to fit length scales to: highest weight first, spread evenly over time."""
    n = len(weight)
    if n <= _SEARCHED:
        return np.arange(n)
    # The highest weight usually marks finished runs on our own base model and data set.
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
    # cho_factor leaves arbitrary values above the diagonal.
    lower = np.tril(np.asarray(cho_factor(covariance, lower=True)[0]))
    alpha = cho_solve((lower, True), target)
    return GaussianProcess(x, scales, amplitude, lower, alpha, centre, unit, noise, weight)


def _maximise(x: Array, target: Array, weight: Array, near: Array | None) -> Array:
    """Return the most probable log amplitude, log noise variance and log length scales, shape (2 + d,)."""
    d = x.shape[1]
    squares = (x[:, None, :] - x[None, :, :]) ** 2  # (n, n, d)
    prior_mean = np.array([_AMPLITUDE_PRIOR[0], _NOISE_PRIOR[0], *[_SCALE_PRIOR[0]] * d])
    prior_sd = np.array([_AMPLITUDE_PRIOR[1], _NOISE_PRIOR[1], *[_SCALE_PRIOR[1]] * d])

    def loss(theta: Array) -> tuple[float, Array]:
        value, gradient = negative_log_likelihood(theta, squares, target, weight)
        off = (theta - prior_mean) / prior_sd
        return value + 0.5 * float(off @ off), gradient + off / prior_sd

    # The bounds keep the covariance well-conditioned while the optimizer explores.
    bounds = [(-4.0, 4.0), (-9.0, 1.0)] + [(-3.0, 5.0)] * d
    # The likelihood can have a maximum with much noise and another with little: start from both while this is cheap.
    starts = [np.array([0.0, noise, *[_START] * d]) for noise in (-2.0, -5.0)][
        : 2 if len(x) <= _TWO_STARTS_UP_TO else 1
    ]
    starts, steps = (starts, _STEPS) if near is None else ([near], _FEW_STEPS)
    results = [
        minimize(loss, s, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": steps}) for s in starts
    ]
    return np.asarray(min(results, key=lambda result: float(result.fun)).x)


def negative_log_likelihood(theta: Array, squares: Array, target: Array, weight: Array) -> tuple[float, Array]:
    """Return the negative log marginal likelihood and its gradient (Rasmussen and Williams 2006, 5.8 and 5.9).

    Args:
        theta: Log amplitude, log noise variance and log length scales, shape (2 + d,).
        squares: Squared differences between points in each column, shape (n, n, d).
        target: Standardised observations, shape (n,).
        weight: Weight of each point, shape (n,). The noise variance of a point is divided by it.

    Raises:
        numpy.linalg.LinAlgError: The covariance is not positive definite.
    """
    amplitude, noise, inverse_squares = math.exp(theta[0]), math.exp(theta[1]), np.exp(-2.0 * theta[2:])
    correlation, slope = _matern(squares @ inverse_squares)
    n = len(target)
    covariance = amplitude * correlation
    # In place, since a matrix for the diagonal would be allocated at every step of the optimizer.
    covariance.flat[:: n + 1] += noise / weight + _JITTER
    factor, fault = lapack.dpotrf(covariance, lower=1)
    if fault:
        raise np.linalg.LinAlgError("the covariance of the past runs is not positive definite")
    half, _ = lapack.dpotri(factor, lower=1)  # lower half of the inverse, far cheaper than solving for it
    inverse = np.tril(half) + np.tril(half, -1).T
    alpha = inverse @ target
    value = 0.5 * float(target @ alpha) + float(np.log(np.diag(factor)).sum()) + 0.5 * n * math.log(2 * math.pi)
    sensitivity = 0.5 * (inverse - np.outer(alpha, alpha))  # d value / d covariance
    by_scale = amplitude * ((sensitivity * slope).ravel() @ squares.reshape(n * n, -1)) * inverse_squares
    by_amplitude = amplitude * float((sensitivity * correlation).sum())
    by_noise = noise * float((np.diag(sensitivity) / weight).sum())
    return value, np.array([by_amplitude, by_noise, *by_scale])
