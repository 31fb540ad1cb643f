"""Tables that anybody can have: made-up trainings with a peak, a cliff beside it, curves and noise."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks.tables import Table, space_of
from optimizer.search.space import Space

Array = NDArray[np.float64]

_RUNS = 600
_CHECKPOINTS = 20
_RATES = (4e-5, 1e-4, 3e-4, 1e-3, 3e-3)
_RANKS = (4, 16, 64, 128)


def made_up_tables(seed: int = 0) -> list[Table]:
    """A smooth task, two that fail beyond a cliff, and five sweeps of the same two parameters."""
    rng = np.random.default_rng(seed)
    large = [
        _task("smooth-a", rng, cliff=None),
        _task("failing-a", rng, cliff=0.65),
        _task("failing-b", rng, cliff=0.6),
    ]
    return large + [_sweep(f"sweep-{k}", rng) for k in range(5)]


def _task(name: str, rng: np.random.Generator, cliff: float | None) -> Table:
    """Six parameters; the rate matters most, and above the cliff a run breaks the sooner the farther it is."""
    space = space_of(
        {
            "rate": FloatDistribution(1e-6, 1e-1, log=True),
            "decay": FloatDistribution(1e-6, 1e-1, log=True),
            "momentum": FloatDistribution(0.1, 0.99),
            "units": IntDistribution(16, 512, log=True),
            "dropout": FloatDistribution(0.0, 0.8),
            "kind": CategoricalDistribution(["a", "b"]),
        }
    )
    settings = [space.at(u) for u in rng.random((_RUNS, len(space.names)))]
    x = np.array([space.encode(s) for s in settings])
    peak, weight = rng.uniform(0.35, 0.6, x.shape[1]), np.array([6.0, 1.0, 1.0, 0.7, 0.5, 0.2, 0.2])
    hill = np.exp(-((x - peak) ** 2 * 4) @ weight)
    final = 1.0 - 0.8 * hill + 0.15 * (1 - x[:, 5]) * hill
    speed = 2 + 8 * x[:, 0]
    share = np.arange(1, _CHECKPOINTS + 1) / _CHECKPOINTS
    curves = final[:, None] + (1.2 - final[:, None]) * np.exp(-speed[:, None] * share)
    curves += rng.normal(0, 0.005, curves.shape)
    failed = np.zeros(_RUNS, dtype=bool)
    if cliff is not None:
        beyond = x[:, 0] + 0.15 * (x[:, 2] - 0.5) - cliff
        failed = beyond > 0
        for i in np.flatnonzero(failed):
            curves[i, max(int(_CHECKPOINTS * (0.6 - 2 * beyond[i])), 1) :] = np.nan
    return Table(name, space, settings, curves, failed)


def _sweep(name: str, rng: np.random.Generator) -> Table:
    space: Space = space_of({"lr": CategoricalDistribution(_RATES), "rank": CategoricalDistribution(_RANKS)})
    settings = [{"lr": rate, "rank": rank} for rate, rank in itertools.product(_RATES, _RANKS)]
    best, level, limit = rng.uniform(-3.5, -3.0), rng.uniform(0.5, 0.9), rng.uniform(-2.9, -2.6)
    rates = np.array([float(s["lr"]) for s in settings])
    ranks = np.array([float(s["rank"]) for s in settings])
    losses = level * (1 + 0.02 * (np.log10(rates) - best) ** 2 - 0.004 * np.log2(ranks / 4))
    return Table(name, space, [dict(s) for s in settings], losses[:, None], np.log10(rates) > limit)
