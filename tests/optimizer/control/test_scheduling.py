"""What a campaign does next, without a database: every combination of small numbers."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.control.scheduling import ELSEWHERE, Resume, Run, Step, Stop, Wait, next_step

IDLE: dict[str, Any] = {
    "cut_off": None, "spent": None, "finished": 0, "running": 0, "running_here": 0, "trials": 3, "patient": True,
}  # fmt: skip

situations = st.fixed_dictionaries(
    {
        "cut_off": st.none() | st.integers(0, 5),
        "spent": st.none() | st.just("all 3 trials are done"),
        "finished": st.integers(0, 5),
        "running": st.integers(0, 4),
        "running_here": st.integers(0, 4),
        "trials": st.integers(1, 5),
        "patient": st.booleans(),
    }
).filter(lambda s: s["running_here"] <= s["running"])


@pytest.mark.parametrize(
    ("changes", "step"),
    [
        ({}, Run()),
        ({"cut_off": 2}, Resume(2)),
        ({"cut_off": 2, "spent": "time is up"}, Resume(2)),
        ({"finished": 2, "running": 1, "running_here": 1}, Wait()),
        ({"finished": 2, "running": 1}, Stop(ELSEWHERE)),
        ({"finished": 3, "spent": "all 3 trials are done"}, Stop("all 3 trials are done")),
        ({"finished": 3, "spent": "done", "running": 1, "running_here": 1}, Wait()),
        ({"finished": 3, "spent": "done", "running": 1, "running_here": 1, "patient": False}, Stop("done")),
        ({"finished": 1, "running": 1, "running_here": 1}, Run()),
    ],
)
def test_each_situation_has_its_step(changes: dict[str, Any], step: Step) -> None:
    assert next_step(**{**IDLE, **changes}) == step


@given(situations)
def test_no_step_overshoots_the_budget(situation: dict[str, Any]) -> None:
    if isinstance(next_step(**situation), Run):
        assert situation["spent"] is None
        assert situation["finished"] + situation["running"] + 1 <= situation["trials"]


@given(situations)
def test_nothing_ends_while_it_could_go_on(situation: dict[str, Any]) -> None:
    step = next_step(**situation)
    if isinstance(step, Stop):
        assert situation["cut_off"] is None
        assert situation["spent"] is not None or situation["finished"] + situation["running"] >= situation["trials"]
        assert step.reason
    if isinstance(step, Wait):
        assert situation["running_here"] > 0


@given(situations)
def test_a_campaign_alone_ends_after_its_trials(situation: dict[str, Any]) -> None:
    state = {**situation, "cut_off": None, "spent": None, "finished": 0, "running": 0, "running_here": 0}
    steps = 0
    while isinstance(next_step(**state), Run):
        state["finished"] += 1
        steps += 1
    assert steps == state["trials"]
