from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tasks.training.loss import Diffusion, DiffusionRules, Noisy

CPU = torch.device("cpu")
Array = npt.NDArray[np.float64]


def scheduler(kind: str = "epsilon") -> DDPMScheduler:
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=kind)


def diffusion(kind: str = "epsilon", **rules: Any) -> Diffusion:
    return Diffusion(scheduler(kind), DiffusionRules(**rules), CPU)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def kohya_loss(
    kind: str, predicted: Tensor, latents: Tensor, noise: Tensor, timesteps: Tensor, weights: Tensor, r: DiffusionRules
) -> float:
    """The loss of sd-scripts written down once more, sample by sample in float64, from its documented formulas."""
    beta: Array = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha = np.cumprod(1 - beta)
    total = 0.0
    for p, x, n, t, weight in zip(predicted, latents, noise, timesteps.tolist(), weights.tolist(), strict=True):
        signal, sigma, snr = alpha[t] ** 0.5, (1 - alpha[t]) ** 0.5, alpha[t] / (1 - alpha[t])
        velocity = kind == "v_prediction"
        target = signal * n.double().numpy() - sigma * x.double().numpy() if velocity else n.double().numpy()
        d = p.double().numpy() - target
        c = {
            "snr": (1 - r.huber_c) / (1 + sigma / signal) ** 2 + r.huber_c,
            "exponential": math.exp(t * math.log(r.huber_c) / 1000) * r.huber_scale,
            "constant": r.huber_c * r.huber_scale,
        }[r.huber_schedule]
        soft = np.sqrt(d**2 + c**2) - c
        loss = (
            float({"l2": d**2, "l1": abs(d), "huber": 2 * c * soft, "smooth_l1": 2 * soft}[r.loss_type].mean()) * weight
        )
        if r.min_snr_gamma:
            loss *= min(snr, r.min_snr_gamma) / (snr + 1 if velocity else snr)
        limited = min(snr, 1000)
        if r.scale_v_pred_loss_like_noise_pred:
            loss *= limited / (limited + 1)
        if r.v_pred_like_loss:
            loss += loss / (limited / (limited + 1)) * r.v_pred_like_loss
        if r.debiased_estimation_loss:
            loss *= 1 / (limited + 1) if velocity else 1 / math.sqrt(limited)
        total += loss
    return total / len(predicted)


@given(
    kind=st.sampled_from(["epsilon", "v_prediction"]),
    rules=st.builds(
        DiffusionRules,
        min_snr_gamma=st.sampled_from([None, 1.0, 5.0]),
        debiased_estimation_loss=st.booleans(),
        scale_v_pred_loss_like_noise_pred=st.booleans(),
        v_pred_like_loss=st.sampled_from([None, 0.3]),
        loss_type=st.sampled_from(["l2", "l1", "huber", "smooth_l1"]),
        huber_schedule=st.sampled_from(["snr", "exponential", "constant"]),
        huber_c=st.sampled_from([0.1, 0.5]),
        huber_scale=st.sampled_from([1.0, 2.0]),
    ),
    prior=st.floats(0.1, 2),
    seed=st.integers(0, 100),
)
@settings(deadline=None, max_examples=60)
def test_the_loss_is_that_of_kohyas_formulas(kind: str, rules: DiffusionRules, prior: float, seed: int) -> None:
    generator = seeded(seed)
    latents, noise, predicted = (torch.randn(3, 4, 8, 8, generator=generator) for _ in range(3))
    timesteps = torch.randint(0, 1000, (3,), generator=generator)
    weights = torch.tensor([1.0, prior, 1.0])
    ours = Diffusion(scheduler(kind), rules, CPU)
    found = ours.loss(predicted, ours.noised(latents, noise, timesteps), weights).item()
    expected = kohya_loss(kind, predicted, latents, noise, timesteps, weights, rules)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(
    kind=st.sampled_from(["epsilon", "v_prediction"]),
    offset=st.sampled_from([0.0, 0.1]),
    gamma=st.sampled_from([None, 5.0]),
    seed=st.integers(0, 1000),
)
@settings(deadline=None, max_examples=40)
def test_noise_offset_and_loss_together_are_kohyas(kind: str, offset: float, gamma: float | None, seed: int) -> None:
    """From the same draws of the generator: plain noise, then one number a channel, then noise levels."""
    latents, predicted = torch.randn(2, 3, 4, 8, 8, generator=seeded(seed + 1))
    rules = DiffusionRules(noise_offset=offset or None, min_snr_gamma=gamma)
    ours, weights = Diffusion(scheduler(kind), rules, CPU), torch.tensor([1.0, 0.5, 1.0])
    noisy = ours.noise(latents, seeded(seed))
    again = seeded(seed)
    noise = torch.randn(latents.shape, generator=again)
    if offset:
        noise += offset * torch.randn(3, 4, 1, 1, generator=again)
    timesteps = torch.randint(0, 1000, (3,), generator=again)
    assert torch.equal(noisy.timesteps, timesteps)
    assert torch.allclose(noisy.latents, scheduler(kind).add_noise(latents, noise, timesteps), atol=1e-6)
    expected = kohya_loss(kind, predicted, latents, noise, timesteps, weights, rules)
    assert ours.loss(predicted, noisy, weights).item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_a_perfect_prediction_has_no_loss() -> None:
    for kind in ("epsilon", "v_prediction"):
        noisy = diffusion(kind).noise(torch.randn(4, 4, 8, 8), seeded())
        assert diffusion(kind).loss(noisy.target, noisy) == 0


def test_the_input_is_the_one_diffusers_makes() -> None:
    latents, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    timesteps = torch.tensor([0, 500, 999])
    for kind in ("epsilon", "v_prediction"):
        theirs, ours = scheduler(kind), diffusion(kind).noised(latents, noise, timesteps)
        assert torch.allclose(ours.latents, theirs.add_noise(latents, noise, timesteps), atol=1e-6)
        if kind == "v_prediction":
            assert torch.allclose(ours.target, theirs.get_velocity(latents, noise, timesteps), atol=1e-6)


def test_noise_offset_shifts_whole_channels() -> None:
    latents = torch.zeros(64, 4, 16, 16)
    plain, shifted = (diffusion(noise_offset=o).noise(latents, seeded()).target for o in (0.0, 0.5))
    assert plain.mean((2, 3)).std() < 0.1
    assert 0.4 < shifted.mean((2, 3)).std() < 0.6


def test_an_adaptive_offset_grows_with_the_latents_mean() -> None:
    def spread(level: float) -> float:
        latents = torch.full((64, 4, 16, 16), level)
        rules = {"noise_offset": 0.05, "adaptive_noise_scale": 0.5}
        return diffusion(**rules).noise(latents, seeded()).target.mean((2, 3)).std().item()

    assert spread(1.0) > 3 * spread(0.0)


def test_multires_noise_is_coarser_and_no_stronger() -> None:
    latents = torch.zeros(32, 4, 16, 16)
    fine, coarse = (
        diffusion(multires_noise_iterations=i, multires_noise_discount=0.8).noise(latents, seeded()).target
        for i in (None, 6)
    )
    assert coarse.std().item() == pytest.approx(1, abs=0.01)
    assert (coarse[..., 1:] - coarse[..., :-1]).std() < 0.95 * (fine[..., 1:] - fine[..., :-1]).std()


def test_input_perturbation_changes_the_input_and_not_the_target() -> None:
    latents = torch.randn(4, 4, 8, 8)
    plain, perturbed = (diffusion(ip_noise_gamma=g).noise(latents, seeded()) for g in (None, 0.2))
    assert torch.equal(plain.target, perturbed.target)
    assert not torch.allclose(plain.latents, perturbed.latents)


def test_only_the_chosen_noise_levels_are_trained() -> None:
    noisy = diffusion(min_timestep=200, max_timestep=300).noise(torch.zeros(500, 1, 1, 1), seeded())
    assert 200 <= noisy.timesteps.min() < 210
    assert 290 < noisy.timesteps.max() < 300


def test_zero_terminal_snr_ends_in_pure_noise() -> None:
    latents, noise, last = torch.randn(1, 4, 8, 8), torch.randn(1, 4, 8, 8), torch.tensor([999])
    assert not torch.allclose(diffusion().noised(latents, noise, last).latents, noise, atol=1e-3)
    assert torch.allclose(diffusion(zero_terminal_snr=True).noised(latents, noise, last).latents, noise, atol=1e-6)


def test_a_mask_leaves_out_what_it_covers() -> None:
    ours, target = diffusion(), torch.zeros(1, 4, 8, 8)
    noisy = Noisy(target, target, torch.tensor([10]))
    predicted = torch.zeros(1, 4, 8, 8)
    predicted[..., :4] = 1
    mask = torch.ones(1, 1, 8, 8)
    mask[..., :4] = 0
    assert ours.loss(predicted, noisy) > 0
    assert ours.loss(predicted, noisy, mask=mask) == 0


def test_the_same_seed_gives_the_same_noise() -> None:
    rules = {"noise_offset": 0.1, "noise_offset_random_strength": True, "multires_noise_iterations": 4}
    latents = torch.randn(2, 4, 8, 8)
    first, second = (diffusion(**rules).noise(latents, seeded()) for _ in range(2))
    assert torch.equal(first.latents, second.latents)
