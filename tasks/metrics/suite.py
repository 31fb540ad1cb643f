"""All measurements of a batch of pictures, and their summary over an epoch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from schema.prompts import Expectation
from schema.runs import EpochMetrics, PictureMetrics
from tasks.metrics.accuracy import (
    Promises,
    background_accuracy,
    colour_purity,
    crown_accuracy,
    find_crown,
    hair_accuracy,
    two_tone,
)
from tasks.metrics.colour import hex_code, oklab
from tasks.metrics.grid import Edges, detect_grid, sample_cells
from tasks.metrics.palette import palette_score, palette_size
from tasks.metrics.regions import find_regions
from tasks.metrics.style import Style, measure_style

COLOUR_WEIGHTS = {"background_accuracy": 0.35, "hair_accuracy": 0.35, "crown_accuracy": 0.15, "colour_purity": 0.15}
"""Parts of the colour score; those that a prompt does not promise drop out."""

STYLE_WEIGHTS = {
    "purity": 0.50, "calm": 0.20, "photorealism": 0.10, "sharpness": 0.10, "palette": 0.05, "dithering": 0.05,
}  # fmt: skip
"""Parts of the style score; of photorealism the rest to 100 counts; calm is 100 on
a grid with no more stray pixels than real sprites have."""

_CHUNK = 64
_FIGURE = (0.06, 0.94)
_TWO_TONE_PENALTY = 0.7
_STRAY = (0.10, 0.45)


@torch.no_grad()
def measure(images: Tensor, expectations: Sequence[Expectation]) -> list[PictureMetrics]:
    """Measure pictures against what their prompts promise.

    The overall figure is the geometric mean of colour and style, so that neither makes up for the other: a
    smooth picture in the right colours and a clean one in wrong colours both stay low. A picture without a
    figure, flat or noise, gets 0 for its colours.

    Args:
        images: (B, 3, H, W) in [0, 1] on any device.
        expectations: B promises, one a picture.

    Returns:
        One record a picture. Batches change nothing; CPU and GPU agree within 0.1.
    """
    chunks = range(0, len(images), _CHUNK)
    return [m for i in chunks for m in _measure(images[i : i + _CHUNK].float(), expectations[i : i + _CHUNK])]


def summarise(pictures: Sequence[PictureMetrics]) -> EpochMetrics:
    """Mean over pictures, and what the mean hides."""
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


def _measure(images: Tensor, expectations: Sequence[Expectation]) -> list[PictureMetrics]:
    height, width = images.shape[2:]
    lab = oklab(images)
    edges = Edges.of(lab)
    grid = detect_grid(edges, height, width)
    cells, valid = sample_cells(lab, grid)
    cells_rgb, _ = sample_cells(images, grid)
    background, hair, crown = (Promises.of(expectations, a, images.device) for a in ("background", "hair", "crown"))
    crown_cells, crown_present = find_crown(cells, valid, crown, hair)
    regions = find_regions(cells, valid, crown_cells)
    style = measure_style(lab, edges, grid, cells, valid)
    size = palette_size(cells, valid)
    ground_rgb, hair_rgb = (_rgb_of(c, cells, cells_rgb) for c in (regions.background_colour, regions.hair_colour))
    low, high = _FIGURE
    figure = (regions.figure_share > low) & (regions.figure_share < high)  # neither flat nor noise
    columns = {
        "background_accuracy": (
            figure * background_accuracy(regions, ground_rgb, cells_rgb, background),
            background.any,
        ),
        "hair_accuracy": (figure * hair_accuracy(regions, hair_rgb, hair), hair.any),
        "crown_accuracy": (figure * crown_accuracy(cells_rgb, crown_cells, crown_present, crown), crown.any),
        "colour_purity": (figure * colour_purity(cells, regions), background.any | hair.any | crown.any),
    }
    parts = {name: value.tolist() for name, (value, _) in columns.items()}
    promised = {name: given.tolist() for name, (_, given) in columns.items()}
    per_style = _style_columns(style, size, grid.found)
    toned, present = two_tone(cells, regions).tolist(), crown_present.tolist()
    records = []
    for i in range(len(images)):
        colours = {name: parts[name][i] if promised[name][i] else None for name in parts}
        if toned[i] and colours["hair_accuracy"] is not None:
            colours["hair_accuracy"] *= _TWO_TONE_PENALTY
        styles = {name: column[i] for name, column in per_style.items()}
        colour, looks = _weighted(colours, COLOUR_WEIGHTS), _weighted(styles, STYLE_WEIGHTS) or 0.0
        records.append(
            PictureMetrics(
                **colours,
                hair_two_tone=toned[i] if promised["hair_accuracy"][i] else None,
                crown_present=present[i] if promised["crown_accuracy"][i] else None,
                edge_sharpness=styles["sharpness"],
                pixel_art_purity=styles["purity"],
                palette_size=int(size[i]),
                palette_score=styles["palette"],
                dithering_score=styles["dithering"],
                stray_pixels=float(style.stray[i]),
                photorealism=100 - styles["photorealism"],
                grid_scale=float(grid.scale[i]) if grid.found[i] else None,
                grid_confidence=float(grid.confidence[i]),
                colour=colour,
                style=looks,
                overall=looks if colour is None else (colour * looks) ** 0.5,
                background_colour=hex_code(ground_rgb[i]),
                hair_colour=hex_code(hair_rgb[i]),
            )
        )
    return records


def _style_columns(style: Style, size: Tensor, gridded: Tensor) -> dict[str, list[float]]:
    few, many = _STRAY
    return {
        "purity": style.purity.tolist(),
        "photorealism": (100 - style.photorealism).tolist(),
        "sharpness": style.sharpness.tolist(),
        "palette": palette_score(size).tolist(),
        "dithering": style.dithering.tolist(),
        "calm": (100 * gridded * (1 - (style.stray - few) / (many - few)).clamp(0, 1)).tolist(),
    }


def _rgb_of(colour: Tensor, cells: Tensor, cells_rgb: Tensor) -> Tensor:
    """The sRGB colour (B, 3) of the cell nearest to an OKLab colour: a colour that is really in the picture."""
    nearest = (cells - colour[:, :, None, None]).norm(dim=1).flatten(1).argmin(1)
    return cells_rgb.flatten(2).gather(2, nearest[:, None, None].expand(-1, 3, -1))[:, :, 0]


def _weighted(parts: dict[str, float | None] | dict[str, float], weights: dict[str, float]) -> float | None:
    """Weighted mean of the parts that are there; None where none is."""
    there = {name: value for name, value in parts.items() if value is not None}
    if not there:
        return None
    return sum(weights[n] * v for n, v in there.items()) / sum(weights[n] for n in there)


def _mean(pictures: Sequence[PictureMetrics]) -> PictureMetrics:
    """Means of all numbers; a flag is set where it is for most."""
    values: dict[str, object] = {}
    for name in PictureMetrics.model_fields:
        column = [v for v in (getattr(p, name) for p in pictures) if v is not None and not isinstance(v, str)]
        if not column:
            values[name] = None
        elif isinstance(column[0], bool):
            values[name] = sum(column) * 2 > len(column)
        else:
            mean = sum(column) / len(column)
            values[name] = round(mean) if name == "palette_size" else mean
    return PictureMetrics.model_validate(values)
