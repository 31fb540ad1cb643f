"""Kohya's noise, targets and loss weights written down once more, in NumPy and 64 bits, from their formulas alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray

from tasks.training.loss import Diffusion, DiffusionRules, Noisy

Array = NDArray[np.float64]
_CASES: list[dict[str, Any]] = [
    dict(zip(("v_parameterization", "min_snr_gamma", "debiased_estimation_loss", "loss_type"), case, strict=True))
    for case in (
        (False, None, False, "l2"), (False, 5.0, False, "l2"), (True, None, False, "l2"), (True, 5.0, False, "l2"),
        (False, None, True, "l2"), (True, None, True, "l2"), (False, None, False, "l1"), (False, 5.0, False, "huber"),
        (False, 1.0, False, "smooth_l1"),
    )
]  # fmt: skip


def loss_parity() -> float:
    """Largest relative difference of our loss from the formulas, over kinds of loss and noise levels."""
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return max(_difference(scheduler, case, seed) for case in _CASES for seed in range(5))


def _difference(scheduler: DDPMScheduler, case: dict[str, Any], seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    latents, noise, predicted = (torch.randn(6, 4, 8, 8, generator=generator) for _ in range(3))
    levels = torch.randint(0, 1000, (6,), generator=generator)
    weights = torch.tensor([1.0, 0.3, 1.0, 0.3, 1.0, 1.0])
    ours = Diffusion(scheduler, DiffusionRules(**case), torch.device("cpu"))
    noisy: Noisy = ours.noised(latents, noise, levels)
    found = float(ours.loss(predicted, noisy, weights))
    expected = _loss(case, *(t.double().numpy() for t in (latents, noise, predicted, weights)), levels.numpy())
    return abs(found - expected) / expected


def _loss(case: dict[str, Any], x: Array, noise: Array, predicted: Array, weights: Array, t: NDArray[Any]) -> float:
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - betas)[t]
    snr, velocity = alpha / (1 - alpha), case["v_parameterization"]
    a = alpha[:, None, None, None]
    target = np.sqrt(a) * noise - np.sqrt(1 - a) * x if velocity else noise
    c = (0.9 / (1 + 1 / np.sqrt(snr)) ** 2 + 0.1)[:, None, None, None]
    d = predicted - target
    error = {
        "l2": d**2, "l1": np.abs(d), "huber": 2 * c * (np.sqrt(d**2 + c**2) - c),
        "smooth_l1": 2 * (np.sqrt(d**2 + c**2) - c),
    }[case["loss_type"]]  # fmt: skip
    each = error.mean((1, 2, 3)) * weights
    if gamma := case["min_snr_gamma"]:
        each = each * np.minimum(snr, gamma) / (snr + 1 if velocity else snr)
    if case["debiased_estimation_loss"]:
        capped = np.minimum(snr, 1000)
        each = each / (capped + 1 if velocity else np.sqrt(capped))
    return float(each.mean())
