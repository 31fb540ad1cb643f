"""Lay out the demo: model, data set, campaign and prompts in one folder that can be kept or moved."""

from __future__ import annotations

import shutil
from pathlib import Path

from demo.portraits import write_dataset

PACKAGE = Path(__file__).parent
PICTURES = 96  # enough to learn the style in minutes on two cores
SEED = 7  # any: the same data set on every machine
SIZE = 64  # pixels, as the base model draws


def lay_out(folder: Path) -> Path:
    """Write what the demo campaign needs into a folder; what is there already stays.

    Returns:
        The path of campaign.toml.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "base").exists():
        shutil.copytree(PACKAGE / "base", folder / "base", ignore=shutil.ignore_patterns("*.png"))
    if not (folder / "portraits").exists():
        write_dataset(folder / "portraits.part", PICTURES, SEED, SIZE)
        (folder / "portraits.part").rename(folder / "portraits")
    for name in ("campaign.toml", "prompts.toml"):
        if not (folder / name).exists():
            shutil.copyfile(PACKAGE / name, folder / name)
    return folder / "campaign.toml"
