from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.errors import ConfigError
from schema.parameters import (
    PARAMETERS,
    check_parameters,
    markdown_table,
    parameter,
    parse_setting,
    with_defaults,
)
from schema.taxonomy import Kind

ROADMAP = """network_dim network_alpha conv_dim conv_alpha learning_rate unet_lr text_encoder_lr lr_scheduler
lr_warmup_steps optimizer_type max_train_epochs save_every_n_epochs caption_version caption_complexity
num_images resolution keep_tokens caption_dropout_rate caption_extension shuffle_caption color_aug flip_aug
noise_offset bucket_no_upscale bucket_reso_steps min_bucket_reso max_bucket_reso gradient_checkpointing
gradient_accumulation_steps max_grad_norm mixed_precision xformers sdpa full_fp16 min_snr_gamma
prior_loss_weight train_batch_size seed steps_per_epoch total_steps total_training_time checkpoint_size_mb""".split()


@pytest.mark.parametrize("name", ROADMAP)
def test_every_parameter_of_the_roadmap_is_in_the_taxonomy(name: str) -> None:
    assert parameter(name).effect


@pytest.mark.parametrize("spec", PARAMETERS.values(), ids=lambda p: p.name)
def test_defaults_are_valid_values(spec) -> None:
    assert spec.check(spec.default) == spec.default


def test_a_misspelt_parameter_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        check_parameters({"learning_rat": 1e-4})


def test_a_derived_parameter_cannot_be_set() -> None:
    with pytest.raises(ConfigError, match="total_steps is computed"):
        check_parameters({"total_steps": 100})


@pytest.mark.parametrize(
    ("name", "value"),
    [("network_dim", 0), ("network_dim", "8"), ("network_dim", 8.5), ("shuffle_caption", 1), ("lr_scheduler", "cosin")],
)
def test_bad_values_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        check_parameters({name: value})


def test_whole_numbers_take_the_parameters_own_type() -> None:
    checked = check_parameters({"network_alpha": 8, "network_dim": 8.0})
    assert isinstance(checked["network_alpha"], float)
    assert isinstance(checked["network_dim"], int)


def test_defaults_fill_in_everything_that_can_be_set() -> None:
    filled = with_defaults({"network_dim": 16})
    assert filled["network_dim"] == 16
    assert set(filled) == {p.name for p in PARAMETERS.values() if not p.derived}


@given(st.sampled_from([p for p in PARAMETERS.values() if p.kind is Kind.FLOAT and not p.derived]), st.floats(0, 1))
def test_settings_survive_being_written_as_text(spec, value: float) -> None:
    try:
        expected = spec.check(value)
    except ConfigError:
        return
    assert parse_setting(f"{spec.name}={value!r}") == (spec.name, expected)


def test_text_booleans_and_numbers_are_read_as_their_kind() -> None:
    assert parse_setting("shuffle_caption = true") == ("shuffle_caption", True)
    assert parse_setting("network_dim=8") == ("network_dim", 8)
    assert parse_setting("lr_scheduler=cosine") == ("lr_scheduler", "cosine")


@pytest.mark.parametrize("text", ["network_dim", "network_dim=eight", "network_dim=", "network_dims=8"])
def test_nonsense_settings_get_one_sentence(text: str) -> None:
    with pytest.raises(ConfigError, match="network_dim"):
        parse_setting(text)


def test_the_page_of_parameters_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "parameters.md"
    assert page.read_text(encoding="utf-8") == markdown_table(), "write it anew from schema.parameters.markdown_table()"
