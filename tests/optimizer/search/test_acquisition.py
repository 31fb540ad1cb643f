from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from optimizer.search.acquisition import expected_gain, log_improvement
from optimizer.search.study import CampaignStudy
from optimizer.search.surrogate import Surrogate
from schema.parameters import Parameters
from schema.runs import RunHistory
from tests.optimizer.worlds import CLIFF, a_run, peak, random_runs, space_of

SPACE = space_of()


def fit(history: list[RunHistory], base: str = "base") -> Surrogate:
    return Surrogate.fit(history, SPACE, 20.0, base, "data")


def asked(folder: Path, surrogate: Surrogate, count: int) -> list[Parameters]:
    study = CampaignStudy.open("night", f"sqlite:///{folder}/optuna.db", SPACE, "model", seed=3)
    found = [study.ask(surrogate=surrogate).parameters for _ in range(count)]
    study.close()
    return found


def test_the_logarithm_is_that_of_the_expected_improvement_and_finite_far_below() -> None:
    mean, sd = np.array([60.0, 50.0, 30.0]), np.array([5.0, 10.0, 4.0])
    z = (mean - 55.0) / sd
    assert np.exp(log_improvement(mean, sd, 55.0)) == pytest.approx(
        (mean - 55.0) * norm.cdf(z) + sd * norm.pdf(z), rel=0.13
    )
    far = log_improvement(np.array([0.0, 1.0]), np.array([1.0, 1.0]), 1000.0)
    assert np.isfinite(far).all()
    assert far[1] > far[0]


def test_side_by_side_trials_are_no_twins(tmp_path: Path) -> None:
    settings = asked(tmp_path, fit(random_runs(SPACE, 20, seed=0)), 4)
    points = [SPACE.encode(SPACE.complete(s)) for s in settings]
    apart = [np.abs(a - b).max() for i, a in enumerate(points) for b in points[:i]]
    assert min(apart) > 0.01


def test_it_goes_to_the_peak_and_not_over_the_cliff(tmp_path: Path) -> None:
    for setting in asked(tmp_path, fit(random_runs(SPACE, 40, seed=1)), 3):
        assert float(setting["learning_rate"] or 0) < CLIFF
        assert (peak(setting) or 0.0) > 55


def test_runs_on_another_model_tell_where_to_begin(tmp_path: Path) -> None:
    elsewhere = [
        a_run(i, h.run.all_parameters, h.run.quality, base_model="other")
        for i, h in enumerate(random_runs(SPACE, 40, seed=2))
    ]
    first = asked(tmp_path, fit(elsewhere), 1)[0]
    assert (peak(first) or 0.0) > 65


def test_less_is_expected_of_a_search_that_has_found_the_peak() -> None:
    few, many = random_runs(SPACE, 6, seed=4), random_runs(SPACE, 60, seed=4)
    top = a_run(99, SPACE.complete({"learning_rate": 10**-3.2, "network_dim": 23, "optimizer_type": "AdamW"}), 80.0)
    assert expected_gain(fit([]), 0) is None
    assert 0 < (expected_gain(fit([*many, top]), 0) or 0) < (expected_gain(fit(few), 0) or 0)
