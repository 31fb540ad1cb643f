from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from tasks.training.loss import Diffusion

CPU = torch.device("cpu")


def diffusion(kind: str = "epsilon", offset: float = 0.0, gamma: float = 0.0) -> Diffusion:
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)
    return Diffusion(scheduler, offset, gamma, CPU)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_a_perfect_prediction_has_no_loss() -> None:
    for kind in ("epsilon", "v_prediction"):
        noisy = diffusion(kind).noise(torch.randn(4, 4, 8, 8), seeded())
        assert diffusion(kind).loss(noisy.target, noisy) == 0


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_the_paper(kind: str) -> None:
    latents = torch.randn(1, 4, 8, 8)
    for seed in range(5):
        noisy = diffusion(kind).noise(latents, torch.Generator().manual_seed(seed))
        alpha = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").alphas_cumprod
        snr = (alpha / (1 - alpha))[noisy.timesteps].item()
        plain = diffusion(kind).loss(torch.zeros_like(latents), noisy).item()
        weighted = diffusion(kind, gamma=5.0).loss(torch.zeros_like(latents), noisy).item()
        expected = min(snr, 5.0) / (snr if kind == "epsilon" else snr + 1)
        assert weighted / plain == pytest.approx(expected, rel=1e-4)


def test_noise_offset_shifts_whole_channels() -> None:
    latents = torch.zeros(64, 4, 16, 16)
    plain, shifted = (diffusion(offset=o).noise(latents, seeded()).target for o in (0.0, 0.5))
    assert plain.mean((2, 3)).std() < 0.1
    assert 0.4 < shifted.mean((2, 3)).std() < 0.6


def test_the_same_seed_gives_the_same_noise() -> None:
    latents = torch.randn(2, 4, 8, 8)
    first, second = (diffusion().noise(latents, seeded()) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
