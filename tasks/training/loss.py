"""Noise, targets and loss weights of diffusion training, as sd-scripts has them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor


@dataclass(frozen=True)
class Noisy:
    """A noised batch: input, target and noise level of each sample."""

    latents: Tensor  # (B, C, h, w)
    target: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)


class Diffusion:
    """The forward process of a base model, read from its scheduler's configuration."""

    def __init__(
        self, scheduler: DDPMScheduler, noise_offset: float, min_snr_gamma: float, device: torch.device
    ) -> None:
        self._scheduler, self._offset, self._gamma = scheduler, noise_offset, min_snr_gamma
        self._kind = str(scheduler.config.prediction_type)
        alphas = scheduler.alphas_cumprod.to(device)
        self._snr = alphas / (1 - alphas)  # (T,), on the device: no copy at every step

    def noise(self, latents: Tensor, generator: torch.Generator) -> Noisy:
        """Add noise of random strength.

        Args:
            latents: (B, C, h, w), scaled.
            generator: on the CPU, so that every device trains on the same noise.
        """
        size, device = len(latents), latents.device
        noise = torch.randn(latents.shape, generator=generator).to(device)
        if self._offset:
            noise += self._offset * torch.randn(size, latents.shape[1], 1, 1, generator=generator).to(device)
        steps = len(self._snr)
        timesteps = torch.randint(0, steps, (size,), generator=generator).to(device)
        noised = self._scheduler.add_noise(latents, noise, timesteps)
        velocity = self._kind == "v_prediction"
        target = self._scheduler.get_velocity(latents, noise, timesteps) if velocity else noise
        return Noisy(noised, target, timesteps)

    def loss(self, predicted: Tensor, noisy: Noisy) -> Tensor:
        """Mean squared error, weighted by min-SNR if it is on (Hang et al. 2023, arXiv 2303.09556)."""
        each = F.mse_loss(predicted.float(), noisy.target.float(), reduction="none").mean((1, 2, 3))  # (B,)
        if self._gamma:
            snr = self._snr[noisy.timesteps]
            weight = snr.clamp(max=self._gamma)
            each = each * weight / (snr + 1 if self._kind == "v_prediction" else snr)
        return each.mean()
