from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, IntDistribution

from optimizer.search.space import PLAIN, Space
from schema.errors import ConfigError
from tests.optimizer.worlds import space_of

WIDE: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-1},
    "network_dim": {"choices": [4, 8, 16, 32, 64]},
    "train_batch_size": {"low": 1, "high": 4},
    "conv_dim": {"low": 0, "high": 16},
    "conv_alpha": {"low": 1, "high": 16},
    "lr_scheduler": {"choices": ["constant", "cosine"]},
    "shuffle_caption": {"choices": [True, False]},
}
SPACE = space_of(WIDE, fixed={"max_train_epochs": 4}, rules=("conv_alpha <= network_dim",))
UNITS = st.lists(st.floats(0, 1), min_size=len(WIDE), max_size=len(WIDE)).map(np.array)


@given(UNITS)
def test_every_point_is_a_setting_of_the_space(unit: np.ndarray) -> None:
    searched = SPACE.at(unit)
    assert SPACE.problems(searched) == []
    full = SPACE.complete(searched)
    assert full["max_train_epochs"] == 4
    assert SPACE.searched(full) == searched
    code = SPACE.encode(full)
    assert code.shape == (len(SPACE.columns),)
    assert ((code >= 0) & (code <= 1)).all()


@given(UNITS)
def test_a_point_is_found_again_from_its_setting(unit: np.ndarray) -> None:
    searched = SPACE.at(unit)
    again = SPACE.at(np.array([SPACE.unit(name, value) for name, value in searched.items()]))
    for name, value in searched.items():
        assert again[name] == pytest.approx(value) if isinstance(value, float) else again[name] == value


def test_learning_rates_are_searched_by_decades_unless_told_otherwise() -> None:
    assert SPACE.at(np.full(len(WIDE), 0.5))["learning_rate"] == pytest.approx(1e-3)
    linear = space_of({"learning_rate": {"low": 0.0, "high": 1.0, "log": False}})
    assert linear.at(np.array([0.5]))["learning_rate"] == 0.5


def test_settings_that_train_alike_have_the_same_key() -> None:
    base = SPACE.complete({"conv_dim": 0, "conv_alpha": 2.0, "learning_rate": 1e-3})
    assert SPACE.key(base) == SPACE.key(base | {"conv_alpha": 9.0})
    assert SPACE.key(base) == SPACE.key(base | {"unet_lr": 1e-3, "text_encoder_lr": 1e-3, "learning_rate": 0.5})
    assert SPACE.key(base) == SPACE.key(base | {"noise_offset": 0.0, "total_steps": 400})
    assert SPACE.key(base) != SPACE.key(base | {"seed": 1})
    assert SPACE.key(base | {"conv_dim": 4}) != SPACE.key(base | {"conv_dim": 4, "conv_alpha": 9.0})


def test_parameter_without_effect_is_encoded_the_same() -> None:
    off = SPACE.complete({"conv_dim": 0, "conv_alpha": 2.0})
    assert (SPACE.encode(off) == SPACE.encode(off | {"conv_alpha": 16.0})).all()
    on = off | {"conv_dim": 8}
    assert (SPACE.encode(on) != SPACE.encode(on | {"conv_alpha": 16.0})).any()


def test_numbers_from_outside_the_span_are_not_taken_for_its_border() -> None:
    column = SPACE.columns.index("learning_rate")
    far = SPACE.encode(SPACE.complete({"learning_rate": 1.0}))[column]
    assert 1.0 < far <= 2.0


def test_rules_see_fixed_and_default_parameters() -> None:
    assert SPACE.violations(SPACE.complete({"network_dim": 8, "conv_alpha": 9.0})) != []
    assert SPACE.violations(SPACE.complete({"network_dim": 16, "conv_alpha": 9.0})) == []
    with pytest.raises(ConfigError, match=r"change \[fixed\]"):
        space_of(fixed={"train_batch_size": 8}, rules=("train_batch_size <= 4",))


@pytest.mark.parametrize(
    "setting", [{"network_dim": 5}, {"learning_rate": 1.0}, {"train_batch_size": 1.5}, {"seed": 1}]
)
def test_foreign_settings_are_named(setting: dict[str, Any]) -> None:
    assert next(iter(setting)) in SPACE.problems(setting)[0]


def test_space_of_nothing_but_categories_is_encoded_one_column_a_category() -> None:
    space: Space = space_of({"optimizer_type": {"choices": ["AdamW", "Lion"]}})
    assert space.encode(space.complete({"optimizer_type": "Lion"})).tolist() == [0.0, 1.0]


@given(st.lists(UNITS, min_size=1, max_size=4))
def test_many_points_are_encoded_as_each_of_them(units: list[np.ndarray]) -> None:
    free = {n: WIDE[n] for n in ("learning_rate", "network_dim", "train_batch_size", "lr_scheduler")}
    logs = {"network_dim": {"low": 4, "high": 128, "log": True}}
    for space in (SPACE, space_of(free), space_of(logs)):
        points = np.array(units)[:, : len(space.names)]
        one_by_one = [space.encode(space.complete(space.at(u))) for u in points]
        assert space.encode_units(points) == pytest.approx(np.array(one_by_one))


def test_a_search_begins_with_what_is_known_to_work() -> None:
    space = space_of({"learning_rate": {"low": 1e-5, "high": 1e-2}, "network_dim": {"low": 2, "high": 8}})
    assert space.likely() == {"learning_rate": 3e-4, "network_dim": 4}


def test_a_space_of_any_parameters_needs_no_taxonomy() -> None:
    plain = Space({"depth": IntDistribution(1, 5), "kind": CategoricalDistribution(["a", "b"])}, {}, (), 0.0, PLAIN)
    assert plain.complete({"depth": 2, "kind": "a"}) == {"depth": 2, "kind": "a"}
    assert plain.encode({"depth": 3, "kind": "b"}).tolist() == [0.5, 0.0, 1.0]
    assert plain.key({"depth": 3, "kind": "b"}) != plain.key({"depth": 3, "kind": "a"})


RATIO = "network_alpha/network_dim"


def tied(span: dict[str, Any], **more: Any) -> Space:
    return space_of({"network_dim": {"low": 4, "high": 64, "log": True}, RATIO: span}, **more)


@pytest.mark.parametrize("span", [{"low": 0.25, "high": 1.0}, {"choices": [0.3, 0.5, 1.0]}])
@given(units=st.tuples(st.floats(0, 1), st.floats(0, 1)))
def test_a_ratio_follows_its_parameter_and_comes_back(span: dict[str, Any], units: tuple[float, float]) -> None:
    space = tied(span)
    searched = space.at(np.array(units))
    full = space.complete(searched)
    assert full["network_alpha"] == pytest.approx(searched[RATIO] * searched["network_dim"])
    assert RATIO not in full
    assert space.searched(full)[RATIO] == pytest.approx(searched[RATIO])
    assert space.problems(space.searched(full)) == []
    assert space.encode(full) == pytest.approx(space.encode_units(np.array([units]))[0], abs=1e-9)
    assert space.key(full) == space.key(space.settled(searched))
    assert space.units(full) == pytest.approx([space.unit(name, searched[name]) for name in space.names])


def test_a_ratio_is_begun_with_where_common_practice_has_it_and_rules_see_the_parameter() -> None:
    assert tied({"low": 0.25, "high": 1.0}).likely() == {"network_dim": 32, RATIO: 0.5}
    space = tied({"low": 0.25, "high": 4.0}, rules=["network_alpha <= network_dim"])
    assert space.violations(space.complete({"network_dim": 16, RATIO: 2.0})) != []
    assert space.violations(space.complete({"network_dim": 16, RATIO: 0.5})) == []


@pytest.mark.parametrize(
    "more",
    [
        {"network_alpha": {"low": 1, "high": 8}},  # twice
        {"network_dim/network_dim": {"low": 0.5, "high": 1}},
        {"network_alpha/optimizer_type": {"low": 0.5, "high": 1}},
        {"conv_dim/network_alpha": {"low": 0.5, "high": 1}},  # of a ratio
        {"conv_alpha/conv_dim": {"low": 0, "high": 1}},
        {"conv_alpha/conv_dim": {"choices": [True, False]}},
        {"network_alphas/network_dim": {"low": 0.5, "high": 1}},
    ],
)
def test_ratios_that_make_no_sense_are_refused(more: dict[str, Any]) -> None:
    with pytest.raises((ConfigError, ValueError)):
        space_of({"network_dim": {"low": 4, "high": 64}, RATIO: {"low": 0.5, "high": 1}, **more})
    with pytest.raises((ConfigError, ValueError), match="network_alpha"):
        tied({"low": 0.25, "high": 1.0}, fixed={"network_alpha": 8.0})
