from __future__ import annotations

from typing import Any

import pytest

from optimizer.diagnosis.diagnose import blamed, diagnose_run
from optimizer.diagnosis.slowness import expected_hours
from schema.findings import Diagnosis
from schema.runs import RunHistory
from tests.optimizer.worlds import a_run, space_of

SPACE = space_of()
PICTURES = 100


def timed(number: int, seconds: float, **setting: Any) -> RunHistory:
    """A run of two epochs that took so long an epoch, with nothing wrong with its pictures."""
    parameters = SPACE.complete({"network_dim": 16, "num_repeats": 2, **setting})
    run = a_run(number, parameters, curve=(78.0, 80.0), num_images=PICTURES)
    return run.model_copy(update={"epochs": tuple(e.changed(seconds=seconds) for e in run.epochs)})


def slow(run: RunHistory, history: list[RunHistory]) -> Diagnosis | None:
    return next((d for d in diagnose_run(run, history, SPACE) if d.issue == "slow"), None)


USUAL = [timed(i, 100.0 + i, cache_latents=True) for i in range(5)]


def test_a_run_as_fast_as_others_is_not_slow() -> None:
    assert slow(timed(9, 120.0, cache_latents=True), USUAL) is None
    assert slow(timed(9, 900.0, cache_latents=True), USUAL[:1]) is None


def test_a_slow_run_among_equals_is_the_machines_fault() -> None:
    found = slow(timed(9, 300.0, cache_latents=True), USUAL)
    assert found is not None
    assert found.causes[0].factor == "machine"
    assert "2.9 times" in found.evidence[0]


@pytest.mark.parametrize(
    ("name", "value"),
    [("cache_latents", False), ("gradient_checkpointing", True), ("resolution", 1024), ("network_dim", 128),
     ("train_batch_size", 1)],
)  # fmt: skip
def test_the_setting_that_costs_time_is_named(name: str, value: Any) -> None:
    usual = [timed(i, 100.0 + i, cache_latents=True, train_batch_size=4) for i in range(5)]
    found = slow(timed(9, 300.0, **{"cache_latents": True, "train_batch_size": 4, name: value}), usual)
    assert found is not None
    assert found.causes[0].factor == name
    assert found.causes[0].confidence > 0.5


def test_what_past_runs_have_shown_to_be_slow_outweighs_experience() -> None:
    past = [*USUAL, *(timed(20 + i, 290.0 + i, gradient_checkpointing=True, cache_latents=True) for i in range(2))]
    past += [timed(30 + i, 103.0 + i, network_dim=64, cache_latents=True) for i in range(2)]
    found = slow(timed(9, 300.0, gradient_checkpointing=True, network_dim=64, cache_latents=True), past)
    assert found is not None
    first = found.causes[0]
    assert first.factor == "gradient_checkpointing"
    assert first.confidence > 0.7
    assert "2.8 times as long" in first.evidence[0]


def test_a_slow_run_is_blamed_for_no_picture() -> None:
    run = timed(9, 300.0, cache_latents=False)
    assert slow(run, USUAL) is not None
    assert blamed(diagnose_run(run, USUAL, SPACE)) == ()


def test_the_hours_of_a_training_are_those_of_runs_that_cost_the_same() -> None:
    setting = SPACE.complete({"network_dim": 16, "num_repeats": 4, "max_train_epochs": 10, "cache_latents": True})
    past = [*USUAL, *(timed(20 + i, 500.0, network_dim=128) for i in range(9))]
    assert expected_hours(setting, past, PICTURES) == pytest.approx(102 * 2 * 10 / 3600)
    assert expected_hours(setting | {"max_train_steps": 50}, past, PICTURES) == pytest.approx(102 / 200 * 50 / 3600)
    assert expected_hours(setting, [], PICTURES) is None
    assert expected_hours(setting, past, None) is None
