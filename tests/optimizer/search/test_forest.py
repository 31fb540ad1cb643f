"""The forest against the trees of scikit-learn that it holds."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.tree import DecisionTreeRegressor

from optimizer.search.forest import Forest


def points(n: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(n)
    x = rng.random((n, d))
    return x, np.where(x[:, 0] > 0.5, 80.0, 20.0) + rng.normal(0, 2, n)


def grown_one_by_one(x: np.ndarray, y: np.ndarray, weight: np.ndarray, trees: int) -> list[tuple[np.ndarray, object]]:
    """Return the bootstrap counts and the trees that the documented procedure gives, in order."""
    rng, chance = np.random.default_rng(0), np.random.RandomState(0)
    point, found = x.astype(np.float32), []
    for _ in range(trees):
        drawn = np.bincount(rng.integers(0, len(x), len(x)), minlength=len(x)) * weight
        tree = DecisionTreeRegressor(min_samples_leaf=2, random_state=chance)
        found.append((drawn, tree.fit(point[drawn > 0], y[drawn > 0], sample_weight=drawn[drawn > 0])))
    return found


@pytest.mark.parametrize(("n", "d"), [(5, 1), (40, 3), (200, 6)])
def test_each_tree_answers_as_scikit_learns_does(n: int, d: int) -> None:
    x, y = points(n, d)
    weight = np.random.default_rng(1).uniform(0.2, 1.0, n)
    forest = Forest.fit(x, y, weight)
    answers = forest.each(x)
    new = np.random.default_rng(2).random((30, d))
    peers = grown_one_by_one(x, y, weight, answers.shape[1])
    expected = np.stack([tree.predict(new.astype(np.float32)) for _, tree in peers], axis=1)  # type: ignore[attr-defined]
    assert forest.each(new) == pytest.approx(expected)
    assert forest.predict(new) == pytest.approx(expected.mean(axis=1))


def test_what_is_left_out_is_answered_by_trees_that_did_not_see_it() -> None:
    x, y = points(30, 2)
    weight = np.ones(30)
    forest = Forest.fit(x, y, weight)
    peers = grown_one_by_one(x, y, weight, forest.each(x).shape[1])
    for place in range(30):
        blind = [tree for drawn, tree in peers if drawn[place] == 0]
        answers = [float(tree.predict(x[place : place + 1].astype(np.float32))[0]) for tree in blind]  # type: ignore[attr-defined]
        assert forest.left_out[place] == pytest.approx(np.mean(answers) if answers else y.mean())


def test_two_classes_give_the_share_of_the_second() -> None:
    x, y = points(60, 2)
    forest = Forest.fit(x, (y > 50).astype(float), np.ones(60))
    shares = forest.predict(np.array([[0.1, 0.5], [0.9, 0.5]]))
    assert shares[0] < 0.1
    assert shares[1] > 0.9
