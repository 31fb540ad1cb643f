"""The peer of `tasks.metrics`: every figure of it by NumPy and SciPy, one picture after another.

Two ways. Straightforward: what an engineer writes without a clock in mind, all pixels, formulas in float64. Frugal:
the savings that ours has as far as NumPy lets them be had: the same lines of pixels instead of all, a table for the
transfer curve, float32. Both use one product with all combs, everything about regions on the native cells, and SciPy's
labels for what is connected.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from benchmarks.metrics.numpy_colour import Bytes, Real, ciede2000, cielab, length, oklab, oklab_by_table
from benchmarks.metrics.peer_regions import (
    Hair,
    Mask,
    Parts,
    apart,
    dominant,
    find_hair,
    find_parts,
    find_worn,
    nearest,
    palette,
    share,
)
from schema.prompts import Expectation
from schema.runs import PictureMetrics
from tasks.metrics.accessories import KINDS
from tasks.metrics.scan import lines_of
from tasks.metrics.suite import COLOUR_WEIGHTS, STYLE_WEIGHTS

STEP = 0.02


@dataclass(frozen=True)
class Grid:
    """Size and phase of the cells in pixels, how sure, how evenly its lines are used, and whether there is one."""

    scale: float
    left: float
    top: float
    confidence: float
    evenness: float
    found: bool


@dataclass(frozen=True)
class Bank:
    """Combs of one side length: lines (K, L), each scale's places among them (S, O + 2), and what chance gives."""

    lines: npt.NDArray[np.float32]
    place: npt.NDArray[np.intp]
    chance: Real
    loose_chance: Real
    there: Mask
    loose: Mask


@dataclass(frozen=True)
class Look:
    """What is read from a picture's pixels: steps along rows (R, W-1) and columns (C, H-1), and where these cross."""

    across: Real
    down: Real
    lattice: Real
    rows: npt.NDArray[np.intp]
    columns: npt.NDArray[np.intp]

    @classmethod
    def of(cls, pixels: Bytes, frugal: bool) -> Look:
        """Of all pixels (H, W, 3), or of every fourth row and column."""
        if frugal:
            rows, columns = (lines_of(side).numpy() for side in pixels.shape[:2])
            lying, standing = oklab_by_table(pixels[rows]), oklab_by_table(pixels[:, columns])
        else:
            rows, columns = (np.arange(side) for side in pixels.shape[:2])
            lying = standing = oklab(pixels)
        down = np.ascontiguousarray(length(np.diff(standing, axis=0)).T)
        return cls(length(np.diff(lying, axis=1)), down, lying[:, columns] if frugal else lying, rows, columns)


def measure_one(pixels: Bytes, expectation: Expectation, frugal: bool = False) -> PictureMetrics:
    """All figures of one picture (H, W, 3)."""
    look = Look.of(pixels, frugal)
    grid = detect_grid(look)
    small = cells_of(pixels, grid)
    cells = oklab_by_table(small) if frugal else oklab(small)
    looks, facts = _style(look, grid, cells)
    parts = find_parts(cells)
    promised = {n: oklab(_codes(getattr(expectation, n))) for n in Expectation.model_fields}
    kinds = [kind for kind in KINDS if len(promised[kind])]
    worn = {kind: find_worn(KINDS[kind], cells, parts, promised[kind], promised["hair"]) for kind in kinds}
    covered = np.any([np.zeros_like(parts.figure), *(cells_worn for cells_worn, _, _ in worn.values())], axis=0)
    hair = find_hair(parts, covered)
    colours = _colours(small, cells, parts, hair, expectation, promised)
    tones = _two_tone(hair)
    accessories = _accessories(small, cells, parts, worn, expectation)
    if colours["hair_accuracy"] is not None and hair.mask.any() and tones > 0.57:
        colours["hair_accuracy"] *= 0.7
    crown = accessories.pop("crown", None)
    others = list(accessories.values())
    colours["crown_accuracy"] = crown
    colour = _weighted({**colours, "accessories": sum(others) / len(others) if others else None}, COLOUR_WEIGHTS)
    style = _weighted(looks, STYLE_WEIGHTS) or 0.0
    return PictureMetrics(
        **colours,
        **facts,
        accessories=accessories,
        hair_two_tone=tones > 0.57 if hair.mask.any() else None,
        hair_two_tone_score=tones if hair.mask.any() else None,
        crown_present=worn["crown"][1] if "crown" in worn and worn["crown"][2] else None,
        colour_bleeding=_bleeding(cells, parts, hair, promised),
        edge_sharpness=looks["sharpness"],
        pixel_art_purity=looks["purity"],
        palette_score=looks["palette"],
        dithering_score=looks["dithering"],
        photorealism=100 - looks["photorealism"],
        colour=colour,
        style=style,
        overall=style if colour is None else (colour * style) ** 0.5,
        background_colour=_hex(_bytes_near(small, cells, parts.background_colour)),
        hair_colour=_hex(_bytes_near(small, cells, hair.colour)) if hair.mask.any() else None,
    )


def detect_grid(look: Look) -> Grid:
    """The comb that holds most edge energy beyond chance."""
    sides = [look.across.shape[1] + 1, look.down.shape[1] + 1]
    scales = _scales(max(sides))
    profiles = [_profile(steps) for steps in (look.across, look.down)]
    kappas = [_on_combs(p, _bank(side, scales)) for p, side in zip(profiles, sides, strict=True)]
    totals = [float(p.sum()) for p in profiles]
    best = [kappa.max(1) for kappa in kappas]
    score = np.maximum((best[0] * totals[0] + best[1] * totals[1]) / max(sum(totals), 1e-9), 0)
    chosen = int(np.flatnonzero(score >= 0.93 * score.max())[-1])
    confidence, scale = float(np.clip(score[chosen], 0, 1)), scales[chosen]
    evenness = float(np.mean([_effective(p) * scale / _extent(p) for p in profiles]))
    if confidence <= 0.22 or scale < 3:
        return Grid(max(1.0, max(sides) / 32), 0.0, 0.0, confidence, evenness, False)
    left, top = (float(kappa[chosen].argmax()) for kappa in kappas)
    return Grid(scale, left, top, confidence, evenness, True)


def cells_of(pixels: Bytes, grid: Grid) -> Bytes:
    """Median of nine places inside each cell, (N, M, 3)."""
    inset = np.array([-0.22, 0, 0.22]) * grid.scale
    y, x = (
        np.clip(np.floor(_centres(start, side, grid.scale)[:, None] + inset), 0, side - 1).astype(np.intp)
        for start, side in ((grid.top, pixels.shape[0]), (grid.left, pixels.shape[1]))
    )
    places = pixels[y[:, None, :, None], x[None, :, None, :]]  # (N, M, 3, 3, 3)
    return np.asarray(np.median(places.reshape(len(y), len(x), 9, 3), axis=2), np.uint8)


def _style(look: Look, grid: Grid, cells: Real) -> tuple[dict[str, float], dict[str, float | int | None]]:
    """Parts of the style score, and what is told beside."""
    one_step, visible, gradient = _pixel_shares(look)
    y, x = (
        (places + 0.5 - _start(start, grid.scale)) / grid.scale
        for places, start in ((look.rows, grid.top), (look.columns, grid.left))
    )
    at = [np.clip(p.astype(np.intp), 0, many - 1) for p, many in zip((y, x), cells.shape, strict=False)]
    residual = length(look.lattice - cells[at[0][:, None], at[1]])
    amid = (np.abs(y % 1 - 0.5) < 0.36)[:, None] & (np.abs(x % 1 - 0.5) < 0.36)
    across, down = (length(np.diff(cells, axis=axis)) > 0.03 for axis in (1, 0))
    wrong = float((residual[amid] > 0.1).mean()) if amid.any() else 0.0
    edges = (across.sum() + down.sum()) / (cells.shape[0] * cells.shape[1])
    sharp = float(np.clip((one_step - 0.40) / 0.50, 0, 1))
    strong = float(np.clip((visible - 0.035) / 0.035, 0, 1))
    drawn = 1 - 0.38 * (1 - float(np.clip((grid.evenness - 0.40) / 0.25, 0, 1)))
    whole = 1 - 0.6 * float(np.clip((wrong / max(edges, 1e-6) - 0.008) / 0.012, 0, 1))
    gridded = float(np.clip((grid.confidence - 0.15) / 0.5, 0, 1)) * strong * drawn * whole * grid.found
    flat = float(np.clip(1 - residual.mean() / 0.1, 0, 1))
    smooth = float(np.clip((gradient - 0.02) / 0.33, 0, 1))
    photo = 1 / (1 + np.exp(-1.6 * (3.2 * smooth + 2 * (1 - sharp) + 1.5 * (1 - gridded) - 3.7)))
    size, stray = int((palette(cells, np.ones(cells.shape[:2], bool))[1] >= 2).sum()), _stray(across, down)
    parts = {
        "purity": 100 * gridded**0.7 * sharp**0.1 * flat**0.2,
        "calm": 100 * grid.found * float(np.clip(1 - (stray - 0.10) / 0.35, 0, 1)),
        "photorealism": 100 - 100 * float(photo),
        "sharpness": 100 * sharp,
        "palette": 100 * float(np.clip(min((size - 1) / 3, (150 - size) / 100), 0, 1)),
        "dithering": 100 * _dithering(cells),
    }
    told: dict[str, float | int | None] = {
        "palette_size": size, "stray_pixels": stray, "smooth_gradients": gradient, "antialiasing": 1 - one_step,
        "grid_confidence": grid.confidence,
        "grid_agreement": float((residual <= STEP).mean()) if grid.found else None,
        "grid_scale": grid.scale if grid.found else None,
        "grid_left": grid.left if grid.found else None, "grid_top": grid.top if grid.found else None,
    }  # fmt: skip
    return parts, told


def _colours(
    small: Bytes, cells: Real, parts: Parts, hair: Hair, expectation: Expectation, promised: dict[str, Real]
) -> dict[str, float | None]:
    """Background, hair and purity; None where nothing was promised."""
    figure = float(0.06 < parts.figure.mean() < 0.94)
    ground = hairs = pure = None
    if expectation.background:
        off = _difference(_bytes_near(small, cells, parts.background_colour), expectation.background)
        match = share(nearest(cells, promised["background"]) <= 0.08, parts.rim)
        ground = figure * (0.6 * _accuracy(off) + 40 * match)
    if expectation.hair:
        off = _difference(_bytes_near(small, cells, hair.colour), expectation.hair)
        hairs = figure * _accuracy(off) * bool(hair.mask.any())
    if any(getattr(expectation, name) for name in Expectation.model_fields):
        plain = share(apart(cells, parts.background_colour) < 0.05, parts.rim | parts.background)
        one_hue = share(apart(cells, hair.colour, 0.5) < 0.07, hair.mask)
        pure = figure * 100 * ((plain + one_hue) / 2 if hair.mask.any() else plain)
    return {"background_accuracy": ground, "hair_accuracy": hairs, "colour_purity": pure}


def _accessories(
    small: Bytes, cells: Real, parts: Parts, worn: dict[str, tuple[Mask, bool, bool]], expectation: Expectation
) -> dict[str, float]:
    figure = float(0.06 < parts.figure.mean() < 0.94)
    scores = {}
    for kind, (mask, present, clear) in worn.items():
        if clear:
            off = _difference(_bytes_near(small, cells, dominant(cells, mask)), getattr(expectation, kind))
            scores[kind] = figure * (50 + 0.5 * _accuracy(off)) * present
    return scores


def _bleeding(cells: Real, parts: Parts, hair: Hair, promised: dict[str, Real]) -> float | None:
    """Largest share of a region that has the promised colour of another one."""
    regions = {"background": parts.background, "hair": hair.mask, "skin": parts.skin}
    names = [name for name in regions if len(promised[name])]
    worst = 0.0
    for source in names:
        stained = nearest(cells, promised[source]) < 0.05
        for name in names:
            if name != source and nearest(promised[source][:1], promised[name])[0] > 0.12:
                worst = max(worst, share(stained & (nearest(cells, promised[name]) > 0.12), regions[name]))
    return 100 * worst if len(names) >= 2 else None


def _two_tone(hair: Hair) -> float:
    """How much the hair has two hues in two areas, 0-1."""
    second = share(hair.second, hair.mask)
    large = float(np.clip((min(second, 1 - second) - 0.08) / 0.08, 0, 1))
    clean = float(np.clip(_cohesion(hair.mask, hair.second) / 0.4, 0, 1))
    tone = large * clean * min(float(apart(hair.colour, hair.second_colour, 0.3)) / 0.14, 1)
    return (1 + 2 * tone) / 3 if tone > 0 else hair.hint / 3


def _cohesion(mask: Mask, other: Mask) -> float:
    """How much more often neighbours are of one kind than chance has it."""
    pairs = [(mask[1:], mask[:-1], other[1:] == other[:-1])]
    pairs.append((mask[:, 1:], mask[:, :-1], other[:, 1:] == other[:, :-1]))
    links = sum(int((a & b).sum()) for a, b, _ in pairs)
    same = sum(int((a & b & alike).sum()) for a, b, alike in pairs)
    p = share(other, mask)
    chance = p**2 + (1 - p) ** 2
    return (same / max(links, 1) - chance) / max(1 - chance, 1e-6)


def _profile(steps: Real) -> Real:
    energy = np.clip(steps - STEP, 0, 0.125).sum(0)
    return np.asarray(np.maximum(energy - np.median(energy) * 1.125, 0))


def _effective(profile: Real) -> float:
    return float(profile.sum() ** 2 / max(float(profile @ profile), 1e-9))


def _extent(profile: Real) -> int:
    places = np.flatnonzero(profile)
    return int(max(places[-1] - places[0], 1)) if len(places) else 1


def _on_combs(profile: Real, bank: Bank) -> Real:
    """Share of energy on each comb beyond chance, (S, O)."""
    held = (bank.lines @ profile.astype(np.float32))[bank.place] / max(float(profile.sum()), 1e-9)
    strict, beside = held[:, 1:-1], held[:, :-2] + held[:, 2:]
    kappa = (strict - bank.chance) / (1 - bank.chance)
    loose = 0.97 * (strict + beside / 2 - bank.loose_chance) / (1 - bank.loose_chance)
    kappa = np.where(bank.loose[:, None], np.maximum(kappa, loose), kappa)
    effective = _effective(profile)
    return np.where(bank.there, kappa * effective / (effective + 3), -np.inf)


@functools.lru_cache(maxsize=16)
def _scales(side: int) -> tuple[float, ...]:
    whole = {float(s) for s in range(2, max(5, min(max(44, side // 12), side // 4) + 1))}
    parts = {side / n for n in range(12, 171) if side / n >= 3}
    return tuple(sorted(whole | {s for s in parts if abs(s - round(s)) > 1e-9}))


@functools.lru_cache(maxsize=16)
def _bank(side: int, scales: tuple[float, ...]) -> Bank:
    most = int(np.ceil(max(scales)))
    line, offsets = np.arange(1, side), np.arange(-1, most + 1)[:, None]
    rows: list[npt.NDArray[np.float32]] = []
    place = np.zeros((len(scales), most + 2), np.intp)
    for number, s in enumerate(scales):
        many = int(np.ceil(s)) + 2
        place[number, :many] = np.arange(many) + sum(map(len, rows))
        rows.append(((line - offsets[:many] + 0.5 + 1e-9) % s < 1).astype(np.float32))
    lines = np.concatenate(rows)
    chance, sizes = lines.mean(1)[place], np.array(scales)
    beside = chance[:, :-2] + chance[:, 2:]
    loose = (sizes >= 5) & (sizes * 15 <= side)
    there = np.arange(most) < np.ceil(sizes)[:, None]
    return Bank(lines, place, chance[:, 1:-1], chance[:, 1:-1] + beside / 2, there, loose)


def _start(offset: float, scale: float) -> float:
    return offset - scale if offset >= 0.35 * scale else offset


def _centres(offset: float, side: int, scale: float) -> Real:
    centres = _start(offset, scale) + (np.arange(int(side / scale) + 2) + 0.5) * scale
    return np.asarray(centres[(centres > -0.5) & (centres < side - 0.35 * scale + 0.5) & (centres < side)])


def _pixel_shares(look: Look) -> tuple[float, float, float]:
    """Share of transitions done in one step, mean visible step, share of small steps."""
    done = walked = total = 0.0
    count = 0
    gradients = []
    for steps in (look.across, look.down):
        left, middle, right = steps[:, :-2], steps[:, 1:-1], steps[:, 2:]
        peak = (middle > 0.04) & (middle >= left) & (middle >= right)
        size = float(middle[peak].sum())
        beside = np.maximum(left[peak] - 0.01, 0).sum() + np.maximum(right[peak] - 0.01, 0).sum()
        done, walked = done + size, walked + size + float(beside)
        seen = steps > STEP
        total, count = total + float(steps[seen].sum()), count + int(seen.sum())
        gradients.append(((steps >= 0.0039) & (steps < 0.04)).mean())
    return done / max(walked, 1e-9), total / max(count, 1), float(np.mean(gradients))


def _stray(across: Mask, down: Mask) -> float:
    lonely = np.ones((down.shape[0] + 1, across.shape[1] + 1), bool)
    lonely[:, 1:] &= across
    lonely[:, :-1] &= across
    lonely[1:] &= down
    lonely[:-1] &= down
    return float(lonely.mean())


def _dithering(cells: Real) -> float:
    """1 for no texture or an ordered one, 0 for noise."""
    detail = cells - ndimage.uniform_filter(cells, (3, 3, 1), mode="nearest")
    power = (detail * detail).sum(-1)
    strength = np.sqrt(power)
    lively = (strength > 0.0075) & (strength < 0.25)
    active = lively & (25 * ndimage.uniform_filter(lively.astype(float), 5, mode="constant") > 17.5)
    y, x = np.indices(power.shape) % 2 * 2 - 1
    around = [25 * ndimage.uniform_filter(detail * c[..., None], (5, 5, 1), mode="constant") for c in (x * y, x, y)]
    coherent = np.max([(a * a).sum(-1) for a in around], axis=0)
    ordered = active & (coherent > 0.30 * 625 * ndimage.uniform_filter(power, 5, mode="constant"))
    quality = ordered.sum() / max(active.sum(), 1)
    return float(1 - np.clip((active.mean() - 0.05) / 0.30, 0, 1) * (1 - quality))


def _codes(codes: Sequence[str]) -> Bytes:
    return np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in codes], np.uint8).reshape(-1, 3)


def _bytes_near(small: Bytes, cells: Real, colour: Real) -> Bytes:
    """The colour of the cell that is nearest to one, (3,)."""
    return np.asarray(small.reshape(-1, 3)[int(length(cells - colour).argmin())])


def _hex(colour: Bytes) -> str:
    return "#" + "".join(f"{v:02x}" for v in colour)


def _difference(colour: Bytes, codes: Sequence[str]) -> float:
    return float(ciede2000(cielab(colour[None]), cielab(_codes(codes))).min())


def _accuracy(off: float) -> float:
    return float(100 * np.exp(-((max(0.0, off - 2.3) / 12) ** 1.3)))


def _weighted(parts: dict[str, float | None] | dict[str, float], weights: dict[str, float]) -> float | None:
    there = {name: value for name, value in parts.items() if value is not None}
    if not there:
        return None
    return sum(weights[n] * v for n, v in there.items()) / sum(weights[n] for n in there)
