"""A real study in a real database, and a folder for pictures."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from PIL import Image

DISTRIBUTIONS: dict[str, optuna.distributions.BaseDistribution] = {
    "network_dim": optuna.distributions.IntDistribution(4, 128, log=True)
}


@pytest.fixture
def storage_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'optuna.db'}"


@pytest.fixture
def study(storage_url: str) -> optuna.Study:
    """A study with one running trial, number 0."""
    study = optuna.create_study(study_name="night", storage=storage_url, direction="maximize")
    study.ask(DISTRIBUTIONS)
    return study


@pytest.fixture
def artifact_dir(tmp_path: Path) -> Path:
    return tmp_path / "artifacts"


@pytest.fixture
def sheets(tmp_path: Path) -> list[Path]:
    """Sample sheets of three epochs."""
    paths = [tmp_path / f"epoch-{epoch:03d}.png" for epoch in (1, 2, 3)]
    for shade, path in enumerate(paths):
        Image.new("RGB", (48, 24), (40 * shade, 90, 160)).save(path)
    return paths
