from __future__ import annotations

import pytest
import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from tasks.training.network import adapt_text_encoder, adapt_unet


@pytest.fixture(scope="module")
def meta_unet() -> UNet2DConditionModel:
    """Stable Diffusion 1.5's UNet without weights."""
    with torch.device("meta"):
        return UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)


def test_as_many_layers_are_adapted_as_by_kohya(meta_unet: UNet2DConditionModel) -> None:
    with torch.device("meta"):
        assert len(adapt_unet(meta_unet, 4, 1, 0, 1, 0.0)) == 192
        assert len(adapt_unet(meta_unet, 4, 1, 4, 1, 0.0)) == 278
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12))
        assert len(adapt_text_encoder(encoder, 4, 1, 0.0)) == 72


def test_names_are_kohyas(meta_unet: UNet2DConditionModel) -> None:
    with torch.device("meta"):
        names = {name for name, _ in adapt_unet(meta_unet, 4, 1, 4, 1, 0.0).named_layers()}
        encoder = CLIPTextModel(CLIPTextConfig(hidden_size=64, num_hidden_layers=1))
        text = {name for name, _ in adapt_text_encoder(encoder, 4, 1, 0.0).named_layers()}
    assert "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q" in names
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj" in names
    assert "lora_unet_up_blocks_1_resnets_0_time_emb_proj" in names
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj" in text
    assert "lora_te_text_model_encoder_layers_0_mlp_fc1" in text


def test_time_projection_and_shortcuts_get_the_rank_of_linear_layers(meta_unet: UNet2DConditionModel) -> None:
    with torch.device("meta"):
        ranks = {name: layer.rank for name, layer in adapt_unet(meta_unet, 4, 1, 8, 1, 0.0).named_layers()}
    assert ranks["lora_unet_up_blocks_1_resnets_0_time_emb_proj"] == 4
    assert ranks["lora_unet_up_blocks_1_resnets_0_conv_shortcut"] == 4
    assert ranks["lora_unet_up_blocks_1_resnets_0_conv1"] == 8


def test_an_untrained_lora_changes_nothing_and_a_trained_one_scales_by_alpha_over_rank() -> None:
    torch.manual_seed(0)
    encoder = CLIPTextModel(CLIPTextConfig(vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
                                           num_attention_heads=2)).eval()  # fmt: skip
    ids = torch.arange(5)[None]
    before = encoder(ids)[0]
    network = adapt_text_encoder(encoder, rank=4, alpha=2.0, dropout=0.0)
    assert torch.equal(encoder(ids)[0], before)
    name, layer = next(iter(network.named_layers()))
    with torch.no_grad():
        layer.lora_up.weight.normal_()
    x = torch.randn(3, 16)
    plain = layer._forward(x)
    assert torch.allclose(layer._adapted(x) - plain, layer.lora_up(layer.lora_down(x)) * 0.5, atol=1e-6)
    assert network.kohya_state(torch.float32)[f"{name}.alpha"] == 2.0
