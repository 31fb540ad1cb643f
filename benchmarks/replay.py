"""A table that answers for any setting: what would have come of a run that was never made.

A complete grid answers with what was measured. Elsewhere a model fitted to the measured runs answers, a
forest or a small network, whichever tells better of runs it was not fitted to; looking up the nearest run
instead would give a staircase on which samplers that learn lose to chance.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution
from sklearn.base import BaseEstimator, RegressorMixin, clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.decomposition import PCA
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.tables import Table
from schema.parameters import Parameters

Array = NDArray[np.float64]

_BEST = 90.0
_MEDIAN = 45.0
TARGET_REGRET = 0.05
"""Solved: best + 5 % of the way to the median run."""

_TREES = 60
_NETWORKS = 3
_SHAPES = 6
"""Principal components that a family of learning curves is described by."""

_GRID_SHARE = 0.9
"""A table that holds this share of all combinations is a grid; the rest is answered by the nearest cell."""


@dataclass(frozen=True)
class Replayed:
    """What came of a setting: quality (0-100) of each checkpoint up to where it broke, if it failed."""

    curve: Array
    failed: bool
    total: int

    @property
    def quality(self) -> float | None:
        """Quality of the best checkpoint; None for a failed run."""
        return None if self.failed else float(self.curve.max())

    @property
    def cost(self) -> float:
        """Compute in full runs."""
        return len(self.curve) / self.total


class Answers(Protocol):
    """Losses at points of a space."""

    def curves(self, x: Array) -> Array:
        """Losses at each checkpoint, shape (m, checkpoints)."""

    def breaks(self, x: Array) -> NDArray[np.int64]:
        """Checkpoints before a run breaks, shape (m,); -1 where it does not fail."""


class Replay:
    """A table made to answer; quality 90 is its best run, 45 its median, 0 and 100 the ends."""

    def __init__(self, table: Table, seed: int = 0) -> None:
        self.table = table
        self.space = table.space
        x = np.array([self.space.encode(s) for s in table.settings])
        finished = table.losses[~table.failed]
        # What is worse than a median run by more than the best is better counts alike: a blow-up that ends
        # as a finite number would own the scale.
        self._floor = 2 * float(np.median(finished)) - float(finished.min())
        with warnings.catch_warnings():  # a network that is not quite done is good enough if it wins all the same
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._answers: Answers = _Grid(table, x) if is_grid(table) else _Model(table, x, self._floor, seed)
        fine = self._answers.breaks(x) < 0
        losses = np.minimum(self._answers.curves(x[fine]).min(axis=1), self._floor)
        self.best, self.median = float(losses.min()), float(np.median(losses))

    def run(self, setting: Parameters) -> Replayed:
        """Train one setting to its end."""
        x = self.space.encode(setting)[None, :]
        curve = self.quality(self._answers.curves(x)[0])
        broke = int(self._answers.breaks(x)[0])
        return Replayed(curve if broke < 0 else curve[: max(broke, 1)], broke >= 0, len(curve))

    def measured(self, row: int) -> Replayed:
        """A run of the table as it was."""
        losses, failed = self.table.curves[row], bool(self.table.failed[row])
        known = losses[~np.isnan(losses)]
        curve = self.quality(known) if len(known) else np.zeros(1)
        return Replayed(curve, failed, len(losses))

    def quality(self, losses: Array) -> Array:
        """Losses as qualities."""
        return np.clip(_BEST - (_BEST - _MEDIAN) * (losses - self.best) / (self.median - self.best), 0.0, 100.0)

    def loss(self, quality: float) -> float:
        """The loss that a quality stands for."""
        return self.best + (_BEST - quality) * (self.median - self.best) / (_BEST - _MEDIAN)


def regret(quality: float | None) -> float:
    """(best found - best) / (median - best) in terms of loss; infinite if nothing was found."""
    return math.inf if quality is None else (_BEST - quality) / (_BEST - _MEDIAN)


def is_grid(table: Table) -> bool:
    """True where nearly every combination of values was measured."""
    kinds = table.space.distributions.values()
    if not all(isinstance(d, CategoricalDistribution) for d in kinds):
        return False
    cells = math.prod(len(d.choices) for d in kinds if isinstance(d, CategoricalDistribution))
    return len({table.space.key(s) for s in table.settings}) >= _GRID_SHARE * cells


class _Grid:
    """What was measured; repeats of a cell are averaged, and it failed if most of them did."""

    def __init__(self, table: Table, x: Array) -> None:
        cells, index = np.unique(np.round(x, 9), axis=0, return_inverse=True)
        index = index.reshape(-1)
        counts = np.bincount(index)
        self._cells = cells
        self._failed = np.bincount(index, table.failed) > counts / 2
        self._curves = np.full((len(cells), table.curves.shape[1]), np.nan)
        good = ~table.failed
        for column in range(table.curves.shape[1]):
            sums = np.bincount(index[good], table.curves[good, column], len(cells))
            self._curves[:, column] = sums / np.maximum(np.bincount(index[good], minlength=len(cells)), 1)
        self._place = {cell.tobytes(): i for i, cell in enumerate(cells)}

    def _at(self, x: Array) -> NDArray[np.int64]:
        return np.array([self._find(point) for point in np.round(x, 9)])

    def _find(self, point: Array) -> int:
        known = self._place.get(point.tobytes())
        return int(((self._cells - point) ** 2).sum(axis=1).argmin()) if known is None else known

    def curves(self, x: Array) -> Array:
        return np.asarray(self._curves[self._at(x)])

    def breaks(self, x: Array) -> NDArray[np.int64]:
        return np.where(self._failed[self._at(x)], self._curves.shape[1], -1)


class _Model:
    """Curves by the better of a forest and a few networks; failures by a forest, where they break by the nearest."""

    def __init__(self, table: Table, x: Array, floor: float, seed: int) -> None:
        good = ~table.failed
        curves = np.minimum(table.curves[good], floor)
        kinds = [_forest(seed), _networks(seed)]
        errors = [_error(kind, x[good], curves.min(axis=1), seed) for kind in kinds]
        shapes = PCA(min(_SHAPES, *curves.shape), random_state=seed)
        self._curve = TransformedTargetRegressor(kinds[int(np.argmin(errors))], transformer=shapes, check_inverse=False)
        self._curve.fit(x[good], curves)
        self._lost = x[table.failed]
        self._broke = (~np.isnan(table.curves[table.failed])).sum(axis=1)
        self._risk, self._limit = ExtraTreesClassifier(_TREES, min_samples_leaf=2, random_state=seed), 1.0
        if table.failed.any():
            told = cross_val_predict(self._risk, x, table.failed, cv=StratifiedKFold(3), method="predict_proba")[:, 1]
            self._limit = float(np.quantile(told, 1 - table.failed.mean()))  # as many fail as did
            self._risk.fit(x, table.failed)

    def curves(self, x: Array) -> Array:
        return np.asarray(self._curve.predict(x)).reshape(len(x), -1)

    def breaks(self, x: Array) -> NDArray[np.int64]:
        found = np.full(len(x), -1)
        if len(self._lost):
            for i in np.flatnonzero(self._risk.predict_proba(x)[:, 1] > self._limit):
                found[i] = self._broke[((self._lost - x[i]) ** 2).sum(axis=1).argmin()]
        return found


def _forest(seed: int) -> ExtraTreesRegressor:
    return ExtraTreesRegressor(_TREES, min_samples_leaf=2, random_state=seed)


def _networks(seed: int) -> TransformedTargetRegressor:
    layers = [
        MLPRegressor(hidden_layer_sizes=(64, 64), alpha=1e-2, learning_rate_init=3e-3, max_iter=120, random_state=s)
        for s in range(seed, seed + _NETWORKS)
    ]
    many = _Mean([make_pipeline(StandardScaler(), one) for one in layers])
    return TransformedTargetRegressor(many, transformer=StandardScaler(), check_inverse=False)


class _Mean(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    """The mean of several regressors, of any number of outputs."""

    def __init__(self, members: list[Pipeline]) -> None:
        self.members = members

    def fit(self, x: Array, y: Array) -> _Mean:
        self.fitted_ = [clone(member).fit(x, y) for member in self.members]
        return self

    def predict(self, x: Array) -> Array:
        return np.asarray(np.mean([member.predict(x) for member in self.fitted_], axis=0))


def _error(kind: ExtraTreesRegressor | TransformedTargetRegressor, x: Array, losses: Array, seed: int) -> float:
    told = cross_val_predict(kind, x, losses, cv=KFold(3, shuffle=True, random_state=seed))
    return float(((told - losses) ** 2).mean())


def families(tables: Sequence[Table]) -> dict[str, list[Table]]:
    """Tables by the beginning of their names."""
    found: dict[str, list[Table]] = {}
    for table in tables:
        found.setdefault(table.family, []).append(table)
    return found
