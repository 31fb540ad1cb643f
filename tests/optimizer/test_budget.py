from __future__ import annotations

import pytest

from optimizer.budget import hours_left, spent
from schema.campaign import Budget

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
