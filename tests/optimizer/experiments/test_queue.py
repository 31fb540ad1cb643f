from __future__ import annotations

from datetime import timedelta

import pytest

from optimizer.experiments.queue import by_hand, known, queue_of, refused, reordered, settled, started, with_queue
from schema.errors import ConfigError, NotFoundError
from schema.findings import Hypothesis, Prediction
from schema.parameters import Parameters
from schema.runs import RunHistory
from tests.optimizer.worlds import START, a_run, space_of

SPACE = space_of(rules=["network_dim <= 64"])
BEST = a_run(0, SPACE.complete({"network_dim": 16, "learning_rate": 1e-3}), 60.0)


def asked(change: Parameters, quality: float = 66.0) -> Hypothesis:
    expected = Prediction(quality=quality, low=50.0, high=80.0, p_fail=0.1, n=5)
    return by_hand(change, [BEST], SPACE, expected, "night", START + timedelta(minutes=30))


def result(hypothesis: Hypothesis, quality: float | None, number: int = 1, seed: int = 0) -> RunHistory:
    parameters = {**hypothesis.parameters, "seed": seed}
    return a_run(number, parameters, quality, finished_at=START + timedelta(hours=number))


def test_an_experiment_by_hand_changes_the_best_run() -> None:
    hypothesis = asked({"network_dim": 32})
    assert hypothesis.parameters["learning_rate"] == 1e-3
    assert hypothesis.parameters["network_dim"] == 32
    assert hypothesis.gain == pytest.approx(6.0)
    assert asked({"network_dim": 32}).uid == hypothesis.uid


@pytest.mark.parametrize("change", [{"network_dim": 128}, {"network_dim": 5000}, {"keep_tokens": 1}])
def test_what_cannot_run_is_refused(change: Parameters) -> None:
    with pytest.raises(ConfigError, match="cannot run"):
        asked(change)


def test_the_queue_is_ordered_and_left() -> None:
    three = [asked({"network_dim": d}) for d in (8, 24, 32)]
    waiting = queue_of(with_queue(three, three))
    assert [h.change["network_dim"] for h in waiting] == [8, 24, 32]
    moved = queue_of(with_queue(waiting, reordered(waiting, 3, 1)))
    assert [h.change["network_dim"] for h in moved] == [32, 8, 24]
    left = with_queue(moved, moved[1:])
    assert [h.change["network_dim"] for h in queue_of(left)] == [8, 24]
    assert [h.state for h in left] == ["queued", "queued", "proposed"]
    with pytest.raises(NotFoundError, match="it holds 3"):
        reordered(waiting, 4, 1)


def test_a_setting_that_starts_or_is_refused_leaves_the_queue() -> None:
    (waiting,) = with_queue([asked({"network_dim": 32})], [asked({"network_dim": 32})])
    (running,) = started([waiting], waiting.parameters, SPACE)
    assert running.state == "running"
    (gone,) = refused([waiting], waiting.parameters, SPACE, "it failed before")
    assert gone.state == "inconclusive"
    assert "it failed before" in gone.rationale
    assert started([waiting], BEST.run.all_parameters, SPACE) == [waiting]
    assert known([running, asked({"network_dim": 8})]) == {running.uid}


@pytest.mark.parametrize(
    ("quality", "state"), [(70.0, "confirmed"), (60.5, "inconclusive"), (55.0, "refuted"), (None, "refuted")]
)
def test_a_run_settles_what_it_bears_on(quality: float | None, state: str) -> None:
    hypothesis = asked({"network_dim": 32}).changed(state="running")
    (told,) = settled([hypothesis], [BEST, result(hypothesis, quality)], SPACE)
    assert told.state == state
    assert "night-001" in told.rationale
    assert settled([hypothesis], [BEST], SPACE) == [hypothesis]


def test_the_noise_is_that_of_repeated_settings() -> None:
    hypothesis = asked({"network_dim": 32}).changed(state="running")
    repeats = [
        a_run(10 + i, SPACE.complete({"network_dim": 8}) | {"seed": i}, quality)
        for i, quality in enumerate([40.0, 50.0, 45.0, 55.0])
    ]
    (told,) = settled([hypothesis], [BEST, *repeats, result(hypothesis, 66.0)], SPACE)
    assert told.state == "inconclusive"
