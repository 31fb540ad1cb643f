from __future__ import annotations

import numpy as np
import pytest

from optimizer.search.surrogate import PRIOR_P_FAIL, Surrogate
from schema.runs import Outcome, RunHistory
from tests.optimizer.worlds import CLIFF, a_run, random_runs, space_of

SPACE = space_of()


def fit(history: list[RunHistory]) -> Surrogate:
    return Surrogate.fit(history, SPACE, 20.0, "base", "data")


@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_cold_start_promises_nothing(n: int) -> None:
    good = [h for h in random_runs(SPACE, 9, seed=0) if h.run.quality is not None][:n]
    found = fit(good).predict(SPACE.complete({}))
    assert (found.low, found.high, found.p_fail, found.n) == (0, 100, PRIOR_P_FAIL, n)
    assert len(found.nearest) == n
    assert fit(good).importance() == {}


@pytest.mark.parametrize("n", [12, 40])
def test_intervals_hold_about_as_often_as_they_say(n: int) -> None:
    held = []
    for seed in range(6):
        runs = random_runs(SPACE, n + 40, seed)
        model = fit(runs[:n])
        for run in runs[n:]:
            if run.run.quality is not None:
                prediction = model.predict(run.run.all_parameters)
                assert prediction.low <= prediction.quality <= prediction.high
                held.append(prediction.low <= run.run.quality <= prediction.high)
    assert 0.82 <= np.mean(held) <= 0.99


def test_it_learns_quality_and_risk() -> None:
    runs = random_runs(SPACE, 80, seed=1)
    model = fit(runs[:40])
    guess = np.mean([h.run.quality for h in runs[:40] if h.run.quality is not None])
    errors, constant = [], []
    for run in runs[40:]:
        prediction = model.predict(run.run.all_parameters)
        rate = float(run.run.all_parameters["learning_rate"] or 0)
        if run.run.quality is not None:
            errors.append(abs(prediction.quality - run.run.quality))
            constant.append(abs(guess - run.run.quality))
        if rate > 2 * CLIFF:
            assert prediction.p_fail > 0.5
        elif rate < CLIFF / 10 and (run.run.quality or 0) > 30:
            assert prediction.p_fail < 0.5
    assert np.mean(errors) < 0.4 * np.mean(constant)
    importance = model.importance()
    assert max(importance, key=lambda name: importance[name]) == "learning_rate"
    assert sum(importance.values()) == pytest.approx(1.0)


def test_crashes_and_bad_data_say_nothing_about_the_parameters() -> None:
    runs = random_runs(SPACE, 12, seed=2)
    noise = [a_run(50 + i, SPACE.complete({}), outcome=o) for i, o in enumerate((Outcome.CRASHED, Outcome.BAD_DATA))]
    assert fit(runs + noise).predict(SPACE.complete({})) == fit(runs).predict(SPACE.complete({}))


def test_runs_from_elsewhere_help_but_count_less() -> None:
    own = random_runs(SPACE, 5, seed=3)
    others = [
        a_run(100 + i, h.run.all_parameters, None if h.run.quality is None else h.run.quality / 2, base_model="other")
        for i, h in enumerate(random_runs(SPACE, 40, seed=4))
    ]
    test = [h for h in random_runs(SPACE, 40, seed=5) if h.run.quality is not None]

    def error(model: Surrogate) -> float:
        return float(np.mean([abs(model.predict(h.run.all_parameters).quality - (h.run.quality or 0)) for h in test]))

    assert error(fit(own + others)) < error(fit(own))
    elsewhere = Surrogate.fit(others, SPACE, 20.0, "base", "data").predict(SPACE.complete({}))
    at_home = Surrogate.fit(others, SPACE, 20.0, "other", "data").predict(SPACE.complete({}))
    assert abs(elsewhere.p_fail - PRIOR_P_FAIL) < abs(at_home.p_fail - PRIOR_P_FAIL) + 0.2


def test_the_same_history_gives_the_same_prediction() -> None:
    runs = random_runs(SPACE, 15, seed=6)
    assert fit(runs).predict(SPACE.complete({})) == fit(runs).predict(SPACE.complete({}))


def test_the_most_similar_run_is_named_first() -> None:
    runs = random_runs(SPACE, 15, seed=7)
    assert fit(runs).predict(runs[4].run.all_parameters).nearest[0] == runs[4].run.run_name


def test_runs_of_equal_quality_are_no_trouble() -> None:
    runs = [a_run(i, h.run.all_parameters, 50.0) for i, h in enumerate(random_runs(SPACE, 8, seed=8))]
    assert fit(runs).predict(SPACE.complete({})).quality == pytest.approx(50.0)
    same = [a_run(i, SPACE.complete({}), 40.0 + i) for i in range(5)]
    assert 40 <= fit(same).predict(SPACE.complete({})).quality <= 44


def test_a_prediction_says_how_it_may_fail_and_what_moves_it() -> None:
    runs = random_runs(SPACE, 60, seed=9)
    model = fit(runs)
    bad = model.predict(SPACE.complete({"learning_rate": 5e-2, "network_dim": 16}))
    assert sum(bad.failures.values()) == pytest.approx(bad.p_fail)
    assert max(bad.failures, key=lambda kind: bad.failures[kind]) == "diverged"
    low = model.predict(SPACE.complete({"learning_rate": 2e-5, "network_dim": 16}))
    assert min(low.moves, key=lambda name: low.moves[name]) == "learning_rate"
    assert low.moves["learning_rate"] < 0


def test_a_run_that_was_stopped_early_does_not_speak_against_a_slow_setting() -> None:
    fast = [a_run(i, SPACE.complete({"learning_rate": 10**-3 * (1 + i)}), curve=[60, 61, 62, 62]) for i in range(4)]
    slow = [a_run(9 + i, SPACE.complete({"learning_rate": 10**-5 * (1 + i)}), curve=[5, 9, 50, 60]) for i in range(3)]
    setting = SPACE.complete({"learning_rate": 10**-5 * 1.5})
    cut = a_run(20, setting, outcome=Outcome.STOPPED_EARLY, curve=[5, 9])
    assert fit([*fast, *slow, cut]).predict(setting).quality > 50
