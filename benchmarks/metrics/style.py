"""How well style is measured: grid, purity, photorealism, sharpness, palette, dithering and noise.

On labelled pictures, most of them built here; a folder may add more. JPEG below 85, blur and art only doubled are told
apart: they count in no total.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.metrics import planted
from benchmarks.metrics.pictures import Picture, deceiving, not_pixel_art, pixel_art, sprites
from benchmarks.metrics.sheets import write_sheets
from benchmarks.metrics.style_sections import (
    Measured,
    Section,
    dithering,
    grid,
    noise,
    palette,
    photorealism,
    purity,
    sharpness,
    stray,
    two_coloured,
)
from schema.runs import PictureMetrics
from tasks.metrics.suite import measure

_BATCH = 16


def sections(folder: Path | None, seed: int, quick: bool, sheets: Path | None = None) -> dict[str, Section]:
    """The figures of every measure of style.

    Args:
        folder: more pictures, with a manifest.csv.
        quick: a seventh of the pictures.
        sheets: where to write contact sheets.
    """
    started = time.perf_counter()
    labelled, made = build(folder, seed)
    if quick:
        labelled, made = labelled[::7], made[::7]
    built = time.perf_counter() - started
    found, tried = measured(labelled), measured(made)
    took = time.perf_counter() - started - built
    print(f"\n{len(found) + len(tried)} pictures for style, built in {built:.0f} s, measured in {took:.0f} s")
    if sheets:
        everything = [*found, *tried]
        write_sheets(sheets, [m.picture for m in everything], columns(everything))
    told = [
        grid(found), purity(found, tried), photorealism(found), sharpness(tried), palette(tried),
        dithering(found, tried), stray(tried), noise(tried), two_coloured(tried),
    ]  # fmt: skip
    return {section.title: section for section in told}


def build(folder: Path | None, seed: int) -> tuple[list[Picture], list[Picture]]:
    """Pictures with a label, and pictures with something planted."""
    rng = random.Random(seed)
    some = sprites(folder, 60 if folder else 120, seed)
    labelled = [*pixel_art(some, rng), *not_pixel_art(folder, rng), *deceiving(rng)]
    made = [*planted.palettes(rng), *planted.dithers(rng), *planted.strays(rng)]
    for plant in (planted.softened, planted.noisy, planted.two_coloured):
        made += plant(some, rng)
    return labelled, made


def measured(pictures: Sequence[Picture]) -> list[Measured]:
    """Measure pictures, those of one size together, in their order."""
    sizes: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        sizes[picture.pixels.shape].append(index)
    found: dict[int, PictureMetrics] = {}
    for members in sizes.values():
        for start in range(0, len(members), _BATCH):
            chunk = members[start : start + _BATCH]
            batch = torch.from_numpy(np.stack([pictures[i].pixels for i in chunk])).permute(0, 3, 1, 2).float() / 255
            found |= zip(chunk, measure(batch, [pictures[i].expectation for i in chunk]), strict=True)
    return [Measured(picture, found[i]) for i, picture in enumerate(pictures)]


def columns(some: Sequence[Measured]) -> dict[str, list[float]]:
    """What sheets are sorted by, higher is better."""
    picks: dict[str, Callable[[PictureMetrics], float]] = {
        "grid": lambda m: m.grid_confidence,
        "purity": lambda m: m.pixel_art_purity,
        "photorealism": lambda m: 100 - m.photorealism,
        "sharpness": lambda m: m.edge_sharpness,
        "palette_size": lambda m: -float(m.palette_size),
        "dithering": lambda m: m.dithering_score,
        "stray_pixels": lambda m: -(m.stray_pixels or 0.0),
        "style": lambda m: m.style,
    }
    return {name: [pick(m.metrics) for m in some] for name, pick in picks.items()}
