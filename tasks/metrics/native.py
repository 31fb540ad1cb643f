"""Read picture files for measuring: transparency becomes white, sprites at their native size are enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schema.errors import BadDataError
from schema.runs import PictureMetrics
from tasks.pictures import LEAST_SIDE, open_picture, reduced

_MAX_NATIVE_SIDE = 128  # pixels; larger pictures are never taken for sprites at native size
_ENLARGED_SIDE = 256  # pixels; the grid detector needs art pixels of at least 2 pixels, and more lines are safer
_PIXELS_PER_COLOUR = 4
"""A small picture with at least this many pixels per colour is a sprite. A photograph has nearly one colour a pixel."""
_LEAST_TIMES = 3
"""The grid detector finds no cells of fewer than 3 pixels."""


def read_picture(file: Path) -> tuple[Tensor, float]:
    """Return pixels (3, H, W) uint8, and the factor by which they are larger than the file's pixels.

    Transparent pixels become white. A small picture in few colours whose pixels do not repeat in blocks is pixel art
    at its native size. It is enlarged, because the measures expect art pixels larger than one pixel. A picture of
    more than 1024 pixels a side is reduced to bound memory; the factor is then below 1.

    Raises:
        BadDataError: the file is not a picture, or has too few pixels.
    """
    image, step = reduced(open_picture(file))
    if min(image.size) < LEAST_SIDE:
        raise BadDataError(f"{file} has too few pixels to be measured, {image.width} x {image.height}: remove it")
    layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    pixels = np.array(Image.alpha_composite(white, layers).convert("RGB"))
    times = max(_LEAST_TIMES, _ENLARGED_SIDE // max(pixels.shape[:2])) if _is_native(pixels) else 1
    enlarged = pixels.repeat(times, 0).repeat(times, 1)
    return torch.from_numpy(enlarged).permute(2, 0, 1), times / step


def on_file(metrics: PictureMetrics, times: float) -> PictureMetrics:
    """Return the metrics with the grid converted back to pixels of the file; `times` is `read_picture`'s factor."""
    if times == 1 or metrics.grid_scale is None:
        return metrics
    places = {name: getattr(metrics, name) / times for name in ("grid_scale", "grid_left", "grid_top")}
    return metrics.changed(**places)


def _is_native(pixels: np.ndarray) -> bool:
    """Return whether (H, W, 3) is a sprite at native size: small, in few colours, and not already enlarged."""
    height, width = pixels.shape[:2]
    if max(height, width) > _MAX_NATIVE_SIDE:
        return False
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    return colours * _PIXELS_PER_COLOUR <= height * width and _block(pixels) == 1


def _block(pixels: np.ndarray) -> int:
    """Return the largest block size, in pixels, whose multiples contain all edges."""
    places = [np.flatnonzero((np.diff(pixels.astype(int), axis=axis) != 0).any((1 - axis, 2))) + 1 for axis in (0, 1)]
    return int(np.gcd.reduce(np.concatenate([*places, pixels.shape[:2]])))
