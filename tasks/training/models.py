"""The base model's parts, from a diffusers folder, a hub id, or one .safetensors checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from schema.errors import ConfigError


@dataclass(frozen=True)
class BaseModel:
    """A frozen Stable Diffusion model."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler

    @property
    def native_size(self) -> int:
        """Side in pixels the model was trained at."""
        return int(self.unet.config.sample_size * 2 ** (len(self.vae.config.block_out_channels) - 1))


def load_base_model(name: str, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Load the parts, frozen, on the device.

    Raises:
        ConfigError: no such model, or not a Stable Diffusion 1.x.
    """
    try:
        model = _from_file(name, dtype) if name.endswith((".safetensors", ".ckpt")) else _from_folder(name, dtype)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the base model {name} cannot be loaded: {reason}") from None
    for part in (model.unet, model.vae, model.text_encoder):
        part.requires_grad_(False)
        part.to(device)
    return model


def _from_folder(name: str, dtype: torch.dtype) -> BaseModel:
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise OSError("there is no such folder")
    if (Path(name) / "text_encoder_2").exists():
        raise OSError("it is an SDXL model, which this trainer does not train yet")
    return BaseModel(
        UNet2DConditionModel.from_pretrained(name, subfolder="unet", dtype=dtype),
        AutoencoderKL.from_pretrained(name, subfolder="vae", dtype=torch.float32),
        CLIPTextModel.from_pretrained(name, subfolder="text_encoder", dtype=dtype),
        CLIPTokenizer.from_pretrained(name, subfolder="tokenizer"),
        DDPMScheduler.from_pretrained(name, subfolder="scheduler"),
    )


def _from_file(name: str, dtype: torch.dtype) -> BaseModel:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_single_file(name, dtype=dtype)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    return BaseModel(pipe.unet, pipe.vae.float(), pipe.text_encoder, pipe.tokenizer, scheduler)
