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
