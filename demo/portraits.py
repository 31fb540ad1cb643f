"""The data set of the demo: pixel-art portraits on a grid of 16 x 16 cells.

The characters are DiceBear's *Pixel Art* style by DiceBear (CC0 1.0): every colour is an input, so
captions are exact. The style has no crown; one is painted on.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dicebear_styles
import numpy as np
import numpy.typing as npt
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from demo.attributes import Attributes, Colour

CELLS = 16  # art pixels a side of DiceBear's Pixel Art style
TRIGGER = "pixel art, portrait of a character"
HAIR_STYLES = (  # those with enough hair to have a colour
    "long01", "long03", "long04", "long07", "long09", "long12", "long20", "long21", "short06", "short13", "short17",
)  # fmt: skip
CLOTHES = ("variant01", "variant03", "variant07", "variant12")
MOUTHS = ("happy01", "happy02", "happy07", "happy13", "sad03")
EYES = ("variant01", "variant03", "variant06", "variant10")

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Portrait:
    """One portrait on its native grid, with what it shows and where."""

    pixels: Pixels  # (16, 16, 3) RGB
    attributes: Attributes
    hair: npt.NDArray[np.bool_]  # (16, 16)
    crown: npt.NDArray[np.bool_]  # (16, 16)

    @property
    def caption(self) -> str:
        """Caption in the style that users of kohya's tools write."""
        return ", ".join([TRIGGER, *self.attributes.tags()])

    def enlarged(self, size: int) -> Pixels:
        """The portrait at `size` pixels, cells kept sharp, as (size, size, 3)."""
        return np.asarray(Image.fromarray(self.pixels).resize((size, size), Image.Resampling.NEAREST))


def portraits(count: int, seed: int) -> Iterator[Portrait]:
    """Draw `count` different portraits; the same seed draws the same ones."""
    rng = random.Random(seed)
    style = Style(json.loads((Path(next(iter(dicebear_styles.__path__))) / "pixel-art.json").read_text()))
    for _ in range(count):
        yield _portrait(style, Attributes.draw(rng), rng)


def write_dataset(folder: Path, count: int, seed: int, size: int) -> None:
    """Write `count` pictures of `size` pixels with a caption file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, portrait in enumerate(portraits(count, seed)):
        Image.fromarray(portrait.enlarged(size)).save(folder / f"portrait_{index:03d}.png")
        (folder / f"portrait_{index:03d}.txt").write_text(portrait.caption + "\n", encoding="utf-8")


def _portrait(style: Any, attributes: Attributes, rng: random.Random) -> Portrait:
    options = {
        "seed": str(rng.random()),
        "hairVariant": [rng.choice(HAIR_STYLES)],
        "clothesVariant": [rng.choice(CLOTHES)],
        "mouthVariant": [rng.choice(MOUTHS)],
        "eyesVariant": [rng.choice(EYES)],
        "skinColor": [attributes.skin.code],
        "clothingColor": [attributes.shirt.code],
        "beardProbability": 0, "glassesProbability": 0, "hatProbability": 0, "accessoriesProbability": 0,
    }  # fmt: skip
    figure = _draw(style, {**options, "hairColor": [attributes.hair.code]})
    # Hair is where the picture changes when only the hair's colour does.
    other = _draw(style, {**options, "hairColor": ["#00ff00"]})
    hair = (figure != other).any(-1)
    opaque = figure[..., 3:] > 127
    pixels = np.where(opaque, figure[..., :3], np.array(attributes.background.rgb, np.uint8)).astype(np.uint8)
    crown = np.zeros((CELLS, CELLS), bool)
    if attributes.crown is not None:
        crown = _paint_crown(pixels, opaque[..., 0], attributes.crown)
    return Portrait(pixels, attributes, hair & ~crown, crown)


def _draw(style: Any, options: dict[str, Any]) -> Pixels:
    """The figure as (16, 16, 4) RGBA, two cells lower than DiceBear has it: room for a crown."""
    svg = Avatar(style, options).to_string()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=CELLS, height=CELLS))
    figure = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    lowered = np.zeros_like(figure)
    lowered[2:] = figure[:-2]
    return lowered


def _paint_crown(pixels: Pixels, figure: npt.NDArray[np.bool_], colour: Colour) -> npt.NDArray[np.bool_]:
    """Paint three rows, points over a solid band with a shaded rim, on top of the head; returns where."""
    top = int(np.flatnonzero(figure.any(1))[0])
    bottom = min(max(top + 1, 2), 4)
    left, right = 4, 12  # the head of the style stands in these columns
    where = np.zeros((CELLS, CELLS), bool)
    where[bottom - 1 : bottom + 1, left:right] = True
    where[bottom - 2, [left, left + 1, 7, 8, right - 2, right - 1]] = True
    pixels[where] = colour.rgb
    pixels[bottom, left:right] = [round(v * 0.78) for v in colour.rgb]
    return where
