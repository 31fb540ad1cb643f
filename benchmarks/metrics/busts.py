"""Busts whose every region and colour is known: to hold the measures of colour against.

DiceBear draws them: *Pixel Art* at its 16 cells, and vector styles at 24 to 40 cells without anti-aliasing, as an
artist of low resolutions would. Colours are inputs, masks come from drawing twice with one colour changed, and
crowns, two-toned hair, shades, ramps and patterned backgrounds are painted in.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dicebear_styles
import numpy as np
import numpy.typing as npt
import resvg_py
from dicebear import Avatar, Style
from PIL import Image

from benchmarks.metrics.numpy_colour import oklab
from demo.attributes import BACKGROUNDS, CROWNS, HAIRS, SHIRTS, SKINS, distance, rgb
from schema.prompts import Expectation

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Source:
    """How one style is drawn: side in cells, names of its colours, and options that hold for all."""

    style: str
    cells: tuple[int, ...]
    skin: str | None = "skinColor"
    shirt: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


SOURCES = (
    Source("pixel-art", (16, 20, 24), shirt="clothingColor"),
    Source("adventurer", (24, 32, 40)),
    Source("avataaars", (32, 40), shirt="clothesColor"),
    Source("micah", (24, 32), skin="baseColor", shirt="shirtColor", options={"facialHairProbability": 0}),
    Source("personas", (24, 32), shirt="clothingColor", options={"facialHairProbability": 0, "eyesVariant": ["open"]}),
    Source("toon-head", (24, 32), shirt="clothesColor"),
    Source("miniavs", (24, 32), shirt="bodyColor"),
    Source("lorelei", (32, 40)),
)
# Variants without hair, or with a band, a bun's ribbon or a shaven part in a colour of its own.
_NO_HAIR = {"beanie", "cap", "bald", "balding", "balndess", "turban", "mrClean", "hat", "hijab", "winterHat02",
            "winterHat03", "winterHat04", "winterHat1", "eyepatch",
            "buzzcut", "fade", "sideShave", "bunUndercut", "pigtails", "froBand", "frida",
            "straightBun", "curlyBun"}  # fmt: skip
_PLAIN = {"glassesProbability": 0, "hatProbability": 0, "accessoriesProbability": 0, "earringsProbability": 0,
          "beardProbability": 0, "hairAccessoriesProbability": 0, "mustacheProbability": 0}  # fmt: skip
MIN_HAIR = 10
"""Cells of hair below which nobody could name its colour."""

_OTHER_HUE = 0.1
"""Distance in OKLab's a and b from which colours are of two hues."""

_OWN_SHADE = 0.2

MIN_TONE = 5
"""Cells of one tone below which nobody would call hair two-toned."""


@dataclass(frozen=True)
class Bust:
    """One portrait on its native grid with what it shows."""

    source: str
    pixels: Pixels  # (N, N, 3)
    background: tuple[str, ...]
    hair: tuple[str, ...]  # the ramp: a base colour and its shades
    skin: str
    hair_mask: Mask
    figure: Mask
    crown: str | None = None
    crown_mask: Mask | None = None
    two_tone: bool = False
    worn: dict[str, tuple[str, ...]] = field(default_factory=dict)  # other accessories with their colours

    @property
    def expectation(self) -> Expectation:
        """What a caption of this bust would promise."""
        worn = {name: codes for name, codes in self.worn.items() if name in Expectation.model_fields}
        return Expectation(
            background=self.background, hair=self.hair[:1], skin=(self.skin,),
            crown=(self.crown,) if self.crown else (),
            **worn,
        )  # fmt: skip

    def enlarged(self, size: int = 512) -> Pixels:
        """(size, size, 3), cells kept sharp; where the cells do not divide the size they differ by a pixel."""
        return np.asarray(Image.fromarray(self.pixels).resize((size, size), Image.Resampling.NEAREST))


def busts(per_source: int, seed: int = 0, sources: tuple[Source, ...] = SOURCES) -> Iterator[Bust]:
    """Plain busts: one hair colour in a ramp of one to three shades, half of them with a crown."""
    for source in sources:
        rng = random.Random(f"{seed} {source.style}")
        style = Style(json.loads((Path(next(iter(dicebear_styles.__path__))) / f"{source.style}.json").read_text()))
        made = 0
        while made < per_source:
            bust = _draw_bust(source, style, rng)
            if bust is None:
                continue
            made += 1
            bust = _with_own_shades(_shade_hair(bust, rng))
            yield _with_crown(bust, rng) if rng.random() < 0.5 else bust


def two_toned(bust: Bust, rng: random.Random) -> Bust:
    """The same bust with a second hue in a part of its hair: one side, the lower part, or a streak."""
    mask, pixels = bust.hair_mask, bust.pixels.copy()
    base = bust.hair[0]
    others = (bust.skin, *bust.background, *([bust.crown] if bust.crown else []))
    while True:
        second = "#" + "".join(f"{rng.randrange(256):02x}" for _ in range(3))
        apart = distance(second, base) > 170 and _hue_apart(second, base)
        if apart and all(distance(second, other) > 110 for other in others):  # else nobody could see where it ends
            break
    rows, columns = np.nonzero(mask)
    kind = rng.choice(["side", "low", "streak"])
    share = rng.uniform(0.3, 0.6)
    if kind == "side":
        part = columns >= np.quantile(columns, 1 - share)
    elif kind == "low":
        part = rows >= np.quantile(rows, 1 - share)
    else:
        low, high = np.quantile(columns, 0.5 - share / 2), np.quantile(columns, 0.5 + share / 2)
        part = (columns >= low) & (columns <= high)
    if part.sum() < MIN_TONE or (~part).sum() < MIN_TONE:
        part = columns >= np.median(columns)
    where = np.zeros_like(mask)
    where[rows[part], columns[part]] = True
    light = pixels[where].mean(1, keepdims=True) / max(np.array(rgb(base)).mean(), 20)
    pixels[where] = np.clip(np.array(rgb(second)) * np.clip(light, 0.55, 1.3), 0, 255).astype(np.uint8)
    return replace(bust, pixels=pixels, two_tone=True)


def _hue_apart(first: str, second: str) -> bool:
    """Whether two colours differ in more than lightness, as an eye sees it."""
    lab = oklab(np.array([rgb(first), rgb(second)], np.uint8))
    return float(np.hypot(*(lab[0] - lab[1])[1:])) > _OTHER_HUE


def _shades_of(code: str, pixels: Pixels) -> Mask:
    """Which pixels (..., 3) have a colour that is lighter or darker than another one but of no other hue."""
    light, a, b = np.moveaxis(oklab(pixels) - oklab(np.array(rgb(code), np.uint8)), -1, 0)
    return np.asarray((np.abs(light) < 0.3) & (np.hypot(a, b) < _OTHER_HUE / 2))


def _draw_bust(source: Source, style: Any, rng: random.Random) -> Bust | None:
    cells = rng.choice(source.cells)
    background = _pick(BACKGROUNDS, rng)
    hair = _pick(HAIRS, rng, (background,)) if rng.random() < 0.6 else _any(rng, (background,))
    skin = _pick(SKINS, rng, (background, hair))
    shirt = _pick(SHIRTS, rng, (background,))
    options: dict[str, Any] = {**_PLAIN, **source.options, "seed": str(rng.random())}
    if source.skin:
        options[source.skin] = [skin]
    if source.shirt:
        options[source.shirt] = [shirt]
    for name, component in (("hair", "hair"), ("top", "top")):
        variants = [v for v in _variants(source.style, component) if v not in _NO_HAIR]
        if variants:
            options[f"{name}Variant"] = [rng.choice(variants)]
    figure = _render(style, {**options, "hairColor": [hair]}, cells, source)
    other = _render(style, {**options, "hairColor": ["#00ff00" if hair != "#00ff00" else "#ff00ff"]}, cells, source)
    opaque = figure[..., 3] > 127
    mask = (figure != other).any(-1) & opaque
    mask &= _shades_of(hair, figure[..., :3])  # its own shading is hair as well, a shadow on skin is not
    if mask.sum() < MIN_HAIR or not 0.15 < opaque.mean() < 0.9:
        return None
    pixels = np.where(opaque[..., None], figure[..., :3], np.array(rgb(background), np.uint8)).astype(np.uint8)
    return Bust(source.style, pixels, (background,), (hair,), skin, mask, opaque)


def _variants(style: str, component: str) -> list[str]:
    file = Path(next(iter(dicebear_styles.__path__))) / f"{style}.json"
    return list(json.loads(file.read_text())["components"].get(component, {}).get("variants", {}))


def _render(style: Any, options: dict[str, Any], cells: int, source: Source) -> Pixels:
    """(cells, cells, 4) RGBA, lowered by a tenth: room for a crown."""
    side = 16 if source.style == "pixel-art" else cells
    svg = Avatar(style, options).to_string()
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=side, height=side, shape_rendering="crisp_edges"))
    drawn = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
    figure = np.zeros((cells, cells, 4), np.uint8)
    left = (cells - side) // 2
    figure[cells - side :, left : left + side] = drawn
    lower = cells // 10 if side == cells else 0
    return np.roll(figure, lower, 0) if not lower else np.concatenate([np.zeros_like(figure[:lower]), figure[:-lower]])


def _shade_hair(bust: Bust, rng: random.Random) -> Bust:
    """Give hair none to two shades of its hue in bands: shading is no second tone."""
    count = rng.choice([0, 1, 2])
    pixels, ramp = bust.pixels.copy(), list(bust.hair)
    rows, columns = np.nonzero(bust.hair_mask)
    along = rng.choice([rows, columns, rows + columns]) + np.array([rng.randrange(2) for _ in rows])
    for i in range(count):
        factor = (0.72, 1.22)[i]
        shade = np.clip(np.array(rgb(bust.hair[0])) * factor + (0 if factor < 1 else 8), 0, 255).astype(np.uint8)
        part = along >= np.quantile(along, 0.72) if i == 0 else along <= np.quantile(along, 0.18)
        pixels[rows[part], columns[part]] = shade
        ramp.append("#" + bytes(shade.tolist()).hex())
    return replace(bust, pixels=pixels, hair=tuple(ramp))


def _with_own_shades(bust: Bust) -> Bust:
    """Count the style's own light and shadow on the hair to the ramp, where they cover a good part of it."""
    colours, counts = np.unique(bust.pixels[bust.hair_mask], axis=0, return_counts=True)
    many = colours[counts >= _OWN_SHADE * bust.hair_mask.sum()]
    codes = ("#" + bytes(colour.tolist()).hex() for colour in many)
    return replace(bust, hair=tuple(dict.fromkeys((*bust.hair, *codes))))


def _with_crown(bust: Bust, rng: random.Random) -> Bust:
    """Points over a solid band with a shaded rim, as wide as the top of the head, on its top."""
    near = (bust.background[0], *bust.hair, bust.skin)
    choices = [c for c in CROWNS.values() if all(distance(c, other) > 110 for other in near)]
    if not choices:
        return bust
    colour = rng.choice(choices)
    cells = len(bust.pixels)
    rows, _ = np.nonzero(bust.figure)
    top = int(rows.min()) + max(1, cells // 16)
    columns = np.nonzero(bust.figure[min(top + 1, cells - 1)])[0]
    middle, width = int(columns.mean().round()), max(5, min(len(columns), cells // 2))
    left, right = max(0, middle - width // 2), min(cells, middle + width // 2 + 1)
    height = max(3, cells // 8)
    pixels, where = bust.pixels.copy(), np.zeros_like(bust.figure)
    first = max(0, top - height + 1)
    where[first + height // 2 : first + height, left:right] = True
    for point in np.linspace(left, right - 1, rng.choice([3, 4, 5])).round().astype(int):
        where[first : first + height, point] = True
    pixels[where] = rgb(colour)
    pixels[first + height - 1, left:right] = [round(v * 0.78) for v in rgb(colour)]
    mask = bust.hair_mask & ~where
    if mask.sum() < MIN_HAIR:
        return bust
    return replace(bust, pixels=pixels, hair_mask=mask, figure=bust.figure | where, crown=colour, crown_mask=where)


def _pick(table: dict[str, str], rng: random.Random, apart: tuple[str, ...] = ()) -> str:
    choices = [c for c in table.values() if all(distance(c, other) > 100 for other in apart)]
    code = rng.choice(choices or list(table.values()))
    return "#" + "".join(f"{min(255, max(0, v + rng.randint(-9, 9))):02x}" for v in rgb(code))


def _any(rng: random.Random, apart: tuple[str, ...]) -> str:
    while True:
        code = "#" + "".join(f"{rng.randrange(256):02x}" for _ in range(3))
        if all(distance(code, other) > 110 for other in apart):
            return code
