"""Labelled pictures to hold the measures of style against: pixel art in every rendering, and what is none.

Pixel art is enlarged by nearest neighbour, at whole and fractional scales, from any phase, and stored as PNG or
JPEG. What is none: photographs, vector art, painted and drawn pictures, and some that were made to deceive.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import dicebear_styles
import numpy as np
import numpy.typing as npt
import resvg_py
import torch
from dicebear import Avatar, Style
from PIL import Image, ImageDraw, ImageFilter

from demo.attributes import Attributes
from demo.drawn import Colours, draw_characters
from demo.portraits import portraits
from schema.prompts import Expectation

Pixels = npt.NDArray[np.uint8]
Subsampling = Literal["4:4:4", "4:2:0"]

SIDE = 512
VECTOR_STYLES = (
    "adventurer", "avataaars", "big-ears", "big-smile", "bottts", "croodles", "dylan", "fun-emoji", "lorelei", "micah",
    "miniavs", "notionists", "open-peeps", "personas", "thumbs", "toon-head",
)  # fmt: skip
PHOTOGRAPHS = {
    "skimage": (
        "astronaut.png", "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png",
        "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png", "microaneurysms.png", "moon.png",
        "motorcycle_left.png", "motorcycle_right.png", "retina.jpg", "rocket.jpg",
    ),
    "sklearn": ("china.jpg", "flower.jpg"),
    "matplotlib": ("grace_hopper.jpg",),
}  # fmt: skip
"""Photographs that wheels ship; those of packages that are not installed are left out."""

_FOLDERS = {"skimage": "data", "sklearn": "datasets/images", "matplotlib": "mpl-data/sample_data"}
_CELLS = (20, 24, 27, 30, 40, 48, 56, 72, 100, 120)
"""Art pixels a side that do not divide 512: their size is no whole number."""


@dataclass(frozen=True)
class Picture:
    """One labelled picture.

    Attributes:
        name: what it shows and how it was made; different for every picture.
        group: the kind it is reported with.
        pixels: (H, W, 3).
        pixel_art: the label.
        scale: size of an art pixel, if it has them.
        quality: of JPEG; None for PNG.
        truth: how much was planted, in the unit of the measure that must find it.
        expectation: what its prompt would have promised.
    """

    name: str
    group: str
    pixels: Pixels
    pixel_art: bool
    scale: float | None = None
    quality: int | None = None
    truth: float | None = None
    expectation: Expectation = field(default_factory=Expectation)


@dataclass(frozen=True)
class Sprite:
    """Pixel art at its native size, (h, w, 4) RGBA."""

    name: str
    pixels: Pixels

    def on_plain(self, rng: random.Random) -> Pixels:
        """On a random plain background, (h, w, 3)."""
        ground = Image.new("RGBA", self.pixels.shape[1::-1], random_colour(rng))
        return np.asarray(Image.alpha_composite(ground, Image.fromarray(self.pixels)).convert("RGB"))


def random_colour(rng: random.Random) -> tuple[int, int, int]:
    """Any sRGB colour."""
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def store(pixels: Pixels, quality: int | None, subsampling: Subsampling = "4:4:4") -> Pixels:
    """The picture as a JPEG of this quality gives it back; unchanged for None."""
    if quality is None:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling=subsampling)
    return np.asarray(Image.open(buffer))


def enlarge(cells: Pixels, width: int, height: int, how: Image.Resampling = Image.Resampling.NEAREST) -> Pixels:
    """(h, w, 3) at another size."""
    return np.asarray(Image.fromarray(cells).resize((width, height), how))


def sprites(folder: Path | None, count: int, seed: int) -> list[Sprite]:
    """The demo's portraits, and the pixel art of a folder with a manifest."""
    drawn = [
        Sprite(f"portrait {i}", np.dstack([p.pixels, np.full(p.pixels.shape[:2], 255, np.uint8)]))
        for i, p in enumerate(portraits(count, seed))
    ]
    return drawn + [Sprite(name, np.asarray(file.convert("RGBA"))) for name, file in _manifest(folder, "pixel")]


def pixel_art(some: Sequence[Sprite], rng: random.Random) -> Iterator[Picture]:
    """Every sprite at a whole scale, at a fractional one and cut out of phase; some blurred, some only doubled."""
    for number, sprite in enumerate(some):
        largest = max(3, min(32, 2 * SIDE // max(sprite.pixels.shape[:2])))
        scale = rng.randint(3, largest)
        cells = canvas(some, number, SIDE // scale, rng)
        side = len(cells) * scale
        yield _render(sprite, "whole", enlarge(cells, side, side), scale, rng)
        count = rng.choice([n for n in _CELLS if n >= max(sprite.pixels.shape[:2]) // 2])
        cells = canvas(some, number, count, rng)
        yield _render(sprite, "fractional", enlarge(cells, SIDE, SIDE), SIDE / count, rng)
        scale = rng.randint(3, largest)
        yield _render(
            sprite, "phase", _out_of_phase(canvas(some, number, SIDE // scale + 2, rng), scale, rng), scale, rng
        )
        if number % 4 == 0:
            scale = rng.randint(4, max(4, largest))
            cells = canvas(some, number, SIDE // scale, rng)
            soft = blur(enlarge(cells, len(cells) * scale, len(cells) * scale), 0.5)
            yield Picture(f"{sprite.name} x{scale} blurred", "blur", soft, True, scale)
        if number % 6 == 0:
            cells = canvas(some, number, SIDE // 2, rng)
            yield _render(sprite, "x2", enlarge(cells, SIDE, SIDE), 2, rng)


def canvas(some: Sequence[Sprite], number: int, count: int, rng: random.Random) -> Pixels:
    """`count` cells square: the sprite on its background, cut to fit, or a sheet of it and others."""
    pitch = max(some[number].pixels.shape[:2])
    if count < 2 * pitch:
        return _fitted(some[number].on_plain(rng), count)
    cells = np.zeros((count, count, 3), np.uint8)
    for top in range(0, count, pitch):
        for left in range(0, count, pitch):
            sprite = some[number] if top == left == 0 else rng.choice(some)
            tile = _fitted(sprite.on_plain(rng), pitch)
            cells[top : top + pitch, left : left + pitch] = tile[: count - top, : count - left]
    return cells


def blur(pixels: Pixels, radius: float) -> Pixels:
    """Gaussian blur."""
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)))


def not_pixel_art(folder: Path | None, rng: random.Random) -> Iterator[Picture]:
    """Photographs, vector art, drawn pictures, and whatever else a folder with a manifest has."""
    found = [("photo", name, file) for name, file in _photographs()]
    found += [("vector", name, file) for style in VECTOR_STYLES for name, file in _vectors(style, 4)]
    found += [(name.split("_")[0], name, file) for name, file in _manifest(folder, "nonpixel")]
    for group, name, file in found:
        fitted = file.convert("RGB")
        fitted.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        yield _plain(f"{name} fitted", group, np.asarray(fitted), rng)
        if min(file.size) > 1.5 * SIDE:
            yield _plain(f"{name} cut", group, _cut(file, SIDE, rng), rng)
    for style in ("portrait", "cartoon"):
        for n, drawn in enumerate(_drawn(style, 12, rng.randrange(1 << 30))):
            yield Picture(f"drawn {style} {n}", "drawn", drawn, False)
            large = enlarge(drawn, SIDE, SIDE, Image.Resampling.BICUBIC)
            yield Picture(f"drawn {style} {n} enlarged", "drawn", large, False)


def deceiving(rng: random.Random) -> Iterator[Picture]:
    """What has a grid, or nothing at all, and yet is no pixel art."""
    for name, file in 2 * _photographs():
        quality = rng.randint(10, 25)
        coarse = store(_cut(file, SIDE, rng), quality, rng.choice(("4:4:4", "4:2:0")))
        yield Picture(f"{name} {rng.randrange(1000)} q{quality}", "coarse JPEG", coarse, False, quality=quality)
        small = _cut(file, SIDE // 2, rng)
        doubled = enlarge(small, 2 * small.shape[1], 2 * small.shape[0])
        yield Picture(f"{name} {rng.randrange(1000)} doubled", "doubled photo", doubled, False)
    for n in range(16):
        yield _plain(f"layout {n}", "8-px layout", _layout(rng), rng)
    for n in range(6):
        flat = np.full((SIDE, SIDE, 3), random_colour(rng), np.uint8)
        yield _plain(f"uniform {n}", "uniform", flat, rng)
    for n in range(12):
        yield _plain(f"gradient {n}", "gradient", _gradient(rng), rng)


def _render(sprite: Sprite, group: str, pixels: Pixels, scale: float, rng: random.Random) -> Picture:
    quality = rng.choice((None, None, None, 95, 90, 85, 75, 60))
    subsampling: Subsampling = rng.choice(("4:4:4", "4:2:0"))
    how = "png" if quality is None else f"q{quality} {subsampling}"
    name = f"{sprite.name} {group} x{scale:.4g} {how}"
    return Picture(name, group, store(pixels, quality, subsampling), True, scale, quality)


def _plain(name: str, group: str, pixels: Pixels, rng: random.Random) -> Picture:
    quality = rng.choice((None, None, 95, 85))
    return Picture(f"{name} {quality or 'png'}", group, store(pixels, quality, "4:2:0"), False, quality=quality)


def _out_of_phase(cells: Pixels, scale: int, rng: random.Random) -> Pixels:
    left, top = rng.randrange(scale), rng.randrange(scale)
    large = enlarge(cells, cells.shape[1] * scale, cells.shape[0] * scale)
    return large[top : top + SIDE, left : left + SIDE]


def _fitted(cells: Pixels, count: int) -> Pixels:
    """Cut or padded, by its own border, to `count` x `count` about the middle."""
    for axis in (0, 1):
        spare = count - cells.shape[axis]
        if spare < 0:
            cells = np.take(cells, range(-spare // 2, -spare // 2 + count), axis)
        pad = [(0, 0)] * 3
        pad[axis] = (max(spare, 0) // 2, max(spare, 0) - max(spare, 0) // 2)
        cells = np.pad(cells, pad, mode="edge")
    return cells


def _cut(file: Image.Image, side: int, rng: random.Random) -> Pixels:
    width, height = (min(side, s) for s in file.size)
    left, top = rng.randint(0, file.width - width), rng.randint(0, file.height - height)
    return np.asarray(file.convert("RGB").crop((left, top, left + width, top + height)))


def _layout(rng: random.Random) -> Pixels:
    """Rectangles on a design grid of 8 pixels, as in screens and posters, with smooth curves between."""
    fine = 4
    picture = Image.new("RGB", (SIDE * fine, SIDE * fine), random_colour(rng))
    pen = ImageDraw.Draw(picture)
    for n in range(rng.randint(12, 30)):
        width, height = (rng.randint(2, 24) * 8 * fine for _ in range(2))
        left, top = (rng.randint(0, SIDE // 8 - 2) * 8 * fine for _ in range(2))
        draw = pen.ellipse if n % 4 == 3 else pen.rectangle
        draw((left, top, left + width - 1, top + height - 1), fill=random_colour(rng))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))


def _gradient(rng: random.Random) -> Pixels:
    """From one colour to another, along any direction or from a centre."""
    y, x = np.mgrid[0:SIDE, 0:SIDE] / SIDE
    angle = rng.random() * 2 * np.pi
    along = np.cos(angle) * x + np.sin(angle) * y if rng.random() < 0.5 else np.hypot(x - 0.5, y - 0.5)
    along = (along - along.min()) / (along.max() - along.min())
    first, last = (np.array(random_colour(rng), float) for _ in range(2))
    return np.asarray((first + along[..., None] * (last - first)).round(), np.uint8)


def _vectors(style: str, count: int) -> Iterator[tuple[str, Image.Image]]:
    """Characters of one of DiceBear's vector styles, anti-aliased, on white."""
    described = Style(json.loads((Path(next(iter(dicebear_styles.__path__))) / f"{style}.json").read_text()))
    for name in (f"{style} {n}" for n in range(count)):
        svg = Avatar(described, {"seed": name}).to_string()
        figure = Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIDE, height=SIDE))))
        yield name, Image.alpha_composite(Image.new("RGBA", figure.size, "white"), figure.convert("RGBA"))


def _drawn(style: str, count: int, seed: int) -> list[Pixels]:
    rng = random.Random(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        colours = Colours.of([Attributes.draw(rng) for _ in range(count)], torch.device("cpu"))
        drawn = (draw_characters(colours, style) * 255).round().byte().permute(0, 2, 3, 1)
    return list(np.asarray(drawn))


def _photographs() -> list[tuple[str, Image.Image]]:
    found: list[tuple[str, Image.Image]] = []
    for package, names in PHOTOGRAPHS.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            continue
        paths = [Path(spec.origin).parent / _FOLDERS[package] / name for name in names]
        found += [(path.name, Image.open(path)) for path in paths if path.is_file()]
    return found


def _manifest(folder: Path | None, label: str) -> list[tuple[str, Image.Image]]:
    """Files of one class of a folder with a manifest.csv, but for those that wheels ship too."""
    if folder is None:
        return []
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["class"] == label and "pypi:scikit" not in row["source"]]
    return [(Path(row["file"]).stem, Image.open(folder / row["file"])) for row in rows]
