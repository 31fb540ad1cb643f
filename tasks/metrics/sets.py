"""Measures of a whole set of pictures: what single pictures cannot show of over-training."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from schema.runs import EpochMetrics, PictureMetrics
from tasks.metrics.colour import UNIT, oklab
from tasks.pictures import open_picture, reduced

_SIDE = 24
_NEAR = 0.3
"""Part of the usual distance between a training picture and its nearest below which a picture is a copy."""

ATTRIBUTES = ("background_accuracy", "hair_accuracy", "crown_accuracy")
"""Attributes of which the worst prompt is named."""


@dataclass(frozen=True)
class Training:
    """Training pictures as thumbnails, to recognise copies of them.

    Attributes:
        thumbs: (N, 3, 24, 24) OKLab, float64.
        usual: median distance of a picture to its nearest other one, OKLab; 0 with fewer than two pictures.
    """

    thumbs: Tensor
    usual: float

    @classmethod
    def of(cls, pixels: Sequence[Tensor]) -> Training:
        """From pictures (3, H, W) uint8 of any sizes."""
        thumbs = torch.cat([_thumbs(picture[None]) for picture in pixels])
        apart = _distances(thumbs, thumbs)
        apart.fill_diagonal_(torch.inf)
        nearest = apart.amin(1)
        return cls(thumbs, float(nearest.median()) if len(thumbs) > 1 else 0.0)


@functools.lru_cache(maxsize=4)
def training_pictures(files: tuple[Path, ...]) -> Training:
    """The pictures of a data set, read once."""
    return Training.of([_read(file) for file in files])


def with_set_measures(
    metrics: EpochMetrics, pixels: Tensor, prompts: Sequence[str], training: Training | None
) -> EpochMetrics:
    """Add the measures of the whole set to an epoch's metrics.

    Args:
        metrics: as `summarise` gives them.
        pixels: (B, 3, H, W) uint8, the pictures in the same order.
        prompts: B names: pictures of one prompt differ by their seed.
        training: what the pictures were learnt from; without it nothing is said of copies.
    """
    copies = memorised(pixels, training) if training is not None and training.usual > 0 else None
    return metrics.changed(
        seed_spread=seed_spread(metrics.pictures, prompts),
        diversity=diversity(pixels, prompts),
        memorised_share=None if copies is None else round(float(copies.double().mean()), 4),
        worst_prompts=worst_prompts(metrics.pictures, prompts),
    )


def diversity(pixels: Tensor, prompts: Sequence[str]) -> float | None:
    """How much pictures of different prompts differ in their outlines, 0-100; colours do not count.

    100 less the mean correlation of their edges on 24 x 24 thumbnails, in per cent. DiceBear's portraits have 56 to
    63, one portrait in other colours 19 to 28, one picture over and over 0: below 35 the model draws one face for
    every prompt.

    Returns:
        None where all pictures are of one prompt.
    """
    names = {name: index for index, name in enumerate(dict.fromkeys(prompts))}
    of = torch.tensor([names[name] for name in prompts])
    pairs = of[:, None] != of
    if not pairs.any():
        return None
    thumbs = _thumbs(pixels)
    across, down = thumbs.diff(dim=3)[:, :, :-1], thumbs.diff(dim=2)[..., :-1]
    edges = (across[:, 0].square() + down[:, 0].square()).sqrt().flatten(1)
    centred = edges - edges.mean(1, keepdim=True)
    unit = centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-9)
    alike = (unit @ unit.T).cpu()[pairs].mean()
    return round(min(100.0, max(0.0, 100 * (1 - float(alike)))), 4)


def memorised(pixels: Tensor, training: Training) -> Tensor:
    """Which pictures are copies of a training picture, also mirrored, (B,) bool.

    A copy is nearer to a training picture than 0.3 of what training pictures usually are to each other.
    """
    thumbs = _thumbs(pixels)
    known = training.thumbs.to(thumbs.device)
    nearest = torch.minimum(_distances(thumbs, known), _distances(thumbs.flip(3), known)).amin(1)
    return nearest < _NEAR * training.usual


def near_twins(pixels: Sequence[Tensor]) -> list[bool]:
    """Which pictures (3, H, W) uint8 of any sizes are as near to another one as a copy would be."""
    if len(pixels) < 3:
        return [False] * len(pixels)
    training = Training.of(pixels)
    apart = _distances(training.thumbs, training.thumbs)
    apart.fill_diagonal_(torch.inf)
    return [bool(near) for near in apart.amin(1) < _NEAR * training.usual]


def seed_spread(pictures: Sequence[PictureMetrics], prompts: Sequence[str]) -> float | None:
    """Standard deviation of the overall figure over seeds, mean over prompts; None with one seed each."""
    by_prompt: dict[str, list[float]] = {}
    for name, picture in zip(prompts, pictures, strict=True):
        by_prompt.setdefault(name, []).append(picture.overall)
    spreads = [statistics.stdev(values) for values in by_prompt.values() if len(values) > 1]
    return round(statistics.mean(spreads), 4) if spreads else None


def worst_prompts(pictures: Sequence[PictureMetrics], prompts: Sequence[str]) -> dict[str, str]:
    """The prompt that each attribute is least true to, of those that promise it."""
    worst = {}
    for attribute in ATTRIBUTES:
        scored = [(getattr(p, attribute), name) for p, name in zip(pictures, prompts, strict=True)]
        known = [(value, name) for value, name in scored if value is not None]
        if known:
            worst[attribute] = min(known, key=lambda pair: pair[0])[1]
    return worst


def _read(file: Path) -> Tensor:
    return torch.from_numpy(np.array(reduced(open_picture(file))[0].convert("RGB"))).permute(2, 0, 1)


def _thumbs(pixels: Tensor) -> Tensor:
    """(B, 3, 24, 24) OKLab in [0, 1]."""
    return F.adaptive_avg_pool2d(oklab(pixels).double(), _SIDE) / UNIT


def _distances(first: Tensor, second: Tensor) -> Tensor:
    """Mean OKLab distance between thumbnails, (B, N)."""
    rows = [torch.linalg.vector_norm(picture - second, dim=1).mean((1, 2)) for picture in first]
    return torch.stack(rows)
