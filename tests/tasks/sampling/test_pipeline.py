from __future__ import annotations

import json
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from diffusers import DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file

from schema.errors import ConfigError, TrialError
from schema.parameters import ParameterValue, with_defaults
from schema.prompts import Prompt, PromptSuite, SamplerName
from tasks.sampling.lora import adapted
from tasks.sampling.pipeline import Sampler
from tasks.training.blocks import Blocks, text_name
from tasks.training.config import TrainingConfig
from tasks.training.models import load_base_model
from tasks.training.plan import NetworkPlan
from tests.tasks.sampling.conftest import save_lora
from tests.tasks.training.test_lycoris import by_hand

# A product of matrices of another height is added up in another order: on a CPU batches of one size agree to the
# bit, batches of different sizes in all but the last of float32's 24 bits.
OTHER_BATCH = 1e-5
BLOCK = "down_blocks_0_attentions_0_transformer_blocks_0"


def suite(*names: str, seeds: tuple[int, ...] = (1,), **changes: Any) -> PromptSuite:
    prompts = tuple(Prompt(name=name, text=f"pixel art, {name}") for name in names)
    return PromptSuite(prompts=prompts, seeds=seeds, **{"steps": 2, "guidance_scale": 2.0, **changes})


@pytest.fixture(scope="module")
def sampler(tiny_model: Path) -> Sampler:
    return Sampler(str(tiny_model), "cpu", 1)


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    layers = {
        f"lora_unet_{BLOCK}_attn1_to_q": (8, 8),
        f"lora_unet_{BLOCK}_attn2_to_k": (16, 8),
        f"lora_unet_{BLOCK}_ff_net_0_proj": (8, 64),
        "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_v": (16, 16),
        "lora_te_text_model_encoder_layers_1_mlp_fc1": (16, 32),
    }
    return save_lora(tmp_path_factory.mktemp("lora") / "lora.safetensors", layers)


def test_each_prompt_is_drawn_with_each_seed_in_order(sampler: Sampler) -> None:
    drawn = sampler.draw(suite("king", "queen", seeds=(1, 2)), None)
    assert drawn.shape == (4, 3, 16, 16)
    assert 0 <= drawn.min() <= drawn.max() <= 1
    alone = sampler.draw(suite("queen", seeds=(2,)), None)
    assert torch.allclose(drawn[3], alone[0], rtol=0, atol=OTHER_BATCH)


@pytest.mark.parametrize("name", [name for name in get_args(SamplerName) if not name.startswith("k_")])
def test_a_picture_is_the_same_whatever_stands_beside_it(sampler: Sampler, name: SamplerName) -> None:
    one = sampler.draw(suite("king", "queen", "knight", sampler=name, steps=3), None)
    other = sampler.draw(suite("monk", "queen", "a very old and grumpy dwarf", sampler=name, steps=3), None)
    alone = sampler.draw(suite("queen", sampler=name, steps=3), None)
    assert torch.equal(one[1], other[1])
    assert torch.allclose(one[1], alone[0], rtol=0, atol=OTHER_BATCH)
    assert not torch.allclose(one[0], one[1], atol=1e-3)


def test_samplers_draw_differently_and_do_not_remember_each_other(sampler: Sampler) -> None:
    names: list[SamplerName] = ["dpm++_2m_karras", "ddim", "dpm++_2m", "dpm++_2m_karras", "ddim", "euler_a"]
    drawn = [sampler.draw(suite("king", sampler=name, steps=4), None) for name in names]
    assert torch.equal(drawn[0], drawn[3])
    assert torch.equal(drawn[1], drawn[4])
    assert torch.equal(drawn[5], sampler.draw(suite("king", sampler="k_euler_a", steps=4), None))
    assert not any(torch.allclose(drawn[i], drawn[j], atol=1e-3) for i, j in ((0, 1), (0, 2), (1, 2), (1, 5)))


def test_a_lora_changes_the_pictures_and_leaves_no_trace(sampler: Sampler, lora: Path) -> None:
    before = sampler.draw(suite("king"), None)
    with_lora = sampler.draw(suite("king"), lora)
    assert not torch.allclose(before, with_lora, atol=1e-2)
    assert torch.equal(sampler.draw(suite("king"), lora), with_lora)
    assert torch.equal(sampler.draw(suite("king"), None), before)


def test_a_lora_draws_as_in_a_plain_pipeline(sampler: Sampler, lora: Path, tiny_model: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(tiny_model)
    pipe.load_lora_weights(str(lora))
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(1)
    drawn = pipe(
        "pixel art, king", num_inference_steps=2, guidance_scale=2.0, generator=generator, output_type="pt"
    ).images
    assert torch.allclose(sampler.draw(suite("king"), lora), drawn, rtol=0, atol=OTHER_BATCH)


def test_each_layer_has_an_alpha_and_a_rank_of_its_own(sampler: Sampler, lora: Path, tmp_path: Path) -> None:
    state, applied = load_file(lora), load_file(lora)
    for n, name in enumerate(key.removesuffix(".alpha") for key in load_file(lora) if key.endswith(".alpha")):
        down, up, scale = f"{name}.lora_down.weight", f"{name}.lora_up.weight", 2.0 ** (n % 3 - 1)
        applied[up] = state[up] * scale
        # Ranks that do nothing, to make them differ.
        state[down] = torch.cat([state[down], torch.zeros(n, state[down].shape[1])])
        state[up] = torch.cat([state[up], torch.ones(len(state[up]), n)], dim=1)
        state[f"{name}.alpha"] = torch.tensor(scale * len(state[down]))
    save_file(state, tmp_path / "state.safetensors")
    save_file(applied, tmp_path / "applied.safetensors")
    drawn = [sampler.draw(suite("king"), tmp_path / f"{name}.safetensors") for name in ("state", "applied")]
    assert torch.allclose(drawn[0], drawn[1], rtol=0, atol=OTHER_BATCH)
    assert not torch.allclose(drawn[0], sampler.draw(suite("king"), lora), atol=1e-3)


def test_two_samplers_load_side_by_side(tiny_model: Path, lora: Path) -> None:
    def work(_: int) -> list[torch.Tensor]:
        sampler = Sampler(str(tiny_model), "cpu", 1)
        return [sampler.draw(suite("one"), lora) for _ in range(4)]

    with ThreadPoolExecutor(3) as pool:
        drawn = [picture for pictures in pool.map(work, range(3)) for picture in pictures]
    assert all(torch.equal(picture, drawn[0]) for picture in drawn)


def test_threads_that_share_a_sampler_keep_their_loras_apart(sampler: Sampler, lora: Path) -> None:
    plain, changed = sampler.draw(suite("one"), None), sampler.draw(suite("one"), lora)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda n: sampler.draw(suite("one"), lora if n % 2 else None), range(8)))
    assert all(torch.equal(pictures, changed if n % 2 else plain) for n, pictures in enumerate(drawn))


def test_a_broken_lora_draws_black_and_leaves_no_trace(sampler: Sampler, lora: Path, tmp_path: Path) -> None:
    before = sampler.draw(suite("king"), None)
    broken = {k: torch.full_like(v, torch.nan) if "lora_up" in k else v for k, v in load_file(lora).items()}
    save_file(broken, tmp_path / "nan.safetensors")
    assert (sampler.draw(suite("king"), tmp_path / "nan.safetensors") == 0).all()
    assert torch.equal(sampler.draw(suite("king"), None), before)


@pytest.mark.parametrize(
    "layers",
    [
        None,
        {f"lora_unet_{BLOCK}_attn1_to_q": (9, 8)},
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": (8, 8)},
        {"lora_te2_text_model_encoder_layers_0_mlp_fc1": (16, 32)},
    ],
    ids=["no file of tensors", "other width", "other blocks", "second text encoder"],
)
def test_a_file_that_is_no_lora_of_the_model_is_one_sentence(
    sampler: Sampler, tmp_path: Path, layers: dict[str, tuple[int, int]] | None
) -> None:
    before = sampler.draw(suite("king"), None)
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"nothing") if layers is None else save_lora(path, layers)
    with pytest.raises(TrialError, match="cannot be loaded as a LoRA"):
        sampler.draw(suite("king"), path)
    assert torch.equal(sampler.draw(suite("king"), None), before)


def test_a_missing_model_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Sampler(str(tmp_path / "nowhere"), "cpu", 1)
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        Sampler(str(tmp_path / "broken.safetensors"), "cpu", 1)


def test_sdxl_draws_with_kohyas_lora_and_without_a_trace(tiny_sdxl: Path, tmp_path: Path) -> None:
    block = "1_transformer_blocks_0"
    layers = {
        f"lora_unet_input_blocks_4_{block}_attn1_to_q": (16, 16),
        f"lora_unet_middle_block_{block}_attn2_to_v": (32, 16),
        f"lora_unet_output_blocks_0_{block}_ff_net_0_proj": (16, 128),
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj": (16, 16),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1": (16, 32),
        "lora_te2_text_model_encoder_layers_0_self_attn_out_proj": (16, 16),
    }
    sampler, three = Sampler(str(tiny_sdxl), "cpu", 1), suite("king", "queen", "knight")
    before = sampler.draw(three, None)
    assert before.shape == (3, 3, 16, 16)
    whole = sampler.draw(three, save_lora(tmp_path / "all.safetensors", layers))
    for left_out in layers:
        others = {name: size for name, size in layers.items() if name != left_out}
        assert not torch.equal(sampler.draw(three, save_lora(tmp_path / "x.safetensors", others)), whole), left_out
    assert torch.equal(sampler.draw(three, None), before)
    assert torch.allclose(sampler.draw(suite("queen"), None)[0], before[1], rtol=0, atol=OTHER_BATCH)


@pytest.mark.parametrize("sdxl", [True, False])
def test_the_kind_of_a_single_file_is_read_from_its_keys(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, tiny_sdxl: Path, tmp_path: Path, sdxl: bool
) -> None:
    folders = {StableDiffusionXLPipeline: tiny_sdxl, StableDiffusionPipeline: tiny_model}
    for kind, folder in folders.items():
        # The real one asks the hub for the model's configuration.
        monkeypatch.setattr(kind, "from_single_file", lambda _, folder=folder, **__: kind_of(folder))
    key = f"{'conditioner.embedders.1.model' if sdxl else 'cond_stage_model.transformer'}.ln_final.weight"
    save_file({key: torch.zeros(1)}, tmp_path / "model.safetensors")
    drawn = Sampler(str(tmp_path / "model.safetensors"), "cpu", 1).draw(suite("king"), None)
    folder = tiny_sdxl if sdxl else tiny_model
    assert torch.equal(drawn, Sampler(str(folder), "cpu", 1).draw(suite("king"), None))


def kind_of(folder: Path) -> DiffusionPipeline:
    return DiffusionPipeline.from_pretrained(folder)


def test_a_released_sampler_gives_its_memory_back_and_draws_the_same_again(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path, lora: Path
) -> None:
    parts: list[weakref.ref[torch.nn.Module]] = []
    load = DiffusionPipeline.from_pretrained

    def watched(*args: Any, **settings: Any) -> DiffusionPipeline:
        pipe = load(*args, **settings)
        parts.append(weakref.ref(pipe.unet))
        return pipe

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", watched)
    sampler = Sampler(str(tiny_model), "cpu", 1)
    before = sampler.draw(suite("king"), lora)
    sampler.release()
    sampler.release()
    assert [part() for part in parts] == [None]
    assert torch.equal(sampler.draw(suite("king"), lora), before)
    assert len(parts) == 2


def test_a_batch_too_large_for_memory_is_halved_once_and_for_all(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    sizes: list[int] = []
    draw = StableDiffusionPipeline.__call__

    def limited(pipe: Any, prompts: list[str], **settings: Any) -> Any:
        sizes.append(len(prompts))
        if len(prompts) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return draw(pipe, prompts, **settings)

    sampler, seven = Sampler(str(tiny_model), "cpu", 1), suite(*"abcdefg")
    whole = sampler.draw(seven, None)
    monkeypatch.setattr(StableDiffusionPipeline, "__call__", limited)
    fits = 3
    assert torch.allclose(sampler.draw(seven, None), whole, rtol=0, atol=OTHER_BATCH)
    assert torch.allclose(sampler.draw(seven, None), whole, rtol=0, atol=OTHER_BATCH)
    assert sizes == [7, 3, 3, 1, 3, 3, 1]
    fits = 0
    with pytest.raises(TrialError, match="not even one picture fits"):
        sampler.draw(seven, None)


KINDS = {
    "loha": {"algo": "loha"},
    "lokr": {"algo": "lokr", "factor": 4},
    "dora": {"algo": "locon", "dora_wd": True},
    "dora on inputs": {"algo": "lora", "dora_wd": True, "wd_on_output": False},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sdxl", [False, True])
def test_kinds_that_diffusers_cannot_load_draw_as_weights_merged_by_hand(
    tiny_model: Path, tiny_sdxl: Path, tmp_path: Path, kind: str, sdxl: bool
) -> None:
    folder = tiny_sdxl if sdxl else tiny_model
    state = trained_lycoris(folder, KINDS[kind])
    save_file(state, tmp_path / "lora.safetensors")
    sampler = Sampler(str(folder), "cpu", 1)
    pipe = sampler._ready()
    own = {name: weight.clone() for part in weighted(pipe) for name, weight in part.state_dict().items()}
    before = sampler.draw(suite("king"), None)
    drawn = sampler.draw(suite("king"), tmp_path / "lora.safetensors")
    assert not torch.allclose(drawn, before, atol=1e-2)
    after = {name: weight for part in weighted(pipe) for name, weight in part.state_dict().items()}
    assert all(torch.equal(after[name], own[name]) for name in own)
    assert torch.equal(sampler.draw(suite("king"), None), before)
    merge_by_hand(pipe, state)
    assert torch.allclose(sampler.draw(suite("king"), None), drawn, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_beside_weights_of_16_bits_they_do_the_same(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    save_file(trained_lycoris(tiny_model, KINDS[kind]), tmp_path / "lora.safetensors")
    pipe = DiffusionPipeline.from_pretrained(tiny_model, dtype=torch.bfloat16, safety_checker=None)
    exact = DiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
    x, text = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 16)

    def predict(of: DiffusionPipeline) -> torch.Tensor:
        return of.unet(x.to(of.dtype), 500, text.to(of.dtype)).sample.float().detach()

    plain, own = predict(exact), predict(pipe)
    with adapted(pipe, tmp_path / "lora.safetensors"), adapted(exact, tmp_path / "lora.safetensors"):
        assert (predict(exact) - plain).abs().mean() > 5 * (predict(pipe) - predict(exact)).abs().mean()
    assert torch.equal(predict(pipe), own)


@pytest.mark.parametrize("kind", [{"network_module": "networks.lora"}, {"algo": "loha"}])
def test_a_lora_is_drawn_on_the_base_weights_it_was_trained_on(
    tiny_model: Path, tmp_path: Path, kind: dict[str, ParameterValue]
) -> None:
    below, above = trained_lycoris(tiny_model, {"algo": "lokr"}), trained_lycoris(tiny_model, kind)
    save_file(below, tmp_path / "below.safetensors")
    told = {"ss_base_weights": json.dumps([[str(tmp_path / "below.safetensors"), 1.0]])}
    save_file(above, tmp_path / "above.safetensors", told)
    sampler = Sampler(str(tiny_model), "cpu", 1)
    before = sampler.draw(suite("king"), None)
    drawn = sampler.draw(suite("king"), tmp_path / "above.safetensors")
    assert torch.equal(sampler.draw(suite("king"), None), before)
    merge_by_hand(sampler._ready(), below)
    merge_by_hand(sampler._ready(), above)
    assert torch.allclose(sampler.draw(suite("king"), None), drawn, rtol=0, atol=1e-4)
    (tmp_path / "below.safetensors").unlink()
    with pytest.raises(TrialError, match="base_weights, cannot be merged"):
        sampler.draw(suite("king"), tmp_path / "above.safetensors")


def weighted(pipe: DiffusionPipeline) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def trained_lycoris(folder: Path, kind: dict[str, ParameterValue]) -> dict[str, torch.Tensor]:
    """A network of random weights, as a training would write it."""
    torch.manual_seed(0)
    parameters = with_defaults({"network_module": "lycoris.kohya", "network_dim": 2, "conv_dim": 1, **kind})
    config = TrainingConfig(
        pretrained_model_name_or_path="", train_data_dir=Path(), output_dir=Path(), parameters=parameters
    )
    networks = NetworkPlan(config, load_base_model(str(folder), torch.device("cpu"), torch.float32)).build()
    for network in networks:
        for name, weight in network.named_parameters():
            torch.nn.init.uniform_(weight, 0.2, 1.0) if "dora" in name else torch.nn.init.normal_(weight, std=0.4)
    return {k: v for network in networks for k, v in network.kohya_state(torch.float32).items()}


def merge_by_hand(pipe: DiffusionPipeline, state: dict[str, torch.Tensor]) -> None:
    """Change the weights by the published formulas."""
    blocks = Blocks(pipe.unet)
    prefixes = (
        {"text_encoder": "lora_te1", "text_encoder_2": "lora_te2"} if blocks.sdxl else {"text_encoder": "lora_te"}
    )
    layers = {f"lora_unet_{blocks.kohya_name(n)}": m for n, m in pipe.unet.named_modules()}
    for part, prefix in prefixes.items():
        layers |= {text_name(n, prefix): m for n, m in getattr(pipe, part).named_modules()}
    for name in sorted({key.partition(".")[0] for key in state}):
        layer = layers[name]
        tensors = {key.partition(".")[2]: t for key, t in state.items() if key.startswith(f"{name}.")}
        layer.weight.data = by_hand(layer.weight.data, tensors, float(tensors.pop("alpha")))
