from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.metrics.bins import Bins
from tasks.metrics.colour import oklab
from tasks.metrics.palette import Palette, palette_score, palette_size


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 27), st.integers(0, 1000))
def test_well_separated_colours_are_counted_exactly(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    levels = torch.tensor([0.15, 0.55, 1.0])  # in black the eye, but no formula, sees no noise
    every = torch.cartesian_prod(levels, levels, levels)[torch.randperm(27, generator=generator)[:count]]
    cells = every[torch.arange(256) % count].T.reshape(1, 3, 16, 16)
    noisy = (cells + 0.004 * torch.randn(cells.shape, generator=generator)).clamp(0, 1)
    palette = Palette.of(Bins.of(oklab((noisy * 255).byte()), 7), torch.ones(1, 16, 16, dtype=torch.bool))
    assert palette_size(palette).item() == count
    assert palette.counts.sum() == 256
    same = palette.member.flatten() == palette.member.flatten()[0]
    assert same.nonzero()[:, 0].tolist() == list(range(0, 256, count))


@pytest.mark.parametrize(("size", "score"), [(1, 0), (4, 100), (20, 100), (50, 100), (100, 50), (150, 0), (400, 0)])
def test_the_score_is_full_from_four_to_fifty(size: int, score: float) -> None:
    assert palette_score(torch.tensor([size])).item() == pytest.approx(score)
