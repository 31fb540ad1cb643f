"""No pickle is ever read: each of these would make a file, and none of them does."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from demo.workspace import lay_out
from schema.errors import ConfigError, PixelloopError
from schema.prompts import Prompt, PromptSuite
from tasks.history.read import read_all
from tasks.pickles import refuse_pickled_model
from tasks.sampling.pipeline import Sampler
from tasks.training.checkpoint import load_state
from tasks.training.merge import read_lora
from tasks.training.models import load_base_model

ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".CKPT")
PROMPTS = '[[prompts]]\nname = "one"\ntext = "red background"\n'


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, sign: Path) -> None:
        self._sign = sign

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self._sign),)


@pytest.fixture
def sign(tmp_path: Path) -> Path:
    """Is there when a pickle was read."""
    return tmp_path / "exploded"


def plant(path: Path, sign: Path) -> Path:
    """A file as torch.save writes it, which makes the sign when it is loaded."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"weight": Bomb(sign)}}, path)
    return path


def load(path: str) -> object:
    return load_base_model(path, torch.device("cpu"), torch.float32)


def draw(path: str, lora: Path | None = None) -> object:
    suite = PromptSuite(prompts=(Prompt(name="one", text="red background"),), steps=1)
    return Sampler(path, "cpu", 1).draw(suite, lora)


def test_the_pickle_is_a_real_one(tmp_path: Path, sign: Path) -> None:
    torch.load(plant(tmp_path / "a.pt", sign), weights_only=False)
    assert sign.exists()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("read", [load, draw, refuse_pickled_model])
def test_a_pickled_base_model_is_refused(
    tmp_path: Path, sign: Path, ending: str, read: Callable[[str], object]
) -> None:
    model = plant(tmp_path / f"model{ending}", sign)
    with pytest.raises(ConfigError, match="is a Python pickle"):
        read(str(model))
    assert not sign.exists()


@pytest.mark.parametrize(
    ("part", "file"),
    [
        ("unet", "diffusion_pytorch_model.bin"),
        ("vae", "diffusion_pytorch_model.bin"),
        ("text_encoder", "pytorch_model.bin"),
    ],
)
@pytest.mark.parametrize("read", [load, draw])
def test_a_folder_with_a_pickled_part_is_refused(
    tiny_model: Path, tmp_path: Path, sign: Path, part: str, file: str, read: Callable[[str], object]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    for weights in (model / part).glob("*.safetensors"):
        weights.unlink()
    plant(model / part / file, sign)
    with pytest.raises(ConfigError, match="is a Python pickle"):
        read(str(model))
    assert not sign.exists()


@pytest.mark.parametrize("read", [load, draw])
def test_pickles_beside_safetensors_are_left_alone(
    tiny_model: Path, tmp_path: Path, sign: Path, read: Callable[[str], object]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    for part in (
        "unet/diffusion_pytorch_model.bin",
        "vae/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
    ):
        plant(model / part, sign)
    read(str(model))
    assert not sign.exists()


@pytest.mark.parametrize("read", [load, draw])
def test_a_pickle_under_another_name_is_no_model(tmp_path: Path, sign: Path, read: Callable[[str], object]) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        read(str(plant(tmp_path / "model.safetensors", sign)))
    assert not sign.exists()


def test_a_model_folder_runs_no_code_of_its_own(tiny_model: Path, tmp_path: Path, sign: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    code = f"import os\nos.mkdir({str(sign)!r})\nclass Evil: pass\n"
    (model / "evil.py").write_text(code)
    (model / "unet" / "evil.py").write_text(code)
    index = (model / "model_index.json").read_text()
    for changed in (
        index.replace('"_class_name": "StableDiffusionPipeline"', '"_class_name": ["evil", "Evil"]'),
        index.replace('"diffusers",\n    "UNet2DConditionModel"', '"evil",\n    "Evil"'),
    ):
        assert changed != index
        (model / "model_index.json").write_text(changed)
        with pytest.raises(ConfigError, match="cannot be loaded"):
            draw(str(model))
        assert not sign.exists()


@pytest.mark.parametrize("name", ["old.pt", "old.bin", "old.ckpt", "old.safetensors"])
def test_a_pickled_lora_is_refused_wherever_one_is_read(
    tiny_model: Path, tmp_path: Path, sign: Path, name: str
) -> None:
    lora = plant(tmp_path / name, sign)
    with pytest.raises(PixelloopError, match=name):
        draw(str(tiny_model), lora)
    with pytest.raises(PixelloopError, match=name):
        read_lora(lora, "network_weights")
    with pytest.raises(PixelloopError, match=name):
        read_all([str(lora)], None)
    assert not sign.exists()


def test_a_pickle_in_the_place_of_the_trainers_state_is_not_read(tmp_path: Path, sign: Path) -> None:
    for name in ("training.pt", "training.before.pt"):
        plant(tmp_path / name, sign)
    state, trouble = load_state(tmp_path / "training.pt")
    assert state is None
    assert trouble is not None
    assert "is broken" in trouble
    (tmp_path / "training.pt").write_bytes(pickle.dumps(Bomb(sign)))
    assert load_state(tmp_path / "training.pt")[0] is None
    assert not sign.exists()


def pixelloop(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"}, timeout=120)


@pytest.mark.parametrize("trainer", ["pixelloop", "sd-scripts"])
def test_a_campaign_on_a_pickle_does_not_start(tmp_path: Path, sign: Path, trainer: str) -> None:
    campaign = lay_out(tmp_path / "demo")
    plant(campaign.parent / "model.ckpt", sign)
    more = 'trainer = "sd-scripts"\nsd_scripts = "."\n' if trainer == "sd-scripts" else ""
    text = campaign.read_text()
    assert 'base_model = "base"' in text
    campaign.write_text(text.replace('base_model = "base"', f'base_model = "model.ckpt"\n{more}'))
    result = pixelloop("run", campaign, "--home", tmp_path / "home")
    assert result.returncode == 2
    assert "model.ckpt is a Python pickle" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not sign.exists()


def test_retest_draws_with_no_pickle(tiny_model: Path, tmp_path: Path, sign: Path) -> None:
    (tmp_path / "prompts.toml").write_text(PROMPTS)
    lora = plant(tmp_path / "old.pt", sign)
    result = pixelloop("retest", lora, "--base-model", tiny_model, "--prompts", tmp_path / "prompts.toml")
    assert result.returncode == 2
    assert "old.pt is a Python pickle" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not sign.exists()
