from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schema.parameters import ParameterValue, with_defaults
from tasks.training.config import TrainingConfig, write_config

SMALL: dict[str, ParameterValue] = {
    "network_dim": 2, "network_alpha": 2, "conv_dim": 2, "learning_rate": 1e-3, "max_train_epochs": 2,
    "train_batch_size": 2, "shuffle_caption": True, "keep_tokens": 1, "caption_dropout_rate": 0.2,
    "network_dropout": 0.1, "seed": 3, "lr_scheduler": "cosine", "save_precision": "float",
}  # fmt: skip


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five 16 px pictures with captions."""
    folder = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    for i in range(5):
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"pixel art, red background, hair {i}, crown")
    return folder


@pytest.fixture
def trial(tmp_path: Path, tiny_model: Path, dataset: Path) -> Callable[..., Path]:
    """Writes a trial.toml with the given parameters changed; gives its path."""

    def write(name: str = "trial", data: Path = dataset, **changes: ParameterValue) -> Path:
        folder = tmp_path / name
        write_config(
            folder / "trial.toml", with_defaults({**SMALL, **changes}), base_model=str(tiny_model), dataset_dir=data,
            output_dir=folder / "checkpoints", output_name="lora", cache_dir=tmp_path / "latents",
        )  # fmt: skip
        return folder / "trial.toml"

    return write


@pytest.fixture
def configuration(tmp_path: Path, dataset: Path) -> Callable[..., TrainingConfig]:
    """A trial for sd-scripts with some parameters changed."""

    def build(**changes: ParameterValue) -> TrainingConfig:
        parameters = with_defaults({"max_train_epochs": 3, "train_batch_size": 3, **changes})
        return TrainingConfig(
            pretrained_model_name_or_path="runwayml/stable-diffusion-v1-5", train_data_dir=dataset,
            output_dir=tmp_path / "trial" / "checkpoints", output_name="px", parameters=parameters,
        )  # fmt: skip

    return build
