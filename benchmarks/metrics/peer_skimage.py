"""Another peer of `tasks.metrics`: what scikit-image and Pillow have ready, one picture after another.

They know no pixel grid, so everything is done on all pixels: colours in CIELAB, edges, background region, CIEDE2000
to the promised colours, dominant colours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from schema.prompts import Expectation

_COLOURS = 16


def measure_one(pixels: npt.NDArray[np.uint8], expectation: Expectation) -> dict[str, Any]:
    """Figures of one picture (H, W, 3); scikit-image must be installed."""
    import skimage.color
    import skimage.feature
    import skimage.filters
    import skimage.measure

    lab = skimage.color.rgb2lab(pixels)
    edges = skimage.filters.sobel(lab[..., 0])
    outline = skimage.feature.canny(lab[..., 0] / 100)
    packed = pixels.astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
    border = np.concatenate([packed[0], packed[-1], packed[:, 0], packed[:, -1]])
    values, counts = np.unique(border, return_counts=True)
    ground = int(values[counts.argmax()])
    ground_lab = skimage.color.rgb2lab(np.array([[[ground >> 16, ground >> 8 & 255, ground & 255]]], np.uint8))[0, 0]
    regions = skimage.measure.label(((lab - ground_lab) ** 2).sum(2) < 36, connectivity=1)
    background = np.isin(regions, np.unique(np.concatenate([regions[0], regions[:, 0], regions[:, -1]]))) & (
        regions > 0
    )
    dominant = _dominant(pixels)
    accuracy = None
    if expectation.background:
        wanted = [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in expectation.background]
        promised = skimage.color.rgb2lab(np.array(wanted, np.uint8)[:, None])  # (C, 1, 3)
        apart = skimage.color.deltaE_ciede2000(lab[background][None], promised).min(0)
        accuracy = float((apart <= 10).mean()) if background.any() else 0.0
    return {
        "sharpness": float(edges[outline].mean()) if outline.any() else 0.0,
        "flat": float((edges < 0.5).mean()),
        "unique_colours": len(np.unique(packed)),
        "background": f"#{ground:06x}",
        "background_share": float(background.mean()),
        "background_accuracy": accuracy,
        "dominant": dominant,
    }


def _dominant(pixels: npt.NDArray[np.uint8]) -> list[str]:
    """The picture's most frequent colours as hex codes, by Pillow's quantiser."""
    reduced = Image.fromarray(pixels).quantize(_COLOURS)
    values = np.reshape(reduced.getpalette() or [], (-1, 3))
    return ["#" + "".join(f"{v:02x}" for v in colour) for colour in values]
