"""Compute noise, targets and loss weights of diffusion training as sd-scripts does."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from torch import Tensor

from tasks.training.config import TrainingConfig

_MAX_SNR = 1000.0  # as in sd-scripts: the SNR of timestep 0 is very large, or infinite


@dataclass(frozen=True)
class Noisy:
    """Hold a noised batch: input, target and noise level of each sample."""

    latents: Tensor  # (B, C, h, w)
    target: Tensor  # (B, C, h, w)
    timesteps: Tensor  # (B,)


@dataclass(frozen=True)
class DiffusionRules:
    """Hold kohya's noise and loss parameters under their names; None and 0 mean off."""

    noise_offset: float | None = None
    noise_offset_random_strength: bool = False
    adaptive_noise_scale: float | None = None
    multires_noise_iterations: int | None = None
    multires_noise_discount: float = 0.3
    ip_noise_gamma: float | None = None
    ip_noise_gamma_random_strength: bool = False
    min_timestep: int | None = None
    max_timestep: int | None = None
    v_parameterization: bool = False
    zero_terminal_snr: bool = False
    min_snr_gamma: float | None = None
    scale_v_pred_loss_like_noise_pred: bool = False
    v_pred_like_loss: float | None = None
    debiased_estimation_loss: bool = False
    loss_type: str = "l2"
    huber_schedule: str = "snr"
    huber_c: float = 0.1
    huber_scale: float = 1.0

    @classmethod
    def of(cls, config: TrainingConfig) -> DiffusionRules:
        """Read the rules from a configuration."""
        return cls(**{field.name: config.parameters[field.name] for field in fields(cls)})  # type: ignore[arg-type]


class Diffusion:
    """Add noise by the schedule of a base model, and compute the loss of a prediction."""

    def __init__(self, scheduler: DDPMScheduler, rules: DiffusionRules, device: torch.device) -> None:
        self._rules = rules
        self._velocity = rules.v_parameterization or scheduler.config.prediction_type == "v_prediction"
        alphas = scheduler.alphas_cumprod
        # Loss weights use the original schedule: sd-scripts computes them before it applies zero_terminal_snr.
        self._snr = (alphas / (1 - alphas)).to(device)  # (T,), on the device to avoid a copy at every step
        if rules.zero_terminal_snr:
            alphas = _zero_terminal(alphas)
        self._signal, self._sigma = alphas.sqrt().to(device), (1 - alphas).sqrt().to(device)

    def noise(self, latents: Tensor, generator: torch.Generator) -> Noisy:
        """Add noise at a random level to each sample.

        Args:
            latents: (B, C, h, w), scaled.
            generator: on the CPU, so that every device trains on the same noise.
        """
        r, device = self._rules, latents.device
        noise = torch.randn(latents.shape, generator=generator)
        if r.noise_offset:
            noise = noise + self._offset(latents, generator)
        if r.multires_noise_iterations:
            noise = _pyramid(noise, r.multires_noise_iterations, r.multires_noise_discount, generator)
        low, high = r.min_timestep or 0, r.max_timestep or len(self._snr)
        timesteps = torch.randint(low, high, (len(latents),), generator=generator).to(device)
        seen = noise.to(device)
        if r.ip_noise_gamma:
            strength = r.ip_noise_gamma * (_uniform(generator) if r.ip_noise_gamma_random_strength else 1.0)
            seen = seen + strength * torch.randn(latents.shape, generator=generator).to(device)
        return self.noised(latents, noise.to(device), timesteps, seen)

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor, seen: Tensor | None = None) -> Noisy:
        """Add given noise at given levels.

        Args:
            latents: (B, C, h, w), scaled.
            noise: (B, C, h, w) noise of the target.
            timesteps: (B,) noise levels.
            seen: noise of the input, if it differs from the target's (ip_noise_gamma).
        """
        signal, sigma = (table[timesteps][:, None, None, None] for table in (self._signal, self._sigma))
        target = signal * noise - sigma * latents if self._velocity else noise
        return Noisy(signal * latents + sigma * (noise if seen is None else seen), target, timesteps)

    def loss(
        self, predicted: Tensor, noisy: Noisy, weights: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the weighted mean error, a scalar.

        Args:
            predicted: (B, C, h, w) output of the UNet.
            noisy: the batch it was computed from.
            weights: (B,) weight of each sample, such as prior_loss_weight.
            mask: (B, 1, h, w) in [0, 1], weight of each place.
        """
        each = self._error(predicted.float(), noisy.target.float(), noisy.timesteps)
        if mask is not None:
            each = each * mask
        each = each.mean((1, 2, 3))  # (B,)
        if weights is not None:
            each = each * weights
        return self._weighted(each, self._snr[noisy.timesteps]).mean()

    def _error(self, predicted: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
        kind = self._rules.loss_type
        if kind == "l2":
            return F.mse_loss(predicted, target, reduction="none")
        if kind == "l1":
            return F.l1_loss(predicted, target, reduction="none")
        c = self._huber_c(timesteps)[:, None, None, None]
        error: Tensor = 2 * (((predicted - target) ** 2 + c**2).sqrt() - c)
        return error * c if kind == "huber" else error

    def _huber_c(self, timesteps: Tensor) -> Tensor:
        r = self._rules
        if r.huber_schedule == "constant":
            return torch.full(timesteps.shape, r.huber_c * r.huber_scale, device=timesteps.device)
        if r.huber_schedule == "exponential":
            return torch.exp(timesteps * (math.log(r.huber_c) / len(self._snr))) * r.huber_scale
        sigma: Tensor = self._snr[timesteps].rsqrt()
        return (1 - r.huber_c) / (1 + sigma) ** 2 + r.huber_c

    def _weighted(self, each: Tensor, snr: Tensor) -> Tensor:
        """Weight errors by noise level, in kohya's order; min-SNR after Hang et al. 2023, arXiv 2303.09556."""
        r, capped = self._rules, snr.clamp(max=_MAX_SNR)
        if r.min_snr_gamma:
            each = each * snr.clamp(max=r.min_snr_gamma) / (snr + 1 if self._velocity else snr)
        if r.scale_v_pred_loss_like_noise_pred:
            each = each * capped / (capped + 1)
        if r.v_pred_like_loss:
            each = each + each / (capped / (capped + 1)) * r.v_pred_like_loss
        if r.debiased_estimation_loss:
            each = each / (capped + 1 if self._velocity else capped.sqrt())
        return each

    def _offset(self, latents: Tensor, generator: torch.Generator) -> Tensor:
        r, shape = self._rules, (*latents.shape[:2], 1, 1)
        strength: float | Tensor = r.noise_offset or 0.0
        if r.noise_offset_random_strength:
            strength = strength * _uniform(generator)
        if r.adaptive_noise_scale:
            mean = latents.detach().cpu().mean((2, 3), keepdim=True).abs()
            strength = (strength + r.adaptive_noise_scale * mean).clamp_min(0)
        return strength * torch.randn(shape, generator=generator)


def _uniform(generator: torch.Generator) -> float:
    return float(torch.rand((), generator=generator))


def _pyramid(noise: Tensor, iterations: int, discount: float, generator: torch.Generator) -> Tensor:
    """Add coarser noise to noise, and rescale to a standard deviation of 1 over the batch."""
    batch, channels, height, width = noise.shape
    for i in range(iterations):
        shrink = (2 + 2 * _uniform(generator)) ** i
        size = max(1, int(height / shrink)), max(1, int(width / shrink))
        coarse = torch.randn(batch, channels, *size, generator=generator)
        noise = noise + F.interpolate(coarse, (height, width), mode="bilinear") * discount**i
        if 1 in size:
            break
    return noise / noise.std()


def _zero_terminal(alphas: Tensor) -> Tensor:
    """Return cumulative alphas shifted so that the last is 0 (Lin et al. 2023, arXiv 2305.08891, algorithm 1)."""
    roots = alphas.sqrt()
    first, last = roots[0].clone(), roots[-1].clone()
    moved: Tensor = ((roots - last) * first / (first - last)) ** 2
    return moved
