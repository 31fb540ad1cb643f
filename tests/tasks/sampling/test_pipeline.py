from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from schema.errors import ConfigError, TrialError
from schema.prompts import Prompt, PromptSuite
from tasks.sampling.pipeline import Sampler
from tasks.training.models import load_base_model
from tasks.training.network import adapt_unet


def suite(*names: str, seeds: tuple[int, ...] = (1,)) -> PromptSuite:
    prompts = tuple(Prompt(name=name, text=f"pixel art, {name}") for name in names)
    return PromptSuite(prompts=prompts, steps=2, guidance_scale=2.0, seeds=seeds)


@pytest.fixture(scope="module")
def sampler(tiny_model: Path) -> Sampler:
    return Sampler(str(tiny_model), "cpu", 1)


@pytest.fixture(scope="module")
def lora(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA with random weights in kohya's format."""
    torch.manual_seed(0)
    unet = load_base_model(str(tiny_model), torch.device("cpu"), torch.float32).unet
    network = adapt_unet(unet, 2, 2, 0, 1, 0.0)
    for _, layer in network.named_layers():
        torch.nn.init.normal_(layer.lora_up.weight, std=0.5)
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_file(network.kohya_state(torch.float32), path)
    return path


def test_each_prompt_is_drawn_with_each_seed_in_order(sampler: Sampler) -> None:
    drawn = sampler.draw(suite("king", "queen", seeds=(1, 2)), None)
    assert drawn.shape == (4, 3, 16, 16)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    alone = sampler.draw(suite("queen", seeds=(2,)), None)
    assert torch.allclose(drawn[3], alone[0], atol=1e-5)


def test_a_lora_changes_the_pictures_and_leaves_no_trace(sampler: Sampler, lora: Path) -> None:
    before = sampler.draw(suite("king"), None)
    with_lora = sampler.draw(suite("king"), lora)
    assert not torch.allclose(before, with_lora, atol=1e-2)
    assert torch.equal(sampler.draw(suite("king"), lora), with_lora)
    assert torch.equal(sampler.draw(suite("king"), None), before)


def test_two_samplers_load_side_by_side(tiny_model: Path, lora: Path) -> None:
    def work(_: int) -> list[torch.Tensor]:
        sampler = Sampler(str(tiny_model), "cpu", 1)
        return [sampler.draw(suite("one"), lora) for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        drawn = [picture for pictures in pool.map(work, range(3)) for picture in pictures]
    assert all(torch.equal(picture, drawn[0]) for picture in drawn)


def test_a_broken_lora_draws_black(sampler: Sampler, lora: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    broken = {k: torch.full_like(v, torch.nan) if "lora_up" in k else v for k, v in load_file(lora).items()}
    save_file(broken, tmp_path / "nan.safetensors")
    assert (sampler.draw(suite("king"), tmp_path / "nan.safetensors") == 0).all()


def test_a_file_that_is_no_lora_is_one_sentence(sampler: Sampler, tmp_path: Path) -> None:
    before = sampler.draw(suite("king"), None)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(TrialError, match="cannot be loaded as a LoRA"):
        sampler.draw(suite("king"), tmp_path / "x.safetensors")
    assert torch.equal(sampler.draw(suite("king"), None), before)


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Sampler(str(tmp_path / "nowhere"), "cpu", 1)
