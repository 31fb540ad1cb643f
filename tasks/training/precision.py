"""Choose the number format of the trained weights, and scale losses for fp16."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from tasks.training.config import TrainingConfig


class Scaler(torch.amp.GradScaler):
    """Scale losses like PyTorch's GradScaler, but accept the fp16 gradients of full_fp16, which PyTorch refuses."""

    def _unscale_grads_(
        self, optimizer: Optimizer, inv_scale: Tensor, found_inf: Tensor, allow_fp16: bool
    ) -> dict[torch.device, Tensor]:
        return super()._unscale_grads_(optimizer, inv_scale, found_inf, True)


def trained_dtype(config: TrainingConfig) -> torch.dtype:
    """Return the number format of the LoRA and its gradients: float32 unless full_fp16 or full_bf16 is set."""
    if config.flag("full_fp16"):
        return torch.float16
    return torch.bfloat16 if config.flag("full_bf16") else torch.float32
