"""Load the parts of a base model from a diffusers folder, a hub id, or one .safetensors checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors import SafetensorError, safe_open
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from schema.errors import ConfigError
from tasks.pickles import refuse_pickled_model

TextEncoder: TypeAlias = CLIPTextModel | CLIPTextModelWithProjection


@dataclass(frozen=True)
class BaseModel:
    """Hold the parts of a frozen Stable Diffusion 1.x or XL model; SDXL has two text encoders."""

    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoders: tuple[TextEncoder, ...]
    tokenizers: tuple[CLIPTokenizer, ...]
    scheduler: DDPMScheduler

    def to(self, device: torch.device) -> BaseModel:
        """Move all parts in place and return the same model."""
        for part in (self.unet, self.vae, *self.text_encoders):
            part.to(device)
        return self

    @property
    def native_size(self) -> int:
        """Return the side, in pixels, that the model was trained at."""
        return int(self.unet.config.sample_size * self.shrinks_by)

    @property
    def shrinks_by(self) -> int:
        """Return the side, in pixels, of the area that one latent stands for: 8 for Stable Diffusion."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def text_prefixes(self) -> tuple[str, ...]:
        """Return the prefixes of kohya's layer names, one for each text encoder."""
        return ("lora_te",) if len(self.text_encoders) == 1 else ("lora_te1", "lora_te2")


def load_base_model(name: str, device: torch.device, dtype: torch.dtype) -> BaseModel:
    """Load a model, frozen, on the device; the VAE always in float32.

    Raises:
        ConfigError: there is no such model, it is pickled, or it is neither Stable Diffusion 1.x nor XL.
    """
    refuse_pickled_model(name)
    try:
        model = _from_file(name, dtype) if name.endswith(".safetensors") else _from_folder(name, dtype)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(f"the base model {name} cannot be loaded: {reason}") from None
    for part in (model.unet, model.vae, *model.text_encoders):
        part.requires_grad_(False)
    # Convolutions are faster in this layout, on GPUs and on CPUs.
    model.unet.to(memory_format=torch.channels_last)
    return model.to(device)


def is_sdxl_checkpoint(path: Path) -> bool:
    """Return whether a single file holds an SDXL model, which has a second text encoder.

    Raises:
        OSError: the file cannot be read.
    """
    with safe_open(path, "pt") as file:
        return any(key.startswith("conditioner.embedders.1.") for key in file.keys())  # noqa: SIM118  # no dict


def _from_folder(name: str, dtype: torch.dtype) -> BaseModel:
    if not Path(name).exists() and (name.startswith((".", "/")) or name.count("/") != 1):
        raise OSError("there is no such folder")
    weights: Any = {"use_safetensors": True, "dtype": dtype}
    encoders: list[TextEncoder] = [CLIPTextModel.from_pretrained(name, subfolder="text_encoder", **weights)]
    tokenizers = [CLIPTokenizer.from_pretrained(name, subfolder="tokenizer")]
    unet = UNet2DConditionModel.from_pretrained(name, subfolder="unet", **weights)
    if unet.config.addition_embed_type == "text_time":
        encoders.append(CLIPTextModelWithProjection.from_pretrained(name, subfolder="text_encoder_2", **weights))
        tokenizers.append(CLIPTokenizer.from_pretrained(name, subfolder="tokenizer_2"))
    return BaseModel(
        unet,
        # SDXL's VAE overflows in float16, and latents are encoded only once.
        AutoencoderKL.from_pretrained(name, subfolder="vae", use_safetensors=True, dtype=torch.float32),
        tuple(encoders),
        tuple(tokenizers),
        DDPMScheduler.from_pretrained(name, subfolder="scheduler"),
    )


def _from_file(name: str, dtype: torch.dtype) -> BaseModel:
    sdxl = is_sdxl_checkpoint(Path(name))
    kind = StableDiffusionXLPipeline if sdxl else StableDiffusionPipeline
    pipe: Any = kind.from_single_file(name, dtype=dtype)
    encoders = (pipe.text_encoder, pipe.text_encoder_2) if sdxl else (pipe.text_encoder,)
    tokenizers = (pipe.tokenizer, pipe.tokenizer_2) if sdxl else (pipe.tokenizer,)
    scheduler = DDPMScheduler.from_config(pipe.scheduler.config)
    return BaseModel(pipe.unet, pipe.vae.float(), encoders, tokenizers, scheduler)
