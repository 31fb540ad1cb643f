"""LoRA files in kohya's format, and the state that training goes on from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save, save_file
from torch import Tensor

from tasks.training.config import TrainingConfig

_DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def checkpoint_path(config: TrainingConfig, epoch: int) -> Path:
    """Where an epoch's LoRA goes: numbered, the last one without a number, as kohya's."""
    last = epoch == config.integer("max_train_epochs")
    return config.output_dir / f"{config.output_name}{'' if last else f'-{epoch:06d}'}.safetensors"


def save_dtype(config: TrainingConfig) -> torch.dtype:
    """Number format of LoRA files."""
    return _DTYPES[config.text("save_precision")]


def save_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(save(dict(tensors))).hexdigest()
    part = path.with_suffix(".part")
    save_file(dict(tensors), part, metadata={**metadata, "sshs_model_hash": digest})
    part.chmod(0o644)
    part.replace(path)


def kohya_metadata(config: TrainingConfig, epoch: int, step: int, steps_per_epoch: int, samples: int) -> dict[str, str]:
    """The ss_ entries that readers of LoRA files look for; kohya writes every value as text."""
    p = config.parameters
    from_parameters = (
        "learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "max_grad_norm",
        "network_dim", "network_alpha", "network_dropout", "gradient_checkpointing", "gradient_accumulation_steps",
        "mixed_precision", "clip_skip", "max_token_length", "cache_latents", "seed", "noise_offset", "min_snr_gamma",
        "prior_loss_weight", "caption_dropout_rate", "caption_tag_dropout_rate", "shuffle_caption", "keep_tokens",
        "flip_aug",
    )  # fmt: skip
    epochs = config.integer("max_train_epochs")
    entries: dict[str, Any] = {
        **{name: p[name] for name in from_parameters},
        "output_name": config.output_name,
        "epoch": epoch,
        "steps": step,
        "num_epochs": epochs,
        "max_train_steps": epochs * steps_per_epoch,
        "num_batches_per_epoch": steps_per_epoch,
        "num_train_images": samples,
        "batch_size_per_device": p["train_batch_size"],
        "network_module": "networks.lora",
        "network_args": _network_args(config),
        "optimizer": p["optimizer_type"],
        "sd_model_name": Path(config.pretrained_model_name_or_path).name,
        "base_model_version": "sd_v1",
        "v2": False,
    }
    return {
        **{f"ss_{name}": str(value) for name, value in entries.items()},
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1/lora",
        "modelspec.title": config.output_name,
    }


def _network_args(config: TrainingConfig) -> str:
    if not config.integer("conv_dim"):
        return "{}"
    return f'{{"conv_dim": "{config.integer("conv_dim")}", "conv_alpha": "{config.number("conv_alpha"):g}"}}'


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the training state, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    torch.save(dict(state), part)
    part.replace(path)


def load_state(path: Path) -> dict[str, Any] | None:
    """The training state, or None where training starts anew."""
    if not path.exists():
        return None
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
