from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from schema.parameters import PARAMETERS, Parameter, ParameterValue
from tasks.training.config import TrainingConfig
from tasks.training.sd_scripts_config import write_tomls


def tomls(config: TrainingConfig, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    write_tomls(config, folder / "train.toml", folder / "dataset.toml")
    first, second = ((folder / name).read_text("utf-8") for name in ("train.toml", "dataset.toml"))
    return tomllib.loads(first), tomllib.loads(second)


def test_parameters_are_written_in_kohyas_words(
    configuration: Callable[..., TrainingConfig], tmp_path: Path, dataset: Path
) -> None:
    config = configuration(
        network_dim=8, conv_dim=4, conv_alpha=2, weight_decay=0.02, optimizer_type="Adafactor", lr_warmup_steps=20,
        lr_scheduler="cosine", num_repeats=4, keep_tokens=2, resolution=64, max_token_length=150,
    )  # fmt: skip
    train, data = tomls(config, tmp_path)
    assert train["network_module"] == "networks.lora"
    assert train["network_args"] == ["conv_dim=4", "conv_alpha=2.0"]
    assert train["optimizer_args"][0] == "weight_decay=0.02"
    assert "relative_step=False" in train["optimizer_args"]  # or kohya ignores learning_rate
    assert train["lr_warmup_steps"] == 20
    assert isinstance(train["lr_warmup_steps"], int)  # a float would be a share of all steps
    assert train["max_token_length"] == 150
    assert train["save_state"]
    assert data["general"]["batch_size"] == 3
    assert data["general"]["resolution"] == 64
    assert data["general"]["keep_tokens"] == 2
    assert data["general"]["resize_interpolation"] == "nearest"
    subset = {"image_dir": str(dataset), "num_repeats": 4, "is_reg": False, "alpha_mask": False}
    assert data["datasets"] == [{"subsets": [subset]}]


def test_a_share_stays_a_share_and_what_is_off_is_left_out(
    configuration: Callable[..., TrainingConfig], tmp_path: Path
) -> None:
    train, data = tomls(configuration(lr_warmup_steps=0.1, lr_scheduler="cosine"), tmp_path)
    assert train["lr_warmup_steps"] == 0.1
    assert train["network_args"] == []
    assert "max_token_length" not in train  # 75 is none of kohya's choices
    assert data["general"]["resolution"] == 512


def test_kohyas_folders_keep_their_repeats(
    configuration: Callable[..., TrainingConfig], tmp_path: Path, dataset: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "data" / "3_girl")
    shutil.copytree(dataset, tmp_path / "reg" / "1_girl")
    config = configuration(num_repeats=2)
    _, data = tomls(config.changed(train_data_dir=tmp_path / "data", reg_data_dir=tmp_path / "reg"), tmp_path)
    found = [(Path(s["image_dir"]).parent.name, s["num_repeats"], s["is_reg"]) for s in data["datasets"][0]["subsets"]]
    assert found == [("data", 6, False), ("reg", 1, True)]


def test_no_parameter_is_dropped_in_silence(configuration: Callable[..., TrainingConfig], tmp_path: Path) -> None:
    labels = {"caption_version", "caption_complexity"}
    renamed = {"train_batch_size": "batch_size"}
    settable = [p for p in PARAMETERS.values() if not p.derived and p.name not in labels]

    def set_value(spec: Parameter) -> ParameterValue:
        word = spec.choices[-1] if spec.choices else "1" if spec.name.endswith("multiplier") else "a=1"
        values: dict[str, ParameterValue] = {"int": int(spec.low or 0) + 1, "float": 0.5, "bool": True, "str": word}
        return values[spec.kind]

    odd = {p.name: set_value(p) for p in settable}
    config = configuration(**{**odd, "max_token_length": 150})
    train, data = tomls(config, tmp_path)
    words = json.dumps([train, data])
    for spec in settable:
        assert f'"{renamed.get(spec.name, spec.name)}' in words, spec.name
