"""A tiny SDXL model, and LoRA files in kohya's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor


def save_lora(path: Path, layers: Mapping[str, tuple[int, int]], rank: int = 2, std: float = 0.5) -> Path:
    """A LoRA of random weights by kohya's names and each layer's (inputs, outputs)."""
    generator = torch.Generator().manual_seed(0)
    state: dict[str, Tensor] = {}
    for name, (inputs, outputs) in layers.items():
        state[f"{name}.lora_down.weight"] = torch.randn(rank, inputs, generator=generator) * std
        state[f"{name}.lora_up.weight"] = torch.randn(outputs, rank, generator=generator) * std
        state[f"{name}.alpha"] = torch.tensor(float(rank))
    save_file(state, path)
    return path


@pytest.fixture(scope="session")
def tiny_sdxl(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL folder of the ordinary classes with a few thousand random weights."""
    from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(tiny_model / "tokenizer")
    text = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=16, bos_token_id=len(tokenizer) - 2,
        eos_token_id=len(tokenizer) - 1,
    )  # fmt: skip
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, cross_attention_dim=32, norm_num_groups=4,
        attention_head_dim=(1, 2), use_linear_projection=True, transformer_layers_per_block=(1, 1),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=6 * 4 + 16,
    )  # fmt: skip
    pipe = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(tiny_model / "vae"), unet=unet, scheduler=EulerDiscreteScheduler(),
        text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer, tokenizer_2=tokenizer, add_watermarker=False,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("sdxl") / "model"
    pipe.save_pretrained(folder)
    return folder
