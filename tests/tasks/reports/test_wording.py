from __future__ import annotations

import pytest

from tasks.reports import wording


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (0, "0 s"), (42.4, "42 s"), (200, "3 min 20 s"), (1500, "25 min"), (25_500, "7 h 05 min")],
)
def test_durations_read_as_people_say_them(seconds: float | None, text: str) -> None:
    assert wording.duration(seconds) == text


def test_values_stand_as_in_a_toml() -> None:
    values = {"learning_rate": 0.0004, "flip_aug": True, "network_dim": 16, "clip_skip": None, "lr_scheduler": "cosine"}
    assert wording.settings(values) == (
        "learning_rate=0.0004, flip_aug=true, network_dim=16, clip_skip=–, lr_scheduler=cosine"
    )


def test_a_p_value_is_never_zero() -> None:
    assert wording.p_value(0.0) == "< 0.001"
    assert wording.p_value(0.049) == "0.049"


def test_what_is_missing_is_a_dash_not_a_zero() -> None:
    assert {wording.score(None), wording.signed(None), wording.percent(None), wording.interval(None, 2.0)} == {"–"}
