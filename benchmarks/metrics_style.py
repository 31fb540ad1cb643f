"""How well style is measured: grid, purity, photorealism, sharpness, palette, dithering and noise.

    python -m benchmarks.metrics_style [--pictures DIR] [--sheets DIR] [--quick] [--json]

On labelled pictures, most of them built here; DIR adds the files of a folder with a manifest.csv (columns file, source,
class: pixel or nonpixel). JPEG below 85, blur and art only doubled are told apart: they count in no total.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks import planted
from benchmarks.pictures import Picture, deceiving, not_pixel_art, pixel_art, sprites
from benchmarks.sheets import write_sheets
from benchmarks.style_sections import (
    Measured,
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


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="more pictures, with a manifest.csv")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="write the best and worst of each measure here")
    parser.add_argument("--quick", action="store_true", help="every seventh picture")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    started = time.perf_counter()
    labelled, made = build(args.pictures, args.seed)
    if args.quick:
        labelled, made = labelled[::7], made[::7]
    built = time.perf_counter() - started
    found, tried = measured(labelled), measured(made)
    took = time.perf_counter() - started - built
    print(f"{len(found) + len(tried)} pictures, built in {built:.0f} s, measured in {took:.0f} s")
    sections = [
        grid(found), purity(found, tried), photorealism(found), sharpness(tried), palette(tried),
        dithering(found, tried), stray(tried), noise(tried), two_coloured(tried),
    ]  # fmt: skip
    for section in sections:
        print("\n".join(section.lines()))
    if args.sheets:
        everything = [*found, *tried]
        write_sheets(args.sheets, [m.picture for m in everything], columns(everything))
    if args.json:
        print(json.dumps({section.title: section.figures for section in sections}))


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


if __name__ == "__main__":
    main()
