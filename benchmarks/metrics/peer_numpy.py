"""The peer of `tasks.metrics`: the same kinds of figures by NumPy and SciPy, one picture after another.

Written as an engineer would without a batch in mind: tables for the transfer curve, one product with all combs,
everything about regions on the native cells, float32 where it is enough. It has no shades of hair, no accessories
and no two-toned hair, so it does rather less than what it is held against.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from benchmarks.metrics.numpy_colour import Bytes, Real, ciede2000, cielab, oklab
from schema.prompts import Expectation

Mask = npt.NDArray[np.bool_]

JND = 0.02


@dataclass(frozen=True)
class Figures:
    """What is measured of one picture; scores 0-100, shares 0-1."""

    scale: float | None
    confidence: float
    purity: float
    sharpness: float
    photorealism: float
    gradients: float
    stray: float
    dithering: float
    palette_size: int
    background: str | None
    hair: str | None
    background_accuracy: float | None
    hair_accuracy: float | None


@dataclass(frozen=True)
class Bank:
    """Combs of one side length: lines (K, L), with scale, offset, share by chance and worth of each."""

    lines: Real
    scale: Real
    offset: Real
    chance: Real
    worth: Real
    first: npt.NDArray[np.intp]  # where each scale's combs begin


def measure_one(pixels: Bytes, expectation: Expectation) -> Figures:
    """All figures of one picture (H, W, 3)."""
    lab = oklab(pixels)
    across, down = _length(np.diff(lab, axis=1)), _length(np.diff(lab, axis=0))
    scale, left, top, confidence = detect_grid(across, down)
    found = confidence > 0.22 and scale >= 3
    if not found:
        scale, left, top = max(pixels.shape[:2]) / 32, 0.0, 0.0
    small = cells_of(pixels, scale, left, top)
    cells = oklab(small)
    one_step, gradients = _one_step_share(across, down), _gradient_share(across, down)
    sharp = float(np.clip((one_step - 0.4) / 0.5, 0, 1))
    gridded = float(np.clip((confidence - 0.15) / 0.5, 0, 1)) * found
    flat = 1 - min(1.0, _residual(lab, cells, scale, left, top) / 0.1)
    smooth = float(np.clip((gradients - 0.02) / 0.33, 0, 1))
    odds = 1.6 * (3.2 * smooth + 2 * (1 - sharp) + 1.5 * (1 - gridded) - 3.5)
    ground, background = find_background(cells)
    hair = find_hair(cells, ~background)
    return Figures(
        scale if found else None, confidence, 100 * gridded**0.7 * sharp**0.1 * flat**0.2, 100 * sharp,
        float(100 / (1 + np.exp(-odds))), gradients, _stray_share(cells), _dithering(cells), palette_size(cells),
        _code(small, background, cells, ground), _code(small, hair, cells, _dominant(cells, hair)),
        _accuracy(small, background, expectation.background), _accuracy(small, hair, expectation.hair),
    )  # fmt: skip


def detect_grid(across: Real, down: Real) -> tuple[float, float, float, float]:
    """Scale, left, top and confidence of the comb that holds most edge energy beyond chance."""
    profiles = [_profile(across.T), _profile(down)]
    sides = [across.shape[1] + 1, down.shape[0] + 1]
    banks = [_bank(side, max(sides)) for side in sides]
    kappas, totals = [], []
    for profile, bank in zip(profiles, banks, strict=True):
        total = float(profile.sum())
        share = bank.lines @ profile / max(total, 1e-9)
        effective = total**2 / max(float(profile @ profile), 1e-9)
        kappas.append((share - bank.chance) / (1 - bank.chance) * bank.worth * (effective / (effective + 3)))
        totals.append(total)
    best = [np.maximum.reduceat(k, b.first) for k, b in zip(kappas, banks, strict=True)]
    score = (best[0] * totals[0] + best[1] * totals[1]) / max(sum(totals), 1e-9)
    chosen = int(np.flatnonzero(score >= 0.93 * score.max())[-1])
    left, top = (_offset(k, b, chosen) for k, b in zip(kappas, banks, strict=True))
    return float(banks[0].scale[banks[0].first[chosen]]), left, top, float(np.clip(score[chosen], 0, 1))


def cells_of(pixels: Bytes, scale: float, left: float, top: float) -> Bytes:
    """Median of nine places inside each cell, (N, M, 3)."""
    height, width = pixels.shape[:2]
    inset = np.array([-0.22, 0, 0.22]) * scale
    y, x = (
        np.clip(_centres(start, side, scale)[:, None] + inset, 0, side - 1).astype(np.intp)
        for start, side in ((top, height), (left, width))
    )
    places = pixels[y[:, None, :, None], x[None, :, None, :]]  # (N, M, 3, 3, 3)
    return np.asarray(np.median(places.reshape(len(y), len(x), 9, 3), axis=2), np.uint8)


def palette_size(cells: Real) -> int:
    """Distinct colours that two cells or more have: fullest bins first, each not near an earlier one."""
    flat = cells.reshape(-1, 3)
    bins = np.floor(flat * 32 + 0.5).astype(np.int64) + 64
    _, which, counts = np.unique(
        (bins[:, 0] * 256 + bins[:, 1]) * 256 + bins[:, 2], return_inverse=True, return_counts=True
    )
    means = np.stack([np.bincount(which, flat[:, c]) for c in range(3)], 1) / counts[:, None]
    order = np.argsort(-counts, kind="stable")[:256]
    means, counts = means[order], counts[order]
    near = ((means[:, None] - means[None]) ** 2).sum(2) < 0.045**2
    owner = np.full(len(means), -1)
    for i in range(len(means)):
        if owner[i] < 0:
            owner[near[i] & (owner < 0)] = i
    return int((np.bincount(owner, counts) >= 2).sum())


def find_background(cells: Real) -> tuple[Real, Mask]:
    """Colour that most of the border has, and the cells near it that are connected to the border."""
    ring = np.ones(cells.shape[:2], bool)
    ring[1:-1, 1:-1] = False
    ground = _dominant(cells, ring)
    labels, _ = ndimage.label(_length(cells - ground) < 0.06)
    outside = np.unique(labels[ring])
    return ground, np.isin(labels, outside[outside > 0])


def find_hair(cells: Real, figure: Mask) -> Mask:
    """Cells of the upper figure, joined to its top, that have the top's most frequent colour but not the face's."""
    rows = np.flatnonzero(figure.any(1))
    hair = np.zeros_like(figure)
    if len(rows) < 4:
        return hair
    top, height = int(rows[0]), int(rows[-1] - rows[0] + 1)
    middle, reach = cells.shape[1] // 2, max(1, cells.shape[1] // 5)
    face = np.zeros_like(figure)
    face[top + height * 3 // 10 : top + height * 55 // 100 + 1, middle - reach : middle + reach] = True
    skin = _dominant(cells, face & figure) if (face & figure).any() else None
    crest = figure.copy()
    crest[top + max(3, height * 16 // 100) :] = False
    if skin is not None:
        crest &= _length(cells - skin) > 0.07
    if not crest.any():
        return hair
    near = figure & (_length((cells - _dominant(cells, crest)) * np.array([0.4, 1, 1], np.float32)) < 0.07)
    near[top + height * 62 // 100 :] = False
    labels, _ = ndimage.label(near)
    joined = np.unique(labels[crest])
    return np.isin(labels, joined[joined > 0])


def _length(vectors: Real) -> Real:
    return np.asarray(np.sqrt(np.einsum("...c,...c->...", vectors, vectors)))


def _profile(steps: Real) -> Real:
    energy = np.clip(steps - JND, 0, 0.125).sum(1)
    return np.asarray(np.maximum(energy - np.median(energy) * 1.125, 0))


@functools.lru_cache(maxsize=16)
def _bank(side: int, longest: int) -> Bank:
    scales = {float(s) for s in range(2, max(5, min(max(44, longest // 12), longest // 4) + 1))}
    scales |= {longest / n for n in range(12, 171) if longest / n >= 3}
    line, described, first = np.arange(1, side), [], []
    rows: list[Real] = []
    for s in sorted(scales):
        first.append(len(rows))
        for offset in range(int(np.ceil(s))):
            phase = np.mod(line - offset, s)
            strict = np.minimum(phase, s - phase) <= (0.25 if s == round(s) else 0.5)
            rows.append(strict.astype(np.float32))
            described.append((s, offset, 1.0))
            if s >= 5:
                beside = np.convolve(strict, [0.5, 0, 0.5], "same")
                rows.append(np.maximum(rows[-1], beside).astype(np.float32))
                described.append((s, offset, 0.97))
    lines = np.stack(rows)
    scale, start, worth = np.array(described, np.float32).T
    return Bank(lines, scale, start, lines.mean(1), worth, np.array(first))


def _offset(kappa: Real, bank: Bank, chosen: int) -> float:
    begin = bank.first[chosen]
    end = bank.first[chosen + 1] if chosen + 1 < len(bank.first) else len(kappa)
    return float(bank.offset[begin + int(kappa[begin:end].argmax())])


def _start(offset: float, scale: float) -> float:
    return offset - scale if offset >= 0.35 * scale else offset


def _centres(offset: float, side: int, scale: float) -> Real:
    centres = _start(offset, scale) + (np.arange(int(side / scale) + 2) + 0.5) * scale
    return np.asarray(centres[centres < side - 0.35 * scale + 0.5], np.float32)


def _residual(lab: Real, cells: Real, scale: float, left: float, top: float) -> float:
    y, x = (
        np.clip(((np.arange(0, side, 2) + 0.5 - _start(start, scale)) / scale).astype(np.intp), 0, many - 1)
        for side, start, many in ((lab.shape[0], top, len(cells)), (lab.shape[1], left, cells.shape[1]))
    )
    return float(_length(lab[::2, ::2] - cells[y[:, None], x[None]]).mean())


def _one_step_share(across: Real, down: Real) -> float:
    done = walked = 0.0
    for left, middle, right in (
        (across[:, :-2], across[:, 1:-1], across[:, 2:]), (down[:-2], down[1:-1], down[2:]),
    ):  # fmt: skip
        peak = (middle > 0.04) & (middle >= left) & (middle >= right)
        size = middle[peak]
        beside = np.maximum(left[peak] - 0.01, 0) + np.maximum(right[peak] - 0.01, 0)
        done, walked = done + float(size.sum()), walked + float(size.sum() + beside.sum())
    return done / walked if walked else 0.0


def _gradient_share(across: Real, down: Real) -> float:
    return float(np.mean([((e >= 0.004) & (e < 0.04)).mean() for e in (across, down)]))


def _stray_share(cells: Real) -> float:
    lonely = np.ones(cells.shape[:2], bool)
    across, down = (_length(np.diff(cells, axis=axis)) > 0.03 for axis in (1, 0))
    lonely[:, 1:] &= across
    lonely[:, :-1] &= across
    lonely[1:] &= down
    lonely[:-1] &= down
    return float(lonely.mean())


def _dithering(cells: Real) -> float:
    detail = cells - ndimage.uniform_filter(cells, (3, 3, 1), mode="nearest")
    power = np.einsum("...c,...c->...", detail, detail)
    strength = np.sqrt(power)
    active = (strength > 0.01) & (ndimage.maximum_filter(strength, 5) < 0.08)
    y, x = np.indices(power.shape) % 2 * 2 - 1
    around = [ndimage.uniform_filter(detail * c[..., None], (5, 5, 1), mode="constant") for c in (x * y, x, y)]
    coherent = np.max([np.einsum("...c,...c->...", a, a) for a in around], axis=0)
    ordered = active & (coherent > 0.35 * ndimage.uniform_filter(power, 5, mode="constant"))
    quality = ordered.sum() / max(active.sum(), 1)
    return float(100 * (1 - np.clip((active.mean() - 0.05) / 0.3, 0, 1) * (1 - quality)))


def _dominant(cells: Real, mask: Mask) -> Real:
    """Mean of the fullest bin of 1/16 a side; black of nothing."""
    flat = cells[mask]
    if not len(flat):
        return np.zeros(3, np.float32)
    bins = np.floor(flat * 16).astype(np.int64) + 32
    _, which, counts = np.unique(
        (bins[:, 0] * 64 + bins[:, 1]) * 64 + bins[:, 2], return_inverse=True, return_counts=True
    )
    return np.asarray(flat[which == counts.argmax()].mean(0))


def _code(small: Bytes, mask: Mask, cells: Real, colour: Real) -> str | None:
    """Hex code of the cell of a region that is nearest to a colour."""
    if not mask.any():
        return None
    nearest = small[mask][int(_length(cells[mask] - colour).argmin())]
    return "#" + "".join(f"{v:02x}" for v in nearest)


def _accuracy(small: Bytes, mask: Mask, codes: tuple[str, ...]) -> float | None:
    """0.6 of how near the region's median colour is to the promised ones, 0.4 of the share of cells near them."""
    if not codes:
        return None
    if not mask.any():
        return 0.0
    wanted = cielab(np.array([[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in codes], np.uint8))
    region = cielab(small[mask])
    apart = ciede2000(region[:, None], wanted[None]).min(1)
    middle = float(ciede2000(np.median(region, axis=0)[None], wanted).min())
    return float(60 * np.exp(-((max(0.0, middle - 2.3) / 12) ** 1.3)) + 40 * (apart <= 10).mean())
