"""A random forest (Breiman, 2001) that answers for one point in a fraction of a millisecond.

Scikit-learn grows the trees one by one; here they lie in plain arrays. Its own forest would take longer over
its housekeeping than a whole judgement may take.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.tree import DecisionTreeRegressor

Array = NDArray[np.float64]
Indices = NDArray[np.int64]

_TREES = 40
_LEAF = 2


@dataclass(frozen=True)
class Forest:
    """Trees side by side, shape (trees, nodes); node 0 is a root, a leaf is its own child."""

    feature: Indices
    threshold: Array
    left: Indices
    right: Indices
    value: Array
    depth: int

    @classmethod
    def fit(cls, x: Array, y: NDArray[np.bool_], weight: Array) -> Forest:
        """Grow a forest that tells two classes apart.

        Args:
            x: shape (n, d).
            y: shape (n,); both classes must occur.
            weight: shape (n,), how much a point counts.
        """
        rng = np.random.default_rng(0)
        point, kind = np.ascontiguousarray(x, dtype=np.float32), y.astype(float)
        tried = max(int(math.sqrt(x.shape[1])), 1)
        trees: list[Any] = []
        while len(trees) < _TREES:
            drawn = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x)) * weight
            part = drawn > 0
            # Of a variable that is 0 or 1 the variance is half of Gini's index: the same splits.
            tree = DecisionTreeRegressor(max_features=tried, min_samples_leaf=_LEAF, random_state=len(trees))
            tree.fit(point[part], kind[part], sample_weight=drawn[part], check_input=False)
            trees.append(tree.tree_)
        size = max(tree.node_count for tree in trees)
        feature, left, right = (np.zeros((len(trees), size), dtype=np.int64) for _ in range(3))
        threshold, value = np.zeros((len(trees), size)), np.zeros((len(trees), size))
        for i, tree in enumerate(trees):
            nodes = np.arange(tree.node_count)
            leaf = tree.children_left < 0
            feature[i, nodes] = np.where(leaf, 0, tree.feature)
            threshold[i, nodes] = tree.threshold
            left[i, nodes] = np.where(leaf, nodes, tree.children_left)
            right[i, nodes] = np.where(leaf, nodes, tree.children_right)
            value[i, nodes] = tree.value[:, 0, 0]
        return cls(feature, threshold, left, right, value, max(tree.max_depth for tree in trees))

    def predict(self, x: Array) -> Array:
        """Share of the trees' votes for True at points (m, d): shape (m,)."""
        rows, trees = np.arange(len(x))[:, None], np.arange(len(self.feature))[None, :]
        node = np.zeros((len(x), len(self.feature)), dtype=np.int64)
        point = x.astype(np.float32)  # as the trees were grown
        for _ in range(self.depth):
            goes_left = point[rows, self.feature[trees, node]] <= self.threshold[trees, node]
            node = np.where(goes_left, self.left[trees, node], self.right[trees, node])
        return np.asarray(self.value[trees, node].mean(axis=1))
