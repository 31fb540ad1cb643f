"""Write LoRA files in kohya's format, and save and load the training state."""

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
    """Return the path of an epoch's LoRA with kohya's name: numbered, except for the last epoch."""
    last = epoch == config.integer("max_train_epochs")
    return config.output_dir / f"{config.output_name}{'' if last else f'-{epoch:06d}'}.safetensors"


def step_path(config: TrainingConfig, step: int) -> Path:
    """Return the path of the LoRA after some steps, with kohya's name."""
    return config.output_dir / f"{config.output_name}-step{step:08d}.safetensors"


def save_dtype(config: TrainingConfig) -> torch.dtype:
    """Return the number format of LoRA files."""
    return _DTYPES[config.text("save_precision")]


def save_lora(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA file atomically, with hashes added to the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # The hashes cover a file with the ss_ entries only, as kohya's trainer computes them.
    body = save(dict(tensors), {name: text for name, text in metadata.items() if name.startswith("ss_")})
    write_whole(path, save(dict(tensors), {**metadata, **_hashes(body)}))


def write_whole(path: Path, data: bytes) -> None:
    """Write a file atomically.

    Raises:
        OSError: the disk is full, or permission is missing; the error names the file.
    """
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")  # no process id: two containers may use the same one
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # otherwise a power cut may leave an empty file
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from None


def _hashes(file: bytes) -> dict[str, str]:
    """Return the hashes by which A1111's extensions identify a file.

    The current one covers the tensors' bytes, the legacy one 64 KB after the first megabyte.
    """
    start = 8 + int.from_bytes(file[:8], "little")
    old = file[0x100000:0x110000]
    return {
        "sshs_model_hash": hashlib.sha256(file[start:]).hexdigest(),
        "sshs_legacy_hash": hashlib.sha256(old).hexdigest()[:8],
    }


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write the training state atomically; the previous one stays beside it as a fallback."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = io.BytesIO()
    torch.save(dict(state), data)
    with contextlib.suppress(FileNotFoundError):
        path.replace(_before(path))
    write_whole(path, data.getvalue())


def load_state(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """Load the newest training state that can be read.

    Returns:
        The state, or None if training starts anew; and a message if a file could not be read, or None.
    """
    trouble = None
    for file in (path, _before(path)):
        if not file.exists():
            continue
        with contextlib.suppress(OSError, RuntimeError, pickle.UnpicklingError):
            if zipfile.is_zipfile(file):  # on anything else torch.load raises all kinds of errors
                return torch.load(file, map_location="cpu", weights_only=True), trouble
        trouble = f"{file} is broken: training goes on from the state before"
    return None, trouble


def _before(path: Path) -> Path:
    return path.with_suffix(".before" + path.suffix)
