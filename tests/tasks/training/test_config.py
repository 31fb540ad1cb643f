from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.errors import ConfigError
from schema.parameters import with_defaults
from tasks.training.config import load_config, write_config

PLACES = 'pretrained_model_name_or_path = "m"\ntrain_data_dir = "d"\noutput_dir = "o"\n'


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "trial.toml"
    path.write_text(PLACES + text)
    return path


@given(dim=st.integers(1, 128), rate=st.floats(1e-6, 1.0), shuffle=st.booleans())
def test_what_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, dim: int, rate: float, shuffle: bool
) -> None:
    path = tmp_path_factory.mktemp("config") / "trial.toml"
    parameters = with_defaults({"network_dim": dim, "learning_rate": rate, "shuffle_caption": shuffle})
    write_config(path, parameters, base_model="m", dataset_dir=Path("d"), output_dir=Path("o"), output_name="n")
    assert load_config(path).parameters == parameters


def test_sections_are_cosmetic_as_in_kohyas_files(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[network]\nnetwork_dim = 32\n[optimizer]\nlearning_rate = 1e-4\n"))
    assert config.integer("network_dim") == 32
    assert config.number("learning_rate") == 1e-4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rat = 1e-4", "did you mean learning_rate"),
        ("network_dim = '8'", "network_dim must be of type int"),
        ("color_aug = true", "set cache_latents = false"),
        ("xformers = true", "needs the package xformers"),
        ("full_fp16 = true", "full_fp16 needs mixed_precision"),
        ("max_token_length = 100", "75, 150 or 225"),
        ("output_name = '../../elsewhere'", "output_name"),
        ("output_name = '/elsewhere'", "output_name"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(write(tmp_path, text))


def test_a_missing_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trial.toml"
    path.write_text('train_data_dir = "d"\n')
    with pytest.raises(ConfigError, match="pretrained_model_name_or_path is missing"):
        load_config(path)
