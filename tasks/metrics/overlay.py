"""Draw the regions that the measures found, for a person to check."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from schema.prompts import Expectation
from tasks.metrics.suite import View, view

PAINT = {
    "background": (70, 110, 255), "skin": (255, 190, 140), "clothes": (150, 150, 150), "hair": (230, 40, 200),
    "second hair": (255, 255, 0), "worn": (255, 60, 0),
}  # fmt: skip
"""Colours of the regions."""

_PANEL_SIDE = 384  # pixels of each half; two fit side by side on a screen


@torch.no_grad()
def save_overlays(images: Tensor, expectations: Sequence[Expectation], files: Sequence[Path]) -> None:
    """Write one file a picture: its native cells beside the regions found in them.

    Args:
        images: (B, 3, H, W) in [0, 1] or uint8.
        expectations: B promises, needed to find accessories.
        files: B files to write, in existing folders.
    """
    seen = view(images, expectations)
    for index, file in enumerate(files):
        _overlay(seen, index).save(file)


def _overlay(seen: View, index: int) -> Image.Image:
    valid = seen.valid[index]
    rows, columns = int(valid.any(1).sum()), int(valid.any(0).sum())
    native = seen.cells_rgb[index, :, :rows, :columns].permute(1, 2, 0).cpu()
    painted = (native.float() * 0.25).round().byte()
    masks = {
        "background": seen.parts.background, "skin": seen.parts.skin, "clothes": seen.parts.clothes,
        "hair": seen.hair.mask, "second hair": seen.hair.second,
        "worn": seen.covered,
    }  # fmt: skip
    for name, mask in masks.items():
        where = mask[index, :rows, :columns].cpu()
        painted[where] = (native[where].float() * 0.3 + torch.tensor(PAINT[name]) * 0.7).round().byte()
    face = seen.parts.face[index, :rows, :columns].cpu()
    painted[face] = (painted[face].float() * 0.8 + 51).round().byte()
    sheet = Image.new("RGB", (2 * _PANEL_SIDE + 4, _PANEL_SIDE), "white")
    for place, picture in enumerate((native, painted)):
        enlarged = Image.fromarray(picture.numpy()).resize((_PANEL_SIDE, _PANEL_SIDE), Image.Resampling.NEAREST)
        sheet.paste(enlarged, (place * (_PANEL_SIDE + 4), 0))
    return sheet
