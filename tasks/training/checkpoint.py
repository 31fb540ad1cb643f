"""LoRA files in kohya's format, and the state that training goes on from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import pickle
import uuid
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from tasks.training.config import TrainingConfig

_DTYPES = {"float": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def checkpoint_path(config: TrainingConfig, epoch: int) -> Path:
    """Where an epoch's LoRA goes: numbered, the last one without a number, as kohya's."""
    last = epoch == config.integer("max_train_epochs")
    return config.output_dir / f"{config.output_name}{'' if last else f'-{epoch:06d}'}.safetensors"


def step_path(config: TrainingConfig, step: int) -> Path:
    """Where the LoRA after some steps goes, as kohya's."""
    return config.output_dir / f"{config.output_name}-step{step:08d}.safetensors"


def save_dtype(config: TrainingConfig) -> torch.dtype:
    """Number format of LoRA files."""
    return _DTYPES[config.text("save_precision")]


def save_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file, complete or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    body = save(dict(tensors), {name: text for name, text in metadata.items() if name.startswith("ss_")})
    write_whole(path, save(dict(tensors), {**metadata, **_hashes(body)}))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file, complete or not at all.

    Raises:
        OSError: no room, or no permission; the error names the file.
    """
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")  # processes of two containers may have one number
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # else a power cut may leave the name without the content
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None


def _hashes(file: bytes) -> dict[str, str]:
    """What A1111's extensions know a file by: its tensors' bytes, and, once, 64 KB from the first megabyte on."""
    start = 8 + int.from_bytes(file[:8], "little")
    old = file[0x100000:0x110000]
    return {
        "sshs_model_hash": hashlib.sha256(file[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(old).hexdigest()[:8],
    }


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the training state, complete or not at all; the one before stays beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    torch.save(dict(state), data)
    with contextlib.suppress(FileNotFoundError):
        path.replace(_before(path))
    write_whole(path, data.getvalue())


def load_state(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The newest training state that can be read.

    Returns:
        The state, None where training starts anew; and a sentence where a file could not be read.
    """
    trouble = None
    for file in (path, _before(path)):
        if not file.exists():
            continue
        with contextlib.suppress(OSError, RuntimeError, pickle.UnpicklingError):
            if zipfile.is_zipfile(file):  # what torch saves; on anything else its reader stumbles in many ways
                return torch.load(file, map_location="cpu", weights_only=True), trouble
        trouble = f"{file} is broken: training goes on from the state before"
    return None, trouble


def _before(path: Path) -> Path:
    return path.with_suffix(".before" + path.suffix)
