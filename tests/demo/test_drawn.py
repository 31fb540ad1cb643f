from __future__ import annotations

import random

import pytest
import torch

from demo.attributes import Attributes
from demo.drawn import SIZE, STYLES, Colours, caption, draw_characters, random_blocks

CPU = torch.device("cpu")


@pytest.fixture
def characters() -> list[Attributes]:
    rng = random.Random(3)
    return [Attributes.draw(rng) for _ in range(6)]


@pytest.mark.parametrize("style", STYLES)
def test_characters_are_drawn_on_their_background(style: str, characters: list[Attributes]) -> None:
    torch.manual_seed(0)
    colours = Colours.of(characters, CPU)
    pictures = draw_characters(colours, style)
    assert pictures.shape == (6, 3, SIZE, SIZE)
    assert 0 <= pictures.min() <= pictures.max() <= 1
    # The upper left corner is background, a shaded picture's within its vignette.
    assert (pictures[:, :, 0, 0] - colours.background).abs().max() < 0.2


def test_captions_name_the_style_and_what_is_there(characters: list[Attributes]) -> None:
    text = caption(characters[0], "sprite", random.Random(1))
    assert text.startswith("sprite of a character")
    assert "background" in text or "hair" in text


def test_blocks_have_hard_edges_and_few_colours() -> None:
    torch.manual_seed(0)
    for picture in random_blocks(4, CPU):
        assert picture.shape == (3, SIZE, SIZE)
        assert len(picture.flatten(1).T.unique(dim=0)) <= 5
