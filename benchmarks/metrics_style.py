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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks import planted
from benchmarks.pictures import Picture, deceiving, not_pixel_art, pixel_art, sprites
from benchmarks.scores import auc, mean
from benchmarks.sheets import write_sheets
from schema.runs import PictureMetrics
from tasks.metrics.suite import measure

PURE = 60.0
"""Purity from which a picture passes as pixel art."""

SCALE_TOLERANCE = 0.02
_BATCH = 16
_WORST = 6


@dataclass(frozen=True)
class Measured:
    """A picture with what was measured on it."""

    picture: Picture
    metrics: PictureMetrics

    @property
    def group(self) -> str:
        """Its kind; coarsely stored pixel art is a kind of its own."""
        group, quality = self.picture.group, self.picture.quality
        if group not in ("whole", "fractional", "phase"):
            return group
        if quality is None:
            return f"{group} png"
        return "jpeg 60-75" if quality < 85 else f"{group} jpeg 85-95"

    @property
    def counts(self) -> bool:
        """False for pixel art whose grid hardly survives: x2, blur, JPEG below 85."""
        return self.group not in ("jpeg 60-75", "blur", "x2")


@dataclass(frozen=True)
class Section:
    """Figures of one measure, and the pictures that it does worst on."""

    title: str
    figures: dict[str, float]
    worst: Sequence[str] = ()

    def lines(self) -> Iterable[str]:
        """As printed."""
        yield f"\n{self.title}"
        for name, value in self.figures.items():
            yield f"  {name:44s}{value:9.4f}"
        yield from (f"    worst: {line}" for line in self.worst)


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
    sections = [grid(found), purity(found, tried), photorealism(found), sharpness(tried)]
    sections += [palette(tried), dithering(tried), stray(tried), noise(tried)]
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


def grid(some: Sequence[Measured]) -> Section:
    """Share of pixel art whose scale is found; where cells are two pixels wide, 'no grid' is right."""
    art = [m for m in some if m.picture.pixel_art]
    figures = {"scale right": mean([_scale_right(m) for m in art if m.counts])}
    figures |= {f"  {name}": mean([_scale_right(m) for m in kind]) for name, kind in _by_group(art).items()}
    wrong = [m for m in art if m.counts and not _scale_right(m)]
    told = [f"{m.picture.name}: found {m.metrics.grid_scale}" for m in wrong[:_WORST]]
    return Section("grid", figures, told)


def purity(some: Sequence[Measured], tried: Sequence[Measured]) -> Section:
    """Pixel art against what is none."""
    art = [m for m in some if m.picture.pixel_art and m.counts]
    other = [m for m in some if not m.picture.pixel_art]
    plain = [m for m in other if m.group not in ("coarse JPEG", "8-px layout", "doubled photo")]
    high, low = [_purity(m) for m in art], [_purity(m) for m in other]
    passed, refused = [v >= PURE for v in high], [v < PURE for v in low]
    figures = {
        "AUC": auc(high, low),
        "AUC without deceiving ones": auc(high, [_purity(m) for m in plain]),
        "accuracy at 60": mean([*passed, *refused]),
        "pixel art that passes": mean(passed),
        "other that passes": 1 - mean(refused),
    }
    softer = [m for m in tried if m.group in ("crisp", "bilinear", "bicubic", "blur 2", "two-coloured")]
    for name, kind in _by_group([*some, *softer]).items():
        figures[f"  passes: {name}"] = mean([_purity(m) >= PURE for m in kind])
    worst = [*_told(sorted(art, key=_purity), _purity), *_told(sorted(other, key=_purity, reverse=True), _purity)]
    return Section("purity", figures, worst)


def photorealism(some: Sequence[Measured]) -> Section:
    """The flag: raised on pixel art by mistake, and on photographs rightly."""
    art = [m for m in some if m.picture.pixel_art and m.counts]
    photographs = [m for m in some if m.group in ("photo", "skt", "coarse JPEG")]
    figures = {
        "flag on pixel art (wrong)": mean([m.metrics.is_photorealistic for m in art]),
        "flag on photographs (right)": mean([m.metrics.is_photorealistic for m in photographs]),
        "AUC photographs against pixel art": auc([_photo(m) for m in photographs], [_photo(m) for m in art]),
    }
    for name, kind in _by_group(some).items():
        figures[f"  flag: {name}"] = mean([m.metrics.is_photorealistic for m in kind])
    worst = [*_told(sorted(art, key=_photo, reverse=True), _photo), *_told(sorted(photographs, key=_photo), _photo)]
    return Section("photorealism", figures, worst)


def sharpness(tried: Sequence[Measured]) -> Section:
    """Sharply enlarged sprites against the same ones enlarged or blurred smoothly."""
    kinds = _by_group([m for m in tried if m.group in ("crisp", "bilinear", "bicubic", "blur 2")])
    crisp = [_sharp(m) for m in kinds.pop("crisp", [])]
    soft = [m for kind in kinds.values() for m in kind]
    figures = {"AUC": auc(crisp, [_sharp(m) for m in soft]), "mean, crisp": mean(crisp)}
    figures |= {f"mean, {name}": mean([_sharp(m) for m in kind]) for name, kind in kinds.items()}
    return Section("sharpness", figures, _told(sorted(soft, key=_sharp, reverse=True), _sharp))


def palette(tried: Sequence[Measured]) -> Section:
    """Counted against planted colours."""
    some = [m for m in tried if m.group == "palette"]
    figures = {"mean absolute error": mean([_miscounted(m) for m in some])}
    for name, wanted in (("PNG", None), ("JPEG 90", 90)):
        figures[f"  {name}"] = mean([_miscounted(m) for m in some if m.picture.quality == wanted])
    figures["counted exactly"] = mean([_miscounted(m) == 0 for m in some])
    return Section("palette", figures, _told(sorted(some, key=_miscounted, reverse=True), _miscounted))


def dithering(tried: Sequence[Measured]) -> Section:
    """Ordered dither against error diffusion and noise."""
    kinds = {name: kind for name, kind in _by_group(tried).items() if name in planted.DITHERS}
    ordered = [m for kind in kinds.values() for m in kind if m.picture.truth == 1]
    other = [m for kind in kinds.values() for m in kind if m.picture.truth == 0]
    figures = {"AUC": auc([_dither(m) for m in ordered], [_dither(m) for m in other])}
    for name in planted.DISORDER:
        figures[f"  AUC against {name}"] = auc([_dither(m) for m in ordered], [_dither(m) for m in kinds.get(name, [])])
    figures |= {f"mean, {name}": mean([_dither(m) for m in kind]) for name, kind in kinds.items()}
    worst = [*_told(sorted(ordered, key=_dither), _dither), *_told(sorted(other, key=_dither, reverse=True), _dither)]
    return Section("dithering", figures, worst)


def stray(tried: Sequence[Measured]) -> Section:
    """Share of lone cells against the planted share."""
    some = [m for m in tried if m.group == "stray"]
    figures = {"mean absolute error": mean([_misstrayed(m) for m in some])}
    for name, wanted in (("PNG", None), ("JPEG 90", 90)):
        figures[f"  {name}"] = mean([_misstrayed(m) for m in some if m.picture.quality == wanted])
    return Section("stray pixels", figures, _told(sorted(some, key=_misstrayed, reverse=True), _misstrayed))


def noise(tried: Sequence[Measured]) -> Section:
    """How surely a noisy picture scores below the clean one: by purity on pixels, by stray pixels on cells."""
    figures = {}
    pairs: tuple[tuple[str, str, Callable[[Measured], float]], ...] = (
        ("pixel noise", "purity", lambda m: -_purity(m)),
        ("pixel noise", "style", lambda m: -m.metrics.style),
        ("pixel noise", "photorealism", _photo),
        ("cell noise", "stray pixels", lambda m: m.metrics.stray_pixels or 0.0),
        ("cell noise", "dithering", lambda m: -_dither(m)),
        ("cell noise", "style", lambda m: -m.metrics.style),
    )
    for group, measure_name, pick in pairs:
        levels: dict[float | None, list[float]] = defaultdict(list)
        for m in tried:
            if m.group == group:
                levels[m.picture.truth].append(pick(m))
        for sigma in planted.NOISES:
            figures[f"AUC {group} {sigma:2d}, {measure_name}"] = auc(levels[sigma], levels[0])
    return Section("noise", figures)


def _scale_right(m: Measured) -> bool:
    wanted, got = m.picture.scale, m.metrics.grid_scale
    if wanted is None or wanted < 3:
        return got is None
    return got is not None and abs(got / wanted - 1) <= SCALE_TOLERANCE


def _by_group(some: Iterable[Measured]) -> dict[str, list[Measured]]:
    kinds: dict[str, list[Measured]] = defaultdict(list)
    for m in some:
        kinds[m.group].append(m)
    return dict(kinds)


def _told(some: Sequence[Measured], pick: Callable[[Measured], float]) -> list[str]:
    return [f"{pick(m):8.3f}  {m.picture.name}" for m in some[:_WORST]]


def _purity(m: Measured) -> float:
    return m.metrics.pixel_art_purity


def _photo(m: Measured) -> float:
    return m.metrics.photorealism


def _sharp(m: Measured) -> float:
    return m.metrics.edge_sharpness


def _dither(m: Measured) -> float:
    return m.metrics.dithering_score


def _miscounted(m: Measured) -> float:
    return abs(m.metrics.palette_size - (m.picture.truth or 0))


def _misstrayed(m: Measured) -> float:
    return abs((m.metrics.stray_pixels or 0.0) - (m.picture.truth or 0))


if __name__ == "__main__":
    main()
