from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from demo.portraits import CELLS, portraits, write_dataset
from schema.prompts import expectation_of


def test_the_same_seed_draws_the_same_portraits() -> None:
    first, second = list(portraits(3, seed=5)), list(portraits(3, seed=5))
    assert all((a.pixels == b.pixels).all() and a.caption == b.caption for a, b in zip(first, second, strict=True))
    assert (first[0].pixels != next(portraits(1, seed=6)).pixels).any()


def test_captions_promise_the_colours_that_are_painted() -> None:
    for portrait in portraits(30, seed=1):
        promised = expectation_of(portrait.caption)
        assert promised.background == (portrait.attributes.background.code,)
        assert tuple(portrait.pixels[0, 0]) == portrait.attributes.background.rgb
        dominant = np.unique(portrait.pixels[portrait.hair], axis=0, return_counts=True)
        assert tuple(dominant[0][dominant[1].argmax()]) == portrait.attributes.hair.rgb
        assert bool(promised.crown) == bool(portrait.crown.any())


def test_crowns_sit_on_top_in_their_colour() -> None:
    crowned = [p for p in portraits(40, seed=2) if p.attributes.crown is not None]
    assert 8 < len(crowned) < 28
    for portrait in crowned:
        assert np.flatnonzero(portrait.crown.any(1)).max() < 6
        assert (portrait.pixels[portrait.crown] == portrait.attributes.crown.rgb).all(-1).mean() > 0.5


def test_a_dataset_is_pictures_with_captions_on_a_sharp_grid(tmp_path: Path) -> None:
    write_dataset(tmp_path / "set", count=3, seed=1, size=64)
    assert len(list((tmp_path / "set").glob("*.txt"))) == 3
    pixels = np.asarray(Image.open(tmp_path / "set" / "portrait_000.png"))
    assert pixels.shape == (64, 64, 3)
    cell = 64 // CELLS
    assert (pixels == pixels[::cell, ::cell].repeat(cell, 0).repeat(cell, 1)).all()
