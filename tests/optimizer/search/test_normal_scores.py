from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.search.normal_scores import NormalScores

QUALITIES = st.lists(st.floats(0, 100).map(lambda q: round(q, 3)), min_size=1, max_size=30)


@given(QUALITIES, st.floats(-4, 4), st.floats(0.01, 4))
def test_the_scale_rises_and_leads_back(qualities: list[float], score: float, more: float) -> None:
    y = np.array(qualities)
    scale = NormalScores.of(y, np.ones(len(y)))
    assert scale.quality(scale.score(y)) == pytest.approx(y, abs=1e-6)
    low, high = scale.quality(np.array([score, score + more]))
    assert low < high


def test_one_run_that_went_to_nothing_moves_the_scores_of_none_of_the_others() -> None:
    fine = np.array([70.0, 72.0, 74.0, 76.0])
    near, far = (NormalScores.of(np.array([lost, *fine]), np.ones(5)) for lost in (60.0, 0.0))
    assert near.score(fine) == pytest.approx(far.score(fine))
    assert float(near.score(np.array([74.0]))[0]) == pytest.approx(0.524, abs=1e-3)


def test_runs_that_count_less_take_less_of_the_scale() -> None:
    y = np.array([10.0, 20.0, 30.0])
    light = NormalScores.of(y, np.array([0.1, 1.0, 1.0]))
    assert light.score(y)[0] < NormalScores.of(y, np.ones(3)).score(y)[0]
