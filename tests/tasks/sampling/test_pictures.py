from __future__ import annotations

from pathlib import Path

import torch
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from schema.prompts import Prompt, PromptSuite, file_name
from tasks.sampling.pictures import picture_names, save_pictures, save_sheet

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


@given(st.one_of(st.text(min_size=1), st.text(st.sampled_from("./\\~\0 a"), min_size=1)))
@example("../../outside")
@example("/etc/passwd")
@example("..")
@example("髪" * 300)
def test_no_name_of_a_prompt_leads_out_of_the_folder(name: str) -> None:
    suite = PromptSuite(prompts=(Prompt(name=name, text="a"),), seeds=(2**63 - 1,))
    (file,) = picture_names(suite)
    assert Path(file).name == file
    assert not file.startswith(".")
    assert "\0" not in file
    assert len(file.encode()) <= 255
    assert file_name(name) not in ("", ".", "..")
