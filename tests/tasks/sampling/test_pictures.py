from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from schema.prompts import Prompt, PromptSuite
from tasks.sampling.pictures import save_pictures, save_sheet

SUITE = PromptSuite(prompts=(Prompt(name="green knight/1", text="a"), Prompt(name="king", text="b")), seeds=(7, 8))


def test_pictures_are_named_after_prompt_and_seed(tmp_path: Path) -> None:
    pictures = torch.rand(4, 3, 8, 8)
    paths = save_pictures(pictures, SUITE, tmp_path / "epoch-001")
    assert [p.name for p in paths] == ["green_knight_1-s7.png", "green_knight_1-s8.png", "king-s7.png", "king-s8.png"]
    pixel = Image.open(paths[2]).getpixel((3, 5))
    assert pixel == tuple((pictures[2, :, 5, 3] * 255).round().int().tolist())


def test_the_sheet_shows_sharp_pixels(tmp_path: Path) -> None:
    pictures = torch.zeros(4, 3, 8, 8)
    pictures[:, 0, :, 4:] = 1
    sheet = Image.open(save_sheet(pictures, SUITE, tmp_path / "sheet.png")).convert("RGB")
    tile = sheet.crop((6, 6, 6 + 192, 6 + 192))
    assert {colour for _, colour in tile.getcolors() or []} == {(0, 0, 0), (255, 0, 0)}
