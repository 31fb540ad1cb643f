"""Pictures with a known amount of something: colours, dither, stray pixels, noise, smoothing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.metrics.numpy_colour import oklab
from benchmarks.metrics.pictures import SIDE, Picture, Pixels, Sprite, blur, canvas, enlarge, random_colour, store
from schema.prompts import Expectation

Values = npt.NDArray[np.float64]

PALETTES = (2, 3, 4, 6, 8, 10, 12, 16, 20, 24, 28, 32, 36, 40)
STRAY_SHARES = (0.0, 0.01, 0.02, 0.05, 0.08, 0.12, 0.16, 0.20)
NOISES = (4, 8, 16, 32)
_BAYER_2 = np.array([[0, 2], [3, 1]])
_BAYER = {
    "Bayer 2": _BAYER_2,
    "Bayer 4": np.block([[4 * _BAYER_2, 4 * _BAYER_2 + 2], [4 * _BAYER_2 + 3, 4 * _BAYER_2 + 1]]),
    "checkered": np.array([[0, 1], [1, 0]]),
}
DISORDER = ("Floyd-Steinberg", "white noise")
DITHERS = (*_BAYER, *DISORDER)
_SMOOTHERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def palettes(rng: random.Random) -> Iterator[Picture]:
    """k colours far apart on 24 x 24 cells, each on two or more; as PNG and as JPEG."""
    for k in PALETTES:
        for n in range(3):
            colours = far_colours(k, rng)
            index = [*range(k), *range(k), *(rng.randrange(k) for _ in range(24 * 24 - 2 * k))]
            rng.shuffle(index)
            cells = colours[np.reshape(index, (24, 24))]
            large = enlarge(cells, SIDE, SIDE)
            yield Picture(f"{k} colours {n}", "palette", large, True, SIDE / 24, None, k)
            yield Picture(f"{k} colours {n} q90", "palette", store(large, 90), True, SIDE / 24, 90, k)


def far_colours(k: int, rng: random.Random) -> Pixels:
    """k random colours, each as far as possible from those before it, (k, 3)."""
    many = np.array([random_colour(rng) for _ in range(1500)], np.uint8)
    seen = oklab(many)
    chosen = [rng.randrange(len(many))]
    nearest = np.full(len(many), np.inf)
    while len(chosen) < k:
        nearest = np.minimum(nearest, ((seen - seen[chosen[-1]]) ** 2).sum(1))
        chosen.append(int(nearest.argmax()))
    return many[chosen]


def dithers(rng: random.Random) -> Iterator[Picture]:
    """A figure before a ramp between two near colours, dithered in order or not; truth is 1 for order, 0 for none."""
    for name in DITHERS:
        for n in range(16):
            side = rng.choice((32, 48, 64))
            first, last = _near_pair(rng)
            ramp = np.tile(np.linspace(0.05, 0.95, side)[:, None], (1, side))
            if rng.random() < 0.5:
                ramp = ramp.T
            cells = np.where(_dithered(name, ramp, rng)[..., None], np.array(last), np.array(first)).astype(np.uint8)
            _figure(cells, rng)
            large = enlarge(cells, SIDE, SIDE)
            yield Picture(f"{name} {n}", name, large, True, SIDE / side, None, float(name in _BAYER))


def strays(rng: random.Random) -> Iterator[Picture]:
    """Plain areas with lone cells strewn in, a known share of all; as PNG and as JPEG."""
    for share in STRAY_SHARES:
        for n in range(6):
            side = rng.choice((24, 32, 64))
            colours = far_colours(8, rng)
            cells = _strewn(_areas(colours[:4], side, rng), colours[4:], share, rng)
            lone = _lone_share(cells)
            large = enlarge(cells, SIDE, SIDE)
            name = f"{share:.0%} stray {n}"
            yield Picture(name, "stray", large, True, SIDE / side, None, lone)
            yield Picture(f"{name} q90", "stray", store(large, 90), True, SIDE / side, 90, lone)


def softened(some: Sequence[Sprite], rng: random.Random) -> Iterator[Picture]:
    """Sprites enlarged sharply, and by smoothing resamplers that pixel art must not see."""
    for number in range(0, len(some), 5):
        count = rng.choice((16, 24, 32, 48))
        cells = canvas(some, number, count, rng)
        name = f"{some[number].name} on {count}"
        large = enlarge(cells, SIDE, SIDE)
        yield Picture(f"{name} nearest", "crisp", large, True, SIDE / count)
        for how, resampling in _SMOOTHERS.items():
            yield Picture(f"{name} {how}", how, enlarge(cells, SIDE, SIDE, resampling), False, SIDE / count)
        yield Picture(f"{name} blur 2", "blur 2", blur(large, 2), False, SIDE / count)


def noisy(some: Sequence[Sprite], rng: random.Random) -> Iterator[Picture]:
    """Sprites with noise of a known deviation (truth, in bytes) on every pixel, or on every cell."""
    for number in range(0, len(some), 16):
        cells = canvas(some, number, 32, rng)
        noise = np.random.default_rng(rng.randrange(1 << 30))
        for sigma in (0, *NOISES):
            large = _noised(enlarge(cells, SIDE, SIDE), sigma, noise)
            blotchy = enlarge(_noised(cells, sigma, noise), SIDE, SIDE)
            name = f"{some[number].name} noise {sigma}"
            yield Picture(f"{name} on pixels", "pixel noise", large, True, 16, None, sigma)
            yield Picture(f"{name} on cells", "cell noise", blotchy, True, 16, None, sigma)


def two_coloured(some: Sequence[Sprite], rng: random.Random) -> Iterator[Picture]:
    """Figures before a background of two promised colours: halves, stripes or checks."""
    for number in range(0, len(some), 5):
        first, last = far_colours(2, rng)
        y, x = np.mgrid[0:32, 0:32]
        pattern = rng.choice((y < 16, x < 16, y // 4 % 2 == 0, (x // 4 + y // 4) % 2 == 0))
        cells = np.where(pattern[..., None], first, last).astype(np.uint8)
        _figure(cells, rng)
        codes = tuple("#" + "".join(f"{v:02x}" for v in colour) for colour in (first, last))
        plain = Picture(f"two-coloured {number}", "two-coloured", enlarge(cells, SIDE, SIDE), True, 16)
        yield replace(plain, expectation=Expectation(background=codes))


def _near_pair(rng: random.Random) -> Pixels:
    """Two neighbouring shades, as are dithered into each other: 0.03 to 0.20 apart."""
    while True:
        first = np.array(random_colour(rng))
        pair = np.stack([first, (first + [rng.randint(-50, 50) for _ in range(3)]).clip(0, 255)]).astype(np.uint8)
        lab = oklab(pair)
        if 0.03 < np.linalg.norm(lab[0] - lab[1]) < 0.20:
            return pair


def _dithered(name: str, ramp: Values, rng: random.Random) -> npt.NDArray[np.bool_]:
    if name in _BAYER:
        matrix = (_BAYER[name] + 0.5) / _BAYER[name].size
        tiles = -(-len(ramp) // len(matrix))
        return np.asarray(ramp > np.tile(matrix, (tiles, tiles))[: len(ramp), : len(ramp)])
    if name == "white noise":
        return np.asarray(ramp > np.random.default_rng(rng.randrange(1 << 30)).random(ramp.shape))
    grey = Image.fromarray((ramp * 255).round().astype(np.uint8))
    return np.asarray(grey.convert("1", dither=Image.Dither.FLOYDSTEINBERG))


def _figure(cells: Pixels, rng: random.Random) -> None:
    """Paint head and shoulders in plain colours over the lower middle."""
    side = len(cells)
    y, x = (np.mgrid[0:side, 0:side] + 0.5) / side
    head, body = random_colour(rng), random_colour(rng)
    cells[(np.abs(x - 0.5) < 0.32) & (y > 0.78)] = body
    cells[np.hypot((x - 0.5) / 0.2, (y - 0.58) / 0.24) < 1] = head


def _areas(colours: Pixels, side: int, rng: random.Random) -> Pixels:
    """Overlapping rectangles of two cells and more a side."""
    index = np.zeros((side, side), int)
    for n in range(16):
        top, left = (rng.randrange(side - 2) for _ in range(2))
        index[top : top + rng.randint(2, side // 3), left : left + rng.randint(2, side // 3)] = n % len(colours)
    return colours[index]


def _strewn(cells: Pixels, colours: Pixels, share: float, rng: random.Random) -> Pixels:
    """Cells with lone ones of other colours, no two of them neighbours."""
    side = len(cells)
    cells, taken = cells.copy(), np.zeros((side + 2, side + 2), bool)
    places = [(y, x) for y in range(side) for x in range(side)]
    rng.shuffle(places)
    left = round(share * side * side)
    for y, x in places:
        if left and not taken[y : y + 3, x : x + 3].any():
            taken[y + 1, x + 1] = True
            cells[y, x] = colours[rng.randrange(len(colours))]
            left -= 1
    return cells


def _lone_share(cells: Pixels) -> float:
    """Cells unlike all their neighbours, counted."""
    framed = np.pad(cells.astype(int), ((1, 1), (1, 1), (0, 0)), constant_values=-1)
    beside = (framed[:-2, 1:-1], framed[2:, 1:-1], framed[1:-1, :-2], framed[1:-1, 2:])
    return float(np.all([(cells != other).any(2) for other in beside], axis=0).mean())


def _noised(pixels: Pixels, sigma: float, noise: np.random.Generator) -> Pixels:
    return (pixels + noise.normal(0, sigma, pixels.shape)).round().clip(0, 255).astype(np.uint8)
