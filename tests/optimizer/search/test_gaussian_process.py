"""The Gaussian process against finite differences, brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern

from optimizer.search.gaussian_process import GaussianProcess, negative_log_likelihood


def points(seed: int, n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return n points in the unit cube, a smooth function with noise, and weights."""
    rng = np.random.default_rng(seed)
    x = rng.random((n, d))
    y = 60 + 20 * np.sin(4 * x[:, 0]) + 5 * x.sum(axis=1) + rng.normal(0, 1, n)
    return x, y, rng.uniform(0.3, 1.0, n)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.integers(3, 25), st.integers(1, 5))
def test_the_gradient_is_that_of_finite_differences(seed: int, n: int, d: int) -> None:
    x, y, weight = points(seed, n, d)
    squares = (x[:, None, :] - x[None, :, :]) ** 2
    target = (y - y.mean()) / y.std()
    theta = np.random.default_rng(seed).normal(0, 0.7, 2 + d)
    value, gradient = negative_log_likelihood(theta, squares, target, weight)
    numeric = approx_fprime(theta, lambda t: negative_log_likelihood(t, squares, target, weight)[0], 1e-6)
    assert gradient == pytest.approx(numeric, rel=1e-3, abs=1e-3 * max(1.0, abs(value)))


def reference(process: GaussianProcess, x: np.ndarray, target: np.ndarray) -> GaussianProcessRegressor:
    """Return scikit-learn's process with the same hyperparameters, fitted to standardised targets."""
    kernel = ConstantKernel(process.amplitude) * Matern(process.scales, nu=2.5)
    noise = process.noise / process.weight + 1e-8
    return GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x, target)


@pytest.mark.parametrize(("n", "d"), [(6, 1), (20, 3), (120, 4)])
def test_the_posterior_is_scikit_learns(n: int, d: int) -> None:
    x, y, weight = points(n, n, d)
    process = GaussianProcess.fit(x, y, weight)
    peer = reference(process, x, (y - process.mean) / process.unit)
    new = np.random.default_rng(1).random((50, d))
    mean, sd = peer.predict(new, return_std=True)
    assert process.expectation(new) == pytest.approx(process.mean + process.unit * mean, rel=1e-6)
    own_mean, own_sd = process.predict(new)
    assert own_mean == pytest.approx(process.expectation(new))
    assert own_sd == pytest.approx(process.unit * np.sqrt(sd**2 + process.noise), rel=1e-5)
    assert process.certainty(new)[1] == pytest.approx(process.unit * sd, rel=1e-3, abs=1e-3 * process.unit)


def test_the_likelihood_is_scikit_learns() -> None:
    x, y, weight = points(3, 15, 2)
    process = GaussianProcess.fit(x, y, weight)
    target = (y - process.mean) / process.unit
    theta = np.log([process.amplitude, process.noise, *process.scales])
    value, _ = negative_log_likelihood(theta, (x[:, None, :] - x[None, :, :]) ** 2, target, weight)
    assert -value == pytest.approx(reference(process, x, target).log_marginal_likelihood_value_, rel=1e-6)


def test_leaving_one_out_is_brute_force() -> None:
    x, y, weight = points(5, 12, 2)
    process = GaussianProcess.fit(x, y, weight)
    mean, sd = process.left_out()
    target = (y - process.mean) / process.unit
    for place in range(len(x)):
        rest = np.arange(len(x)) != place
        kernel = ConstantKernel(process.amplitude) * Matern(process.scales, nu=2.5)
        noise = process.noise / weight + 1e-8
        peer = GaussianProcessRegressor(kernel, alpha=noise[rest], optimizer=None).fit(x[rest], target[rest])
        expected, spread = peer.predict(x[place : place + 1], return_std=True)
        assert mean[place] == pytest.approx(process.mean + process.unit * expected[0], rel=1e-6)
        assert sd[place] == pytest.approx(process.unit * np.sqrt(spread[0] ** 2 + noise[place]), rel=1e-5)


def test_the_fit_is_at_least_as_likely_as_where_it_started() -> None:
    x, y, weight = points(7, 30, 3)
    process = GaussianProcess.fit(x, y, weight)
    squares, target = (x[:, None, :] - x[None, :, :]) ** 2, (y - process.mean) / process.unit
    fitted = np.log([process.amplitude, process.noise, *process.scales])
    start = np.array([0.0, -2.0, *np.log([0.5] * 3)])
    assert (
        negative_log_likelihood(fitted, squares, target, weight)[0]
        < negative_log_likelihood(start, squares, target, weight)[0]
    )


def test_believing_its_own_expectation_changes_no_mean_there() -> None:
    x, y, weight = points(9, 20, 2)
    process = GaussianProcess.fit(x, y, weight)
    new = np.random.default_rng(2).random((3, 2))
    believing = process.believing(new)
    assert believing.predict(new)[0] == pytest.approx(process.predict(new)[0], rel=1e-6)
    assert (believing.certainty(new)[1] <= process.certainty(new)[1] + 1e-9).all()
    assert process.believing(np.empty((0, 2))) is process
