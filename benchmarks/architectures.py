"""Base models with random weights: for the speed of a training the numbers in them do not matter."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

_TOKENIZER = Path(__file__).parent.parent / "demo" / "base" / "tokenizer"
_UNETS = {
    "sd15": {
        "block_out_channels": (320, 640, 1280, 1280), "cross_attention_dim": 768, "attention_head_dim": 8,
        "sample_size": 64,
    },
    "sdxl": {
        "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
        "sample_size": 128, "use_linear_projection": True, "transformer_layers_per_block": (1, 2, 10),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
}  # fmt: skip
"""What sets the published configurations of Stable Diffusion 1.5 and XL apart from diffusers' defaults."""


def write_random_model(folder: Path, kind: str) -> Path:
    """A diffusers folder of the full-size architecture, with CLIP's own sizes and the demo's tokenizer.

    Args:
        kind: sd15 (4.3 GB) or sdxl (14 GB).
    """
    if (folder / "model_index.json").exists():
        return folder
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )  # fmt: skip
    parts = {
        "vae": vae,
        "unet": UNet2DConditionModel(**_UNETS[kind]),
        "scheduler": DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        ),
        "tokenizer": CLIPTokenizer.from_pretrained(_TOKENIZER),
        "text_encoder": CLIPTextModel(_text(768, 12, 12)),
    }
    if kind == "sdxl":
        second = CLIPTextModelWithProjection(_text(1280, 32, 20, projection_dim=1280, hidden_act="gelu"))
        pipe = StableDiffusionXLPipeline(**parts, text_encoder_2=second, tokenizer_2=parts["tokenizer"])
    else:
        pipe = StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None)
    pipe.save_pretrained(folder)
    return folder


def _text(width: int, layers: int, heads: int, **more: object) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=heads, **more
    )
