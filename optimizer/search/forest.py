"""Bagged trees (Breiman, 1996) that answer for one point in a fraction of a millisecond.

Scikit-learn grows the trees one by one; here they lie in plain arrays. Its own forest would take longer over
its housekeeping than a whole judgement may take.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import config_context
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
    left_out: Array  # (n,), each point's answer by the trees that did not see it

    @classmethod
    def fit(cls, x: Array, y: Array, weight: Array) -> Forest:
        """Grow a forest.

        Args:
            x: shape (n, d).
            y: shape (n,); 0 and 1 for two classes, then the answer is the second one's share.
            weight: shape (n,), how much a point counts.
        """
        rng = np.random.default_rng(0)
        point = np.ascontiguousarray(x, dtype=np.float32)
        trees: list[Any] = []
        unseen = np.zeros((_TREES, len(x)), dtype=bool)
        chance = np.random.RandomState(0)  # one for all trees: to make one costs as much as to grow a tree
        with config_context(assume_finite=True, skip_parameter_validation=True):
            while len(trees) < _TREES:
                drawn = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x)) * weight
                part = drawn > 0
                unseen[len(trees)] = ~part
                # Of a variable that is 0 or 1 the variance is half of Gini's index: the same splits.
                tree = DecisionTreeRegressor(min_samples_leaf=_LEAF, random_state=chance)
                tree.fit(point[part], y[part], sample_weight=drawn[part], check_input=False)
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
        depth = max(tree.max_depth for tree in trees)
        overall = np.full(len(x), float(np.average(y, weights=weight)))
        grown = cls(feature, threshold, left, right, value, depth, overall)
        known = unseen.any(axis=0)
        grown.left_out[known] = ((grown.each(x).T * unseen).sum(axis=0) / np.maximum(unseen.sum(axis=0), 1))[known]
        return grown

    def predict(self, x: Array) -> Array:
        """The trees' mean answer at points (m, d): shape (m,)."""
        return np.asarray(self.each(x).mean(axis=1))

    def each(self, x: Array) -> Array:
        """Each tree's answer: shape (m, trees)."""
        rows, trees = np.arange(len(x))[:, None], np.arange(len(self.feature))[None, :]
        node = np.zeros((len(x), len(self.feature)), dtype=np.int64)
        point = x.astype(np.float32)  # as the trees were grown
        for _ in range(self.depth):
            goes_left = point[rows, self.feature[trees, node]] <= self.threshold[trees, node]
            node = np.where(goes_left, self.left[trees, node], self.right[trees, node])
        return np.asarray(self.value[trees, node])
