"""A random forest (Breiman, 2001) that answers for one point in a fraction of a millisecond.

Scikit-learn grows the trees; here they lie in plain arrays, since its own prediction of a single point costs
more than the judgement may.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestClassifier

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
        grown = RandomForestClassifier(_TREES, min_samples_leaf=_LEAF, random_state=0).fit(x, y, sample_weight=weight)
        trees = [one.tree_ for one in grown.estimators_]
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
            shares = tree.value[:, 0, :]
            value[i, nodes] = shares[:, 1] / shares.sum(axis=1)
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
