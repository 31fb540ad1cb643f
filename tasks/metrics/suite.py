"""Measure a batch of pictures and summarise an epoch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from schema.prompts import Expectation
from schema.runs import EpochMetrics, PictureMetrics
from tasks.metrics.accessories import KINDS, Found, find_accessory
from tasks.metrics.accuracy import (
    accessory_accuracy,
    background_accuracy,
    colour_bleeding,
    colour_purity,
    hair_accuracy,
    is_two_toned,
    two_tone_score,
)
from tasks.metrics.bins import Bins
from tasks.metrics.colour import distance, hex_code, oklab
from tasks.metrics.grid import Grid, detect_grid, sample_cells
from tasks.metrics.palette import Palette, palette_score, palette_size
from tasks.metrics.promises import Promises
from tasks.metrics.regions import Figure, Hair, find_figure, find_hair
from tasks.metrics.scan import Scan
from tasks.metrics.scan import as_bytes as as_bytes  # re-exported for callers that pass pictures on as bytes
from tasks.metrics.style import Style, measure_style

COLOUR_WEIGHTS = {
    "background_accuracy": 0.35, "hair_accuracy": 0.35, "crown_accuracy": 0.15, "accessories": 0.15,
    "colour_purity": 0.15,
}  # fmt: skip
"""Weights of the colour score's parts. Parts that a prompt does not promise are left out of the mean."""

STYLE_WEIGHTS = {
    "purity": 0.50, "calm": 0.20, "photorealism": 0.10, "sharpness": 0.10, "palette": 0.05, "dithering": 0.05,
}  # fmt: skip
"""Weights of the style score's parts. `photorealism` enters as 100 minus its value. `calm` is 100 for a picture on a
grid with no more stray pixels than real sprites have."""

_PIXELS_PER_BATCH = 2**22
"""Pixels measured at a time, by a thread or on a device: sixteen pictures of 512 x 512 take about 1.5 GB."""

_PICTURES_PER_THREAD = 4
"""Pictures that justify one more thread: with fewer, starting it costs more than it saves."""

_FIGURE_SHARE = (0.06, 0.94)  # of the picture: outside this range it is flat or noise, and its colours score 0
_TWO_TONE_PENALTY = 0.7  # on `hair_accuracy`, because prompts promise hair of one colour. Chosen by hand
_STRAY_SHARE = (0.10, 0.45)  # `calm` falls from 100 to 0 over this range; real sprites have up to 0.16


@dataclass(frozen=True)
class View:
    """Hold the grid, cells and regions of B pictures of one size."""

    scan: Scan
    grid: Grid
    cells: Tensor  # (B, 3, N, N) int32 OKLab
    cells_rgb: Tensor  # (B, 3, N, N) uint8
    valid: Tensor  # (B, N, N)
    coarse: Bins  # of the cells
    fine: Bins
    parts: Figure
    hair: Hair
    worn: dict[str, Found]  # those that any prompt promises
    covered: Tensor  # (B, N, N) cells of all of them
    promises: dict[str, Promises]


def measure(images: Tensor, expectations: Sequence[Expectation]) -> list[PictureMetrics]:
    """Measure pictures against what their prompts promise.

    `overall` is the geometric mean of colour and style, so that neither makes up for the other: a smooth picture in
    the right colours and a clean one in wrong colours both score low. A picture without a figure (flat, or noise)
    scores 0 for its colours. A promised region that is not found has no score of its own, but counts as 0 in
    `colour`. Otherwise drawing no hair at all would raise the score.

    Args:
        images: (B, 3, H, W) in [0, 1] on any device, or uint8.
        expectations: B promises, one a picture.

    Returns:
        One record a picture, rounded to four decimals. It does not depend on batch, order or number of threads.
        Decisions are made on whole numbers, so CPU and GPU agree within the rounding.
    """
    # Threads share out pictures only on a CPU: one thread is enough to submit work to a GPU.
    workers = 1 if images.is_cuda else max(1, min(torch.get_num_threads(), len(images) // _PICTURES_PER_THREAD))
    fitting = _PIXELS_PER_BATCH // max(1, images.shape[-2] * images.shape[-1])
    size = max(1, min(fitting, -(-len(images) // workers)))
    pieces = [(images[i : i + size], expectations[i : i + size]) for i in range(0, len(images), size)]
    if images.is_cuda:
        return [m for piece in pieces for m in _measure(*piece)]
    with _single_threads(workers) as pool:
        return [m for found in pool.map(_measure, *zip(*pieces, strict=True)) for m in found] if pieces else []


@contextlib.contextmanager
def _single_threads(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose threads each measure whole pictures, with one core of torch each.

    The tensors of native cells are small. torch threads that split one of them spend most of their time waiting for
    each other, on a busy machine nearly all of it.
    """
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)  # the initializer changed the default for later threads of this process


def view(images: Tensor, expectations: Sequence[Expectation]) -> View:
    """Find the grid, cells and regions of pictures (B, 3, H, W), uint8 or in [0, 1]."""
    scan = Scan.of(images)
    grid = detect_grid(scan)
    cells_rgb, valid = sample_cells(images, grid)
    cells = oklab(cells_rgb)
    promises = Promises.of(expectations, images.device)
    coarse, fine = (Bins.of(cells, bits) for bits in (8, 7))
    parts = find_figure(cells, valid, coarse, fine)
    looked_for = [kind for kind in KINDS if promises[kind].any.any()]
    worn = {kind: find_accessory(kind, cells, parts, promises[kind], promises["hair"]) for kind in looked_for}
    covered = torch.stack([torch.zeros_like(valid), *(found.cells for found in worn.values())]).any(0)
    hair = find_hair(parts, covered)
    return View(scan, grid, cells, cells_rgb, valid, coarse, fine, parts, hair, worn, covered, promises)


def summarise(pictures: Sequence[PictureMetrics]) -> EpochMetrics:
    """Return the mean over an epoch's pictures, the worst score, and shares of pictures with a property."""
    if not pictures:
        return EpochMetrics()
    two_toned = [p.hair_two_tone for p in pictures if p.hair_two_tone is not None]
    crowns = [p.crown_present for p in pictures if p.crown_present is not None]
    return EpochMetrics(
        mean=_mean(pictures),
        worst=min(p.overall for p in pictures),
        two_tone_share=sum(two_toned) / len(two_toned) if two_toned else None,
        crown_share=sum(crowns) / len(crowns) if crowns else None,
        photorealistic_share=sum(p.is_photorealistic for p in pictures) / len(pictures),
        pictures=tuple(pictures),
    )


@torch.no_grad()
def _measure(images: Tensor, expectations: Sequence[Expectation]) -> list[PictureMetrics]:
    seen = view(images, expectations)
    style = measure_style(seen.scan, seen.grid, seen.cells, seen.valid)
    size = palette_size(Palette.of(seen.fine, seen.valid))
    colours, looks = _colour_columns(seen), _style_columns(style, size, seen.grid.found)
    facts, worn, missing = _facts(seen, style, size), _accessory_columns(seen), _missing(seen)
    return [
        _record(
            {name: column[i] for name, column in colours.items()},
            {name: column[i] for name, column in looks.items()},
            {name: column[i] for name, column in facts.items()},
            {kind: column[i] for kind, column in worn.items() if kind != "crown"},
            worn["crown"][i] if "crown" in worn else None,
            missing[i],
        )
        for i in range(len(images))
    ]


def _record(
    colours: dict[str, float | None],
    styles: dict[str, float],
    facts: dict[str, Any],
    accessories: dict[str, float | None],
    crown: float | None,
    missing: list[str],
) -> PictureMetrics:
    if facts["hair_two_tone"] and colours["hair_accuracy"] is not None:
        colours["hair_accuracy"] *= _TWO_TONE_PENALTY
    worn = [value for value in accessories.values() if value is not None]
    colours["crown_accuracy"] = crown
    parts = {**colours, **dict.fromkeys(missing, 0.0), "accessories": sum(worn) / len(worn) if worn else None}
    colour, looks = _weighted(parts, COLOUR_WEIGHTS), _weighted(styles, STYLE_WEIGHTS) or 0.0
    values = {
        **colours,
        **facts,
        "edge_sharpness": styles["sharpness"],
        "pixel_art_purity": styles["purity"],
        "palette_score": styles["palette"],
        "dithering_score": styles["dithering"],
        "photorealism": 100 - styles["photorealism"],
        "colour": colour,
        "style": looks,
        "overall": looks if colour is None else (colour * looks) ** 0.5,
    }
    rounded = {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}
    return PictureMetrics(**rounded, accessories={k: round(v, 4) for k, v in accessories.items() if v is not None})


def _colour_columns(seen: View) -> dict[str, list[float | None]]:
    """Return the colour parts of each picture; None where the prompt promises nothing or nothing is found."""
    figure = _has_figure(seen)
    background, hair = seen.promises["background"], seen.promises["hair"]
    anything = torch.stack([p.any for p in seen.promises.values()]).any(0)
    ground_rgb, hair_rgb = (_rgb_of(colour, seen) / 255 for colour in (seen.parts.background_colour, seen.hair.colour))
    found = {
        "background_accuracy": seen.parts.has_background,
        "hair_accuracy": seen.hair.found,
        "colour_purity": anything,
    }
    values = {
        "background_accuracy": (
            background_accuracy(seen.parts, ground_rgb, seen.cells, background),
            background.any,
        ),
        "hair_accuracy": (hair_accuracy(hair_rgb, hair), hair.any),
        "colour_purity": (colour_purity(seen.cells, seen.parts, seen.hair), anything),
    }
    return {name: _where(given & found[name], figure * value) for name, (value, given) in values.items()}


def _missing(seen: View) -> list[list[str]]:
    """Return, for each picture, the scores of promised regions that were not found."""
    lacking = {
        f"{name}_accuracy": (seen.promises[name].any & ~there).tolist()
        for name, there in (("background", seen.parts.has_background), ("hair", seen.hair.found))
    }
    return [[name for name, column in lacking.items() if column[i]] for i in range(len(seen.valid))]


def _accessory_columns(seen: View) -> dict[str, list[float | None]]:
    columns = {}
    for kind, found in seen.worn.items():
        colour = _rgb_of(seen.coarse.dominant(found.cells), seen) / 255
        value = accessory_accuracy(found, colour, seen.promises[kind]) * _has_figure(seen)
        columns[kind] = _where(seen.promises[kind].any & found.clear, value)
    return columns


def _has_figure(seen: View) -> Tensor:
    """Return which pictures are neither flat nor noise, (B,) bool."""
    low, high = _FIGURE_SHARE
    return (seen.parts.share > low) & (seen.parts.share < high)


def _facts(seen: View, style: Style, size: Tensor) -> dict[str, list[Any]]:
    """Return what is reported of each picture beside its scores."""
    grid, hair = seen.grid, seen.hair
    tones = two_tone_score(seen.cells, hair)
    crown = seen.worn.get("crown")
    promised = {name: seen.promises[name] for name in ("background", "hair", "skin")}
    return {
        "hair_two_tone": _where(hair.found, is_two_toned(tones)),
        "hair_two_tone_score": _where(hair.found, tones),
        "crown_present": _where(seen.promises["crown"].any & crown.clear, crown.present)
        if crown
        else [None] * len(size),
        "colour_bleeding": _where(
            torch.stack([p.any for p in promised.values()]).sum(0) >= 2,
            colour_bleeding(seen.cells, seen.parts, hair, promised),
        ),
        "palette_size": size.tolist(),
        "stray_pixels": style.stray.tolist(),
        "smooth_gradients": style.gradient.tolist(),
        "antialiasing": style.antialiased.tolist(),
        "grid_agreement": _where(grid.found, style.agreement),
        "grid_scale": _where(grid.found, grid.scale),
        "grid_left": _where(grid.found, grid.left),
        "grid_top": _where(grid.found, grid.top),
        "grid_confidence": grid.confidence.tolist(),
        "background_colour": [hex_code(c) for c in _rgb_of(seen.parts.background_colour, seen)],
        "hair_colour": [
            hex_code(c) if found else None
            for c, found in zip(_rgb_of(hair.colour, seen), hair.found.tolist(), strict=True)
        ],
    }


def _style_columns(style: Style, size: Tensor, gridded: Tensor) -> dict[str, list[float]]:
    few, many = _STRAY_SHARE
    return {
        "purity": style.purity.tolist(),
        "photorealism": (100 - style.photorealism).tolist(),
        "sharpness": style.sharpness.tolist(),
        "palette": palette_score(size).tolist(),
        "dithering": style.dithering.tolist(),
        "calm": (100 * gridded * (1 - (style.stray - few) / (many - few)).clamp(0, 1)).tolist(),
    }


def _where(given: Tensor, values: Tensor) -> list[Any]:
    """Return values as a list, with None where `given` is False."""
    return [value if there else None for there, value in zip(given.tolist(), values.tolist(), strict=True)]


def _rgb_of(colour: Tensor, seen: View) -> Tensor:
    """Return the bytes (B, 3) of the cell nearest to an OKLab colour, so that the colour occurs in the picture."""
    apart = torch.where(seen.valid, distance(seen.cells, colour[..., None, None]), torch.inf).flatten(1)
    place = torch.arange(apart.shape[1], device=apart.device)
    nearest = torch.where(apart == apart.amin(1, keepdim=True), place, len(place)).amin(1)
    return seen.cells_rgb.flatten(2).gather(2, nearest[:, None, None].expand(-1, 3, -1))[:, :, 0]


def _weighted(parts: dict[str, float | None] | dict[str, float], weights: dict[str, float]) -> float | None:
    """Return the weighted mean of the parts that are not None; None if all are."""
    there = {name: value for name, value in parts.items() if value is not None}
    if not there:
        return None
    return sum(weights[n] * v for n, v in there.items()) / sum(weights[n] for n in there)


def _mean(pictures: Sequence[PictureMetrics]) -> PictureMetrics:
    """Return the means of all numbers; a flag is set if it is set for more than half."""
    values: dict[str, object] = {}
    for name in PictureMetrics.model_fields:
        if name == "accessories":
            continue
        column = [v for v in (getattr(p, name) for p in pictures) if v is not None and not isinstance(v, str)]
        if not column:
            values[name] = None
        elif isinstance(column[0], bool):
            values[name] = sum(column) * 2 > len(column)
        else:
            mean = sum(column) / len(column)
            values[name] = round(mean) if name == "palette_size" else mean
    kinds = dict.fromkeys(kind for p in pictures for kind in p.accessories)
    worn = {kind: [p.accessories[kind] for p in pictures if kind in p.accessories] for kind in kinds}
    return PictureMetrics.model_validate({**values, "accessories": {k: sum(v) / len(v) for k, v in worn.items()}})
