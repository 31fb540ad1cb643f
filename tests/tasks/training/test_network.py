from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from schema.errors import ConfigError
from schema.parameters import ParameterValue, with_defaults
from tasks.training.blocks import Blocks
from tasks.training.config import TrainingConfig
from tasks.training.models import BaseModel, load_base_model
from tasks.training.network import TEXT_BLOCKS, Adapter, Dropouts, Layer, LoRA, LoRANetwork, adapt
from tasks.training.plan import NetworkPlan

SDXL: dict[str, Any] = {
    "sample_size": 128, "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280), "transformer_layers_per_block": [1, 2, 10],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def config(**changes: ParameterValue) -> TrainingConfig:
    return TrainingConfig(
        pretrained_model_name_or_path="", train_data_dir=Path(), output_dir=Path(), output_name="lora",
        parameters=with_defaults({"network_dim": 4, **changes}),
    )  # fmt: skip


def model(kind: str) -> BaseModel:
    """A model of full size without weights."""
    with torch.device("meta"):
        encoders: list[Any] = [
            CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        ]
        if kind == "sd15":
            unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        else:
            unet = UNet2DConditionModel(**SDXL)
            encoders.append(CLIPTextModelWithProjection(CLIPTextConfig(hidden_size=1280, num_hidden_layers=32)))
    return BaseModel(unet, cast(Any, None), tuple(encoders), (), cast(Any, None))


def built(kind: str, **changes: ParameterValue) -> list[LoRANetwork]:
    base = model(kind)
    with torch.device("meta"):
        return NetworkPlan(config(**changes), base).build()


def ranks(networks: list[LoRANetwork]) -> dict[str, int]:
    return {name: layer.rank for network in networks for name, layer in network.named_layers()}


@pytest.mark.parametrize(
    ("kind", "conv_dim", "layers"),
    [("sd15", 0, [192, 72]), ("sd15", 4, [278, 72]), ("sdxl", 0, [722, 72, 192]), ("sdxl", 4, [788, 72, 192])],
)
def test_as_many_layers_are_adapted_as_by_kohya(kind: str, conv_dim: int, layers: list[int]) -> None:
    assert [len(network) for network in built(kind, conv_dim=conv_dim)] == layers


def test_as_many_tensors_as_in_a_file_of_sd_scripts() -> None:
    for kind, conv_dim, expected in (("sd15", 0, 792), ("sd15", 4, 1050), ("sdxl", 0, 2958), ("sdxl", 4, 3156)):
        layers = [layer for network in built(kind, conv_dim=conv_dim) for _, layer in network.named_layers()]
        assert sum(len(layer.tensors()) + 1 for layer in layers) == expected  # and an alpha each


def test_names_are_kohyas() -> None:
    names = ranks(built("sd15", conv_dim=4))
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj" in names
    assert "lora_unet_up_blocks_1_resnets_0_time_emb_proj" in names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in names
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in names


def test_sdxl_has_the_original_codes_names() -> None:
    names = ranks(built("sdxl", conv_dim=4))
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q", "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_1_0_in_layers_2", "lora_unet_input_blocks_4_0_skip_connection",
        "lora_unet_middle_block_1_transformer_blocks_9_ff_net_0_proj", "lora_unet_middle_block_2_emb_layers_1",
        "lora_unet_output_blocks_2_2_conv", "lora_unet_output_blocks_5_1_transformer_blocks_1_attn2_to_out_0",
        "lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_text_model_encoder_layers_31_self_attn_out_proj",
    ):  # fmt: skip
        assert name in names, name


def test_time_projection_and_shortcuts_get_the_rank_of_linear_layers() -> None:
    found = ranks(built("sd15", conv_dim=8))
    assert found["lora_unet_up_blocks_1_resnets_0_time_emb_proj"] == 4
    assert found["lora_unet_up_blocks_1_resnets_0_conv_shortcut"] == 4
    assert found["lora_unet_up_blocks_1_resnets_0_conv1"] == 8


@pytest.mark.parametrize(("kind", "many"), [("sd15", 25), ("sdxl", 23)])
def test_there_are_as_many_blocks_as_kohyas_lists_have_values(kind: str, many: int) -> None:
    assert len(Blocks(model(kind).unet)) == many


def test_blocks_have_kohyas_numbers() -> None:
    plain, large = Blocks(model("sd15").unet), Blocks(model("sdxl").unet)
    assert plain.number("down_blocks.0.attentions.0.proj_in") == 1
    assert plain.number("down_blocks.2.downsamplers.0.conv") == 9
    assert plain.number("mid_block.attentions.0.proj_in") == 12
    assert plain.number("up_blocks.3.attentions.2.proj_out") == 24
    assert large.number("down_blocks.1.attentions.0.proj_in") == 5  # input_blocks.4
    assert large.number("mid_block.attentions.0.proj_in") == 11
    assert large.number("up_blocks.0.attentions.0.proj_in") == 13


def test_ranks_by_block_and_blocks_without() -> None:
    dims = [0] * 25
    dims[1], dims[12] = 16, 2
    found = ranks(built("sd15", block_dims=",".join(map(str, dims)), network_train_unet_only=True))
    by_rank = {rank: {name for name in found if found[name] == rank} for rank in set(found.values())}
    assert set(by_rank) == {16, 2}
    assert all(name.startswith("lora_unet_down_blocks_0_attentions_0") for name in by_rank[16])
    assert all(name.startswith("lora_unet_mid_block") for name in by_rank[2])


def test_learning_rates_by_block() -> None:
    plan = NetworkPlan(config(unet_lr=1e-3, down_lr_weight="zeros", mid_lr_weight="0.5"), base := model("sd15"))
    with torch.device("meta"):
        networks = plan.build()
    assert base is not None
    assert not [name for name in ranks(networks) if name.startswith("lora_unet_down")]
    rates = sorted(group.learning_rate for group in plan.groups(networks))
    assert rates == pytest.approx([1e-4, 5e-4, 1e-3])  # text encoder, middle, up


@pytest.mark.parametrize("dims", ["1,2,3", "a,b"])
def test_a_list_that_does_not_suit_the_model_is_refused(dims: str) -> None:
    with pytest.raises(ConfigError, match="25"):
        built("sd15", block_dims=dims)


@pytest.fixture
def encoder() -> CLIPTextModel:
    torch.manual_seed(0)
    return CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                        num_attention_heads=2)).eval()  # fmt: skip


def adapted(encoder: CLIPTextModel, dropouts: Dropouts = Dropouts()) -> LoRANetwork:  # noqa: B008  # immutable
    def make(path: str, layer: Layer) -> tuple[str, Adapter]:
        return f"lora_te_{path}", LoRA(layer, LoRA.factors(layer, 4), 2.0, dropouts)

    return adapt(encoder, TEXT_BLOCKS, make)


def trained(network: LoRANetwork) -> tuple[str, LoRA]:
    """Its first layer, with weights."""
    name, layer = next(iter(network.named_layers()))
    with torch.no_grad():
        cast(LoRA, layer).lora_up.normal_()
    return name, cast(LoRA, layer)


def test_an_untrained_lora_changes_nothing_and_a_trained_one_scales_by_alpha_over_rank(encoder: CLIPTextModel) -> None:
    ids = torch.arange(5)[None]
    before = encoder(ids)[0]
    network = adapted(encoder)
    assert torch.equal(encoder(ids)[0], before)
    name, layer = trained(network)
    x = torch.randn(3, 16)
    plain = layer._forward(x)
    assert torch.allclose(layer._adapted(x) - plain, x @ layer.lora_down.T @ layer.lora_up.T * 0.5, atol=1e-6)
    assert network.kohya_state(torch.float32)[f"{name}.alpha"] == 2.0


def test_rank_dropout_leaves_out_ranks_of_each_sample_and_keeps_the_mean(encoder: CLIPTextModel) -> None:
    _, layer = trained(adapted(encoder, Dropouts(rank_dropout=0.5)))
    x = torch.randn(1, 5, 16)
    layer.eval()
    full = layer._adapted(x) - layer._forward(x)
    layer.train()
    many = layer._adapted(x.expand(4000, -1, -1)) - layer._forward(x)
    assert torch.allclose(many.mean(0), full[0], atol=0.15)
    assert not torch.allclose(many[0], many[1])


def test_module_dropout_sits_whole_steps_out(encoder: CLIPTextModel) -> None:
    _, layer = trained(adapted(encoder, Dropouts(module_dropout=0.5)))
    x = torch.randn(1, 16)
    layer.train()
    out = [torch.equal(layer._adapted(x), layer._forward(x)) for _ in range(200)]
    assert 60 < sum(out) < 140


def test_norms_are_limited_and_small_ones_left_alone(encoder: CLIPTextModel) -> None:
    _, layer = trained(adapted(encoder))
    up, down = layer.lora_up, layer.lora_down

    def norm() -> float:
        return float(torch.linalg.matrix_norm(up @ down).detach() * layer.scale)

    before = norm()
    layer.limit_norm(2 * before)
    assert norm() == pytest.approx(before)
    layer.limit_norm(before / 3)
    assert norm() == pytest.approx(before / 3, rel=1e-4)


def real(tiny_model: Path) -> BaseModel:
    return load_base_model(str(tiny_model), torch.device("cpu"), torch.float32)


def state_of(networks: list[LoRANetwork]) -> dict[str, torch.Tensor]:
    return {k: v for network in networks for k, v in network.kohya_state(torch.float32).items()}


def save_random(networks: list[LoRANetwork], path: Path) -> dict[str, torch.Tensor]:
    """Give networks weights and write them as a file."""
    for network in networks:
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.5)
    save_file(state_of(networks), path)
    return state_of(networks)


LYCORIS: dict[str, ParameterValue] = {"network_module": "lycoris.kohya"}


@pytest.mark.parametrize(
    "kind",
    [
        {},
        {**LYCORIS, "algo": "loha"},
        {**LYCORIS, "algo": "lokr", "factor": 4},
        {**LYCORIS, "algo": "lokr", "factor": 2, "full_matrix": True},
        {**LYCORIS, "algo": "locon", "dora_wd": True},
    ],
)
def test_training_starts_from_an_earlier_file_of_any_kind_at_its_ranks(
    tmp_path: Path, tiny_model: Path, kind: dict[str, ParameterValue]
) -> None:
    file = tmp_path / "lora.safetensors"
    settings = {"network_dim": 3, "conv_dim": 2, "network_alpha": 2.0, **kind}
    state = save_random(NetworkPlan(config(**settings), real(tiny_model)).build(), file)
    start = {"network_weights": str(file)}
    found = state_of(NetworkPlan(config(**start, dim_from_weights=True), real(tiny_model)).build())
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)
    found = state_of(NetworkPlan(config(**settings, **start), real(tiny_model)).build())
    assert all(torch.equal(found[key], state[key]) for key in state)
    if not kind.get("full_matrix"):
        with pytest.raises(ConfigError, match="dim_from_weights"):
            NetworkPlan(config(**start, **{**settings, "network_dim": 1}), real(tiny_model)).build()


def test_start_weights_that_cannot_be_read_are_said(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        NetworkPlan(config(network_weights=str(tmp_path / "none.safetensors")), real(tiny_model))
    save_file({"lora_unet_x.hada_t1": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match="no layer"):
        NetworkPlan(config(network_weights=str(tmp_path / "other.safetensors")), real(tiny_model)).build()


def test_names_in_a_file_are_those_of_lycoris(tiny_model: Path) -> None:
    lokr = {**LYCORIS, "algo": "lokr", "factor": 4, "dora_wd": True, "network_dim": 1}
    state = state_of(NetworkPlan(config(**lokr), real(tiny_model)).build())
    layer = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_ff_net_0_proj"
    parts = {key.partition(".")[2]: state[key].shape for key in state if key.startswith(f"{layer}.")}
    assert parts == {
        "lokr_w1": (4, 2), "lokr_w2_a": (16, 1), "lokr_w2_b": (1, 4), "dora_scale": (64, 1), "alpha": (),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"algo": "loha"}, 'needs network_module = "lycoris.kohya"'),
        ({"dora_wd": True}, 'needs network_module = "lycoris.kohya"'),
        ({**LYCORIS, "algo": "lokr", "network_dropout": 0.1}, "has no network_dropout"),
    ],
)
def test_kinds_that_do_not_go_together_are_refused(changes: dict[str, ParameterValue], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        NetworkPlan(config(**changes), model("sd15"))


def test_base_weights_are_merged_each_by_its_share(tmp_path: Path, tiny_model: Path) -> None:
    files = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    first = save_random(NetworkPlan(config(), real(tiny_model)).build(), files[0])
    save_random(NetworkPlan(config(**LYCORIS, algo="loha"), real(tiny_model)).build(), files[1])
    plain, merged = real(tiny_model), real(tiny_model)
    NetworkPlan(config(base_weights=str(files[0]), base_weights_multiplier="0.5"), merged).build()
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    key = f"lora_unet_{name.replace('.', '_')}"
    change = first[f"{key}.lora_up.weight"] @ first[f"{key}.lora_down.weight"] * first[f"{key}.alpha"] / 4
    expected = plain.unet.get_submodule(name).weight + 0.5 * change
    assert torch.allclose(merged.unet.get_submodule(name).weight, expected, atol=1e-6)
    both = real(tiny_model)
    NetworkPlan(config(base_weights=f"{files[0]}, {files[1]}"), both).build()
    assert not torch.allclose(both.unet.get_submodule(name).weight, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("names", "shares", "sentence"),
    [("none.safetensors", None, "cannot be read"), ("other.safetensors", None, "has no layer"),
     ("other.safetensors", "1,2", "for 1 files"), ("other.safetensors", "x", "no list of numbers")],
)  # fmt: skip
def test_base_weights_that_do_not_fit_are_said(
    tmp_path: Path, tiny_model: Path, names: str, shares: str | None, sentence: str
) -> None:
    save_file({"lora_unet_x.lora_up.weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    asked = config(base_weights=str(tmp_path / names), base_weights_multiplier=shares)
    with pytest.raises(ConfigError, match=sentence):
        NetworkPlan(asked, real(tiny_model)).build()
