from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from optimizer.control.budget import deadline, ended_at, hours_left, hours_used, spent
from schema.campaign import Budget
from schema.runs import RunHistory
from tests.optimizer.worlds import START, a_run

BUDGET = Budget(trials=10, hours=8.0, target_quality=75.0)


@pytest.mark.parametrize(
    ("done", "hours", "best", "reason"),
    [
        (3, 2.0, 70.0, None),
        (0, 0.0, None, None),
        (10, 2.0, 70.0, "10 trials"),
        (3, 8.0, 70.0, "hours"),
        (3, 2.0, 75.0, "target"),
    ],
)
def test_a_campaign_ends_at_its_first_limit(done: int, hours: float, best: float | None, reason: str | None) -> None:
    found = spent(BUDGET, done, hours, best)
    assert found is None if reason is None else reason in (found or "")


def test_time_left_is_bounded_by_trials_and_by_hours() -> None:
    assert hours_left(BUDGET, 0, 0.0) is None
    assert hours_left(BUDGET, 5, 2.0) == pytest.approx(2.0)
    assert hours_left(BUDGET, 5, 6.0) == pytest.approx(2.0)
    assert hours_left(Budget(trials=10), 5, 6.0) == pytest.approx(6.0)


def test_runs_side_by_side_take_their_time_once() -> None:
    def ran(begin: float, end: float) -> RunHistory:
        history = a_run(0, {}, 50.0)
        hours = {"started_at": START + timedelta(hours=begin), "finished_at": START + timedelta(hours=end)}
        return RunHistory(run=history.run.changed(**hours), epochs=history.epochs)

    assert hours_used([]) == 0.0
    assert hours_used([ran(0, 2), ran(1, 3), ran(1.5, 2), ran(5, 6)]) == pytest.approx(4.0)
    assert hours_used([ran(0, 2), ran(4, 1)]) == pytest.approx(2.0)  # the clock was set back


@given(st.lists(st.tuples(st.floats(0.1, 5), st.floats(-30, 30), st.floats(0, 20)), min_size=1, max_size=5))
def test_a_clock_that_jumps_and_a_run_that_waits_for_another_night_make_no_hours(
    runs: list[tuple[float, float, float]],
) -> None:
    """Runs one after another, each with the jump of the clock and the pause that come in its midst."""
    clock, history = START, list[RunHistory]()
    for worked, jump, pause in runs:
        begun, clock = clock, clock + timedelta(hours=worked + pause + jump)
        ended = ended_at(clock, worked * 3600, history)
        run = a_run(0, {"time_at_work": worked * 3600}, 50.0).run.changed(started_at=begun, finished_at=ended)
        history.append(RunHistory(run=run))
    assert hours_used(history) == pytest.approx(sum(worked for worked, _, _ in runs))


def test_money_is_hours_at_the_price_of_the_gpu() -> None:
    budget = Budget(trials=99, money=3.0, price_per_hour=0.5)
    assert spent(budget, 1, 5.9, None) is None
    assert spent(budget, 1, 6.0, None) == "3.00 of 3 are paid (6.0 hours at 0.5)"
    assert hours_left(budget, 5, 5.0) == pytest.approx(1.0)
    with pytest.raises(ValidationError, match="price_per_hour"):
        Budget(money=3.0)


def test_a_search_that_gains_nothing_more_has_converged() -> None:
    budget = Budget(trials=99, least_gain=0.5)
    assert spent(budget, 8, 1.0, 70.0, 0.2) == "another trial is expected to gain 0.20 points, less than 0.5"
    assert spent(budget, 7, 1.0, 70.0, 0.2) is None
    assert spent(budget, 8, 1.0, 70.0, None) is None
    assert spent(budget, 8, 1.0, 70.0, 0.7) is None


@given(st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2100, 1, 1)), st.times())
def test_a_time_of_day_is_the_next_one(now: datetime, until: time) -> None:
    ends = deadline(until, now.replace(tzinfo=UTC))
    assert timedelta() < ends - now.replace(tzinfo=UTC) <= timedelta(days=1)
    assert (ends.hour, ends.minute, ends.second) == (until.hour, until.minute, until.second)
