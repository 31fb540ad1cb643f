"""Files of sprites are measured at their native size, and photographs as they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from demo.portraits import portraits
from schema.errors import BadDataError
from schema.prompts import Expectation
from tasks.metrics.native import on_file, read_picture
from tasks.metrics.suite import measure


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "picture.png"


def test_a_sprite_has_a_grid_of_one_pixel(file: Path) -> None:
    portrait = next(iter(portraits(1, seed=3)))
    Image.fromarray(portrait.pixels).save(file)
    pixels, times = read_picture(file)
    assert times == 16
    (found,) = measure(pixels[None], [Expectation()])
    assert on_file(found, times).grid_scale == 1
    assert found.pixel_art_purity > 90


def test_an_enlarged_sprite_and_a_photograph_stay_as_they_are(file: Path) -> None:
    portrait = next(iter(portraits(1, seed=3)))
    Image.fromarray(portrait.enlarged(64)).save(file)
    assert read_picture(file)[1] == 1
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(file)
    pixels, times = read_picture(file)
    assert times == 1
    assert torch.equal(pixels, torch.from_numpy(noise).permute(2, 0, 1))


def test_what_is_transparent_counts_as_white(file: Path) -> None:
    layers = np.zeros((200, 200, 4), np.uint8)
    layers[50:150, 50:150] = (200, 30, 30, 255)
    Image.fromarray(layers).save(file)
    pixels, _ = read_picture(file)
    assert pixels[:, 0, 0].tolist() == [255, 255, 255]
    assert pixels[:, 100, 100].tolist() == [200, 30, 30]


def test_what_is_no_picture_is_named(file: Path) -> None:
    file.write_text("no picture", encoding="utf-8")
    with pytest.raises(BadDataError, match=r"picture\.png"):
        read_picture(file)


@pytest.mark.parametrize("side", [80, 96, 128])
def test_a_sprite_of_any_native_size_has_a_grid(tmp_path: Path, side: int) -> None:
    art = np.kron(np.random.default_rng(side).integers(0, 2, (side // 2, side // 2)), np.ones((2, 2), int))
    art[0, 0] ^= 1  # so that not all pixels repeat in blocks
    Image.fromarray((art * 255).astype(np.uint8)).save(tmp_path / "sprite.png")
    assert read_picture(tmp_path / "sprite.png")[1] >= 3
