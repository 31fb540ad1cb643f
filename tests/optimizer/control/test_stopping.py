from __future__ import annotations

import numpy as np
import pytest

from optimizer.control.stopping import Outlook, chance_of_front, chance_of_gain, expected_ends, should_stop
from schema.campaign import StoppingSettings
from schema.runs import Outcome, RunHistory
from tests.optimizer.worlds import a_run, metrics

SETTINGS = StoppingSettings()
HISTORY = [a_run(i, {"max_train_epochs": 5}, curve=[20 + i, 40 + i, 55, 58 + i, 60 + i]) for i in range(6)]


def going(*curve: float) -> RunHistory:
    """A run with these epochs so far."""
    return a_run(90, {"max_train_epochs": 5}, curve=curve)


def test_a_hopeless_trial_stops_with_the_figures() -> None:
    reason = should_stop(going(5, 6, 7), HISTORY, SETTINGS, 5)
    assert reason is not None
    assert "night-005" in reason
    assert "58.0 points" in reason


@pytest.mark.parametrize(
    "curve",
    [
        [],
        [2],  # before min_epochs
        [30, 45],  # on the way of the others
        [30, 80],  # the best already
        [5, 5, 5, 5, 5],  # at its end anyway
    ],
)
def test_others_go_on(curve: list[float]) -> None:
    assert should_stop(going(*curve), HISTORY, SETTINGS, 5) is None


def test_nothing_stops_without_evidence_or_when_switched_off() -> None:
    bad = going(5, 6, 7)
    assert should_stop(bad, HISTORY[:2], SETTINGS, 5) is None
    assert should_stop(bad, HISTORY, StoppingSettings(enabled=False), 5) is None
    crashed = [a_run(i, {"max_train_epochs": 5}, outcome=Outcome.CRASHED, curve=[50, 60]) for i in range(9)]
    assert should_stop(bad, crashed, SETTINGS, 5) is None


def test_gains_are_compared_at_the_same_share_of_the_run() -> None:
    assert Outlook(HISTORY[:1], 5).gains(2).tolist() == [20.0]
    assert Outlook(HISTORY[:1], 10).gains(4).tolist() == [20.0]
    stopped = [a_run(0, {}, outcome=Outcome.STOPPED_EARLY, curve=[1, 2, 3])]
    assert len(Outlook(stopped, 3).gains(1)) == 0


def test_a_forecast_follows_the_runs_that_stood_alike() -> None:
    slow = [a_run(i, {"max_train_epochs": 4}, curve=[10, 12, 14, 15 + i]) for i in range(4)]
    fast = [a_run(9 + i, {"max_train_epochs": 4}, curve=[40, 60, 70, 80 + i]) for i in range(4)]
    outlook = Outlook(slow + fast, 4)
    low, high = outlook.forecast([(1, 11.0), (2, 12.0)]), outlook.forecast([(1, 42.0), (2, 61.0)])
    assert low is not None
    assert high is not None
    assert low.quality == pytest.approx(16.5, abs=1)
    assert high.quality == pytest.approx(82.5, abs=1)
    assert outlook.chance([(1, 11.0), (2, 12.0)], 80.0) < 0.2 < outlook.chance([(1, 42.0), (2, 61.0)], 80.0)
    assert outlook.forecast([]) is None


def test_of_runs_that_stood_alike_those_that_rose_as_fast_tell_more() -> None:
    flat = [a_run(i, {"max_train_epochs": 6}, curve=[40, 40, 40, 40, 41, 41 + i]) for i in range(4)]
    steep = [a_run(9 + i, {"max_train_epochs": 6}, curve=[10, 20, 40, 60, 70, 75 + i]) for i in range(4)]
    outlook = Outlook(flat + steep, 6)
    assert outlook.chance([(1, 40.0), (2, 40.0), (3, 40.0)], 70.0) < 0.2
    assert outlook.chance([(1, 11.0), (2, 21.0), (3, 40.0)], 70.0) > 0.7


def test_of_several_objectives_one_that_is_not_beaten_is_enough() -> None:
    front = np.array([[80.0, 20.0], [50.0, 50.0]])
    gains = np.array([[5.0, 5.0], [10.0, 0.0]])
    assert chance_of_front(np.array([20.0, 10.0]), gains, front) < 0.2
    assert chance_of_front(np.array([20.0, 60.0]), gains, front) > 0.8


def test_chance_falls_with_what_is_missing_and_is_never_sure_from_few_runs() -> None:
    chances = [chance_of_gain([1.0, 2.0, 3.0], needed) for needed in (0, 1, 5, 20, 60)]
    assert chances[0] == 1.0
    assert chances == sorted(chances, reverse=True)
    assert chance_of_gain([1.0, 2.0, 3.0], 5.0) > chance_of_gain([1.0, 2.0, 3.0] * 5, 5.0) > 0
    assert chance_of_gain([0.0, 0.0], 5.0) > chance_of_gain([0.0, 0.0], 5.0, left=0.1) > 0


def test_a_stopped_run_is_taken_for_what_it_was_on_its_way_to() -> None:
    cut = a_run(50, {"max_train_epochs": 5}, outcome=Outcome.STOPPED_EARLY, curve=[21, 41])
    leader = a_run(51, {"max_train_epochs": 5}, outcome=Outcome.STOPPED_EARLY, curve=[60, 64])
    ends = expected_ends([*HISTORY, cut, leader])
    assert ends[cut.run.uid] == pytest.approx(61.0, abs=2)
    assert ends[leader.run.uid] == 65.0  # no better than the best that was seen to its end
    assert expected_ends([*HISTORY[:1], cut]).keys() == {cut.run.uid}
    assert expected_ends([cut]) == {}
    elsewhere = a_run(52, {}, outcome=Outcome.STOPPED_EARLY, curve=[21], base_model="other")
    assert expected_ends([*HISTORY, elsewhere]) == {}


def test_a_run_that_may_reach_the_front_of_several_objectives_goes_on() -> None:
    """Hopeless in quality, the best in style: with objectives it is no loss."""
    several = StoppingSettings(objectives=("colour", "style"))
    measured = [metrics(q, colour=30.0, style=90.0) for q in (5, 6, 7)]
    stylish = a_run(90, {"max_train_epochs": 5}, epochs=measured)
    others = [
        a_run(i, {"max_train_epochs": 5}, epochs=[metrics(q + i, colour=q, style=q) for q in (20, 40, 55, 58, 60)])
        for i in range(6)
    ]
    assert should_stop(stylish, others, SETTINGS, 5) is not None
    assert should_stop(stylish, others, several, 5) is None
    poor = a_run(90, {"max_train_epochs": 5}, epochs=[metrics(q, colour=9.0, style=9.0) for q in (5, 6, 7)])
    reason = should_stop(poor, others, several, 5)
    assert reason is not None
    assert "front of colour and style" in reason


@pytest.mark.parametrize("names", [["style"], ["style", "style"], ["style", "photorealism"]])
def test_objectives_that_are_no_front_are_refused(names: list[str]) -> None:
    with pytest.raises(ValueError, match="objectives"):
        StoppingSettings.model_validate({"objectives": names})
