"""LoRA files in kohya's format."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

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
