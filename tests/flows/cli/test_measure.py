"""Measuring any pictures and old LoRA files from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from demo.portraits import write_dataset
from tests.tasks.sampling.conftest import save_lora

LAYER = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
PROMPTS = """
steps = 2
[[prompts]]
name = "green"
text = "pixel art, portrait of a character, green background (#2fa84f), brown hair (#5a3a22)"
"""


def pixelloop(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flows.cli", *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def portraits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("portraits")
    write_dataset(folder, 3, 5, 64)
    return folder


def test_captions_are_what_pictures_are_held_against(portraits: Path, tmp_path: Path) -> None:
    result = pixelloop("measure", portraits, "--json", "--overlay", tmp_path / "seen")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert len(found) == 3
    assert all(m["background_accuracy"] == 100 and m["grid_scale"] == 4 for m in found.values())
    for overlay in (tmp_path / "seen").glob("*.png"):
        assert Image.open(overlay).width > 700
    assert len(list((tmp_path / "seen").iterdir())) == 3


def test_a_prompt_takes_the_captions_place(portraits: Path) -> None:
    picture = portraits / "portrait_000.png"
    found = json.loads(pixelloop("measure", picture, "--prompt", "black background (#000000)", "--json").stdout)
    assert found[str(picture)]["hair_accuracy"] is None
    assert found[str(picture)]["background_accuracy"] < 100


@pytest.mark.parametrize("size", [(1, 1), (1, 5000)])
def test_a_picture_too_small_to_measure_is_named(portraits: Path, tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "tiny.png")
    result = pixelloop("measure", portraits / "portrait_000.png", tmp_path / "tiny.png")
    assert result.returncode == 2
    assert "tiny.png has too few pixels" in result.stderr
    assert "portrait_000" in result.stdout


def test_a_large_picture_is_measured_as_its_small_self(portraits: Path, tmp_path: Path) -> None:
    original = portraits / "portrait_000.png"
    Image.open(original).resize((4096, 4096), Image.Resampling.NEAREST).save(tmp_path / "large.png")
    prompt = original.with_suffix(".txt").read_text()
    small = json.loads(pixelloop("measure", original, "--prompt", prompt, "--json").stdout)[str(original)]
    large = json.loads(pixelloop("measure", tmp_path / "large.png", "--prompt", prompt, "--json").stdout)
    found = large[str(tmp_path / "large.png")]
    assert found["grid_scale"] == 256
    assert (found["background_accuracy"], found["palette_size"]) == (
        small["background_accuracy"],
        small["palette_size"],
    )


def test_a_broken_picture_is_said_and_the_others_are_measured(portraits: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    result = pixelloop("measure", portraits, tmp_path / "broken.png")
    assert result.returncode == 2
    assert "broken.png cannot be read as a picture" in result.stderr
    assert "portrait_002.png" in result.stdout
    assert "mean" in result.stdout


def test_nothing_to_measure_is_one_sentence(tmp_path: Path) -> None:
    result = pixelloop("measure", tmp_path)
    assert result.returncode == 2
    assert "no pictures in" in result.stderr


def test_a_file_that_is_no_lora_is_said(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "old.safetensors").write_bytes(b"no LoRA")
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    result = pixelloop("retest", tmp_path, "--base-model", tiny_model, "--prompts", tmp_path / "prompts.toml")
    assert result.returncode == 2
    assert "old.safetensors" in result.stderr
    assert "Traceback" not in result.stderr


def test_no_name_of_a_lora_leads_out_of_the_folder(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    lora = save_lora(tmp_path / "...safetensors", {LAYER: (8, 8)})
    out = tmp_path / "out" / "retest"
    words = ("--base-model", tiny_model, "--prompts", tmp_path / "prompts.toml", "--out", out)
    result = pixelloop("retest", lora, *words)
    assert result.returncode == 0, result.stderr
    assert [path.name for path in (tmp_path / "out").rglob("*") if not path.is_relative_to(out)] == []


def test_pictures_of_loras_of_one_name_lie_apart(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    for place in ("monday", "tuesday"):
        (tmp_path / place).mkdir()
        save_lora(tmp_path / place / "knights.safetensors", {LAYER: (8, 8)})
    out = tmp_path / "retest"
    words = ("--base-model", tiny_model, "--prompts", tmp_path / "prompts.toml", "--out", out)
    result = pixelloop("retest", tmp_path, *words)
    assert result.returncode == 0, result.stderr
    assert {path.name for path in out.iterdir()} == {"knights", "knights.png", "knights-2", "knights-2.png"}
