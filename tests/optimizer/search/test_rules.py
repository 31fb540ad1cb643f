from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.search.rules import Rule, text_of
from schema.errors import ConfigError
from schema.parameters import Parameters, ParameterValue


@pytest.mark.parametrize(
    ("text", "good", "bad"),
    [
        ("network_dim <= 32", {"network_dim": 32}, {"network_dim": 33}),
        ("learning_rate<1e-3", {"learning_rate": 9e-4}, {"learning_rate": 1e-3}),
        ("conv_alpha <= conv_dim", {"conv_alpha": 8, "conv_dim": 8}, {"conv_alpha": 9, "conv_dim": 8}),
        ("optimizer_type != Lion", {"optimizer_type": "AdamW"}, {"optimizer_type": "Lion"}),
        ("lr_scheduler == 'cosine'", {"lr_scheduler": "cosine"}, {"lr_scheduler": "linear"}),
        ("flip_aug == false", {"flip_aug": False}, {"flip_aug": True}),
    ],
)  # fmt: skip
def test_rule_tells_good_settings_from_bad(text: str, good: Parameters, bad: Parameters) -> None:
    rule = Rule.parse(text)
    assert rule.holds(good)
    assert not rule.holds(bad)
    assert rule.left in rule.violation(bad)
    assert Rule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    ("text", "mend"),
    [
        ("network_dimm <= 32", "network_dim"),
        ("network_dim", "network_dim <= 32"),
        ("4 <= network_dim", "network_dim <= 32"),
        ("4 <= network_dim <= 32", "network_dim <= 32"),
        ("network_dim <= many", "neither a number nor"),
        ("optimizer_type < Lion", "== or !="),
        ("optimizer_type == Lyon", "must be one of"),
        ("flip_aug == maybe", "of type bool"),
        ("network_dim <= optimizer_type", "of type str"),
        ("total_steps <= 5", "computed"),
    ],
)
def test_nonsense_is_refused_with_a_mend(text: str, mend: str) -> None:
    with pytest.raises(ConfigError, match=mend):
        Rule.parse(text)


@given(st.text(max_size=40))
def test_any_text_is_a_rule_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert isinstance(Rule.parse(text), Rule)


def test_unset_parameter_breaks_no_rule() -> None:
    assert Rule.parse("unet_lr <= 0.001").holds({"unet_lr": None})


@pytest.mark.parametrize(
    ("value", "text"),
    [(1024.0, "1024"), (0.0004, "0.0004"), (1.0, "1"), (2.5, "2.5"), (True, "true"), (None, "not set")],
)
def test_values_are_written_as_people_do(value: ParameterValue, text: str) -> None:
    assert text_of(value) == text
