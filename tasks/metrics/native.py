"""Picture files as they are measured: without transparency, and sprites at their native size enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from schema.errors import BadDataError
from schema.runs import PictureMetrics
from tasks.pictures import LEAST_SIDE, open_picture, reduced

_SMALL = 128
_TARGET = 256
_FEW = 4
"""Pixels for each colour from which a small picture is a sprite: a photograph has nearly as many colours as pixels."""


def read_picture(file: Path) -> tuple[Tensor, float]:
    """Return pixels (3, H, W) uint8, and how many times larger they are than the file's.

    What is transparent counts as white. A small picture in few colours, none of whose pixels repeat in blocks, is
    pixel art at its native size: the measures look for art pixels that are larger than pixels, so it is enlarged.
    One of more than 1024 pixels a side is reduced, so that memory stays bounded.

    Raises:
        BadDataError: the file is not a picture, or has too few pixels to be measured.
    """
    image, step = reduced(open_picture(file))
    if min(image.size) < LEAST_SIDE:
        raise BadDataError(f"{file} has too few pixels to be measured, {image.width} x {image.height}: remove it")
    layers = image.convert("RGBA")
    white = Image.new("RGBA", layers.size, "white")
    pixels = np.array(Image.alpha_composite(white, layers).convert("RGB"))
    times = max(2, _TARGET // max(pixels.shape[:2])) if _is_native(pixels) else 1
    enlarged = pixels.repeat(times, 0).repeat(times, 1)
    return torch.from_numpy(enlarged).permute(2, 0, 1), times / step


def on_file(metrics: PictureMetrics, times: float) -> PictureMetrics:
    """Return the metrics of an enlarged or reduced picture with its grid in pixels of the file."""
    if times == 1 or metrics.grid_scale is None:
        return metrics
    places = {name: getattr(metrics, name) / times for name in ("grid_scale", "grid_left", "grid_top")}
    return metrics.changed(**places)


def _is_native(pixels: np.ndarray) -> bool:
    """Whether (H, W, 3) are art pixels themselves: small, in few colours, and not in blocks of one."""
    height, width = pixels.shape[:2]
    if max(height, width) > _SMALL:
        return False
    colours = len(np.unique(pixels.reshape(-1, 3), axis=0))
    return colours * _FEW <= height * width and _block(pixels) == 1


def _block(pixels: np.ndarray) -> int:
    """The greatest size of blocks that all pixels come in: all edges lie on its multiples."""
    places = [np.flatnonzero((np.diff(pixels.astype(int), axis=axis) != 0).any((1 - axis, 2))) + 1 for axis in (0, 1)]
    return int(np.gcd.reduce(np.concatenate([*places, pixels.shape[:2]])))
