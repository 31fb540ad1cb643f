"""How much a picture is pixel art: sharpness, cell purity, photorealism, dithering."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.colour import UNIT
from tasks.metrics.grid import STEP, Edges, Grid, cell_of_pixels, step

_PEAK = 164  # 0.04
_SLACK = 41
_SMOOTH = (16, 164)  # 0.004 to 0.04
_STRENGTH = (0.035, 0.07)
_EVENNESS = (0.40, 0.65)
_UNEVEN_LOSS = 0.38  # patterned backgrounds are uneven too
_CHANCE = 0.15
"""Grid confidence that smooth pictures reach by chance."""

_TEXTURE = (0.0075, 0.25)
_DENSE = 18
_ORDER = 0.30
_STRAY = 123  # 0.03
_LATTICE = 256
"""Pixels a side that are compared with their cells: more would tell no more."""


@dataclass(frozen=True)
class Style:
    """Style figures of B pictures, each (B,), 0-100; lower is better of photorealism; the last four are shares, 0-1.

    Attributes:
        purity: edges lie on a grid, are sharp, and cells are flat.
        agreement: pixels that have their cell's colour, within what is just seen.
        stray: cells unlike all four neighbours.
        gradient: neighbouring pixels with a small but visible step: gradients, smoothing and grain live there.
        antialiased: visible transitions' length that is not done within one pixel.
    """

    sharpness: Tensor
    purity: Tensor
    photorealism: Tensor
    dithering: Tensor
    agreement: Tensor
    stray: Tensor
    gradient: Tensor
    antialiased: Tensor


def measure_style(lab: Tensor, edges: Edges, grid: Grid, cells: Tensor, valid: Tensor) -> Style:
    """Measure style.

    Args:
        lab: OKLab pictures (B, 3, H, W) in whole units.
        cells: their cell maps (B, 3, N, N), with the cells inside the picture (B, N, N).
    """
    one_step = _one_step_share(edges)
    sharp = ((one_step - 0.40) / 0.50).clamp(0, 1)
    # The blocks of a much compressed photograph are a grid too, but a faint one.
    faint, clear = _STRENGTH
    strong = ((_visible_step(edges) - faint) / (clear - faint)).clamp(0, 1)
    uneven, even = _EVENNESS
    drawn = 1 - _UNEVEN_LOSS * (1 - ((grid.evenness - uneven) / (even - uneven)).clamp(0, 1))
    gridded = ((grid.confidence - _CHANCE) / 0.5).clamp(0, 1) * strong * drawn * grid.found
    residual = cell_residual(lab, grid, cells)
    flat = (1 - _total(residual).double() / residual[0].numel() / (0.1 * UNIT)).clamp(0, 1)
    purity = gridded**0.7 * sharp**0.1 * flat**0.2
    gradient = _gradient_share(edges)
    smooth = ((gradient - 0.02) / 0.33).clamp(0, 1)
    photo = torch.sigmoid(1.6 * (3.2 * smooth + 2 * (1 - sharp) + 1.5 * (1 - gridded) - 3.7))
    return Style(
        100 * sharp, 100 * purity, 100 * photo, 100 * _dithering(cells, valid),
        _total(residual <= STEP).double() / residual[0].numel(), stray_share(cells, valid), gradient, 1 - one_step,
    )  # fmt: skip


def cell_residual(lab: Tensor, grid: Grid, cells: Tensor) -> Tensor:
    """How far pixels are from their cell's colour, (B, R, C) int32 in OKLab units, on a lattice of pixels."""
    rows, columns = (
        torch.arange(0, side, max(1, side // _LATTICE), device=lab.device) for side in (lab.shape[2], lab.shape[3])
    )
    seen = lab[:, :, :: max(1, lab.shape[2] // _LATTICE), :: max(1, lab.shape[3] // _LATTICE)]
    return step(seen, cell_of_pixels(cells, grid, rows, columns))


def stray_share(cells: Tensor, valid: Tensor) -> Tensor:
    """Share of cells that none of their four neighbours resembles, (B,)."""
    lonely = valid.clone()
    for dim in (2, 3):
        differ = step(cells.narrow(dim, 1, cells.shape[dim] - 1), cells.narrow(dim, 0, cells.shape[dim] - 1)) > _STRAY
        rest = cells.shape[dim] - 1
        lonely.narrow(dim - 1, 1, rest).logical_and_(differ | ~valid.narrow(dim - 1, 0, rest))
        lonely.narrow(dim - 1, 0, rest).logical_and_(differ | ~valid.narrow(dim - 1, 1, rest))
    return lonely.sum((1, 2)).double() / valid.sum((1, 2)).clamp_min(1)


def _one_step_share(edges: Edges) -> Tensor:
    """Share of each visible transition that is completed within one pixel, weighted by its size, (B,)."""
    done, walked = (a + b for a, b in zip(_peaks(edges.across), _peaks(edges.down.transpose(1, 2)), strict=True))
    return done.double() / walked.double().clamp_min(1)


def _peaks(steps: Tensor) -> tuple[Tensor, Tensor]:
    left, middle, right = steps[:, :, :-2], steps[:, :, 1:-1], steps[:, :, 2:]
    peak = ((middle >= left) & (middle >= right) & (middle > _PEAK)).int()
    done = _total(middle * peak)
    beside = (left - _SLACK).clamp_min_(0) + (right - _SLACK).clamp_min_(0)
    return done, done + _total(beside * peak)


def _visible_step(edges: Edges) -> Tensor:
    """Mean OKLab distance of the steps that are seen, (B,)."""
    seen = [(e > STEP).int() for e in (edges.across, edges.down)]
    total = sum(_total(e * s) for e, s in zip((edges.across, edges.down), seen, strict=True))
    count = sum(_total(s) for s in seen)
    return torch.as_tensor(total).double() / torch.as_tensor(count).clamp_min(1) / UNIT


def _gradient_share(edges: Edges) -> Tensor:
    """Share of neighbouring pixels with a small but visible step, (B,)."""
    low, high = _SMOOTH
    shares = [_total((e >= low) & (e < high)).double() / e[0].numel() for e in (edges.across, edges.down)]
    return (shares[0] + shares[1]) / 2


def _total(values: Tensor) -> Tensor:
    """Sums (B,) of (B, H, W); rows fit an int32, which spares a wider copy."""
    return values.sum(2, dtype=torch.int32).sum(1)


def _dithering(cells: Tensor, valid: Tensor) -> Tensor:
    """1 for no texture or an ordered one, 0 for noise, (B,).

    An ordered dither repeats every second cell: its detail, multiplied by one of three checkered carriers,
    keeps its sign over a neighbourhood (Ulichney 1987). Noise does not.
    """
    exact = cells.double()  # sums of whole numbers: the same in any order
    padded = F.pad(exact, (1, 1, 1, 1), mode="replicate")
    detail = 9 * exact - F.avg_pool2d(padded, 3, 1, divisor_override=1)
    power = detail.square().sum(1)
    strength = power.sqrt() / (9 * UNIT)
    fine, coarse = _TEXTURE
    lively = valid & (strength > fine) & (strength < coarse)
    # Texture fills an area; the detail of a face does not.
    active = lively & (F.avg_pool2d(lively[:, None].double(), 5, 1, 2, divisor_override=1)[:, 0] >= _DENSE)
    sign = 1 - 2 * (torch.arange(cells.shape[2], device=cells.device) % 2).double()
    carriers = (sign[:, None] * sign[None, :], sign[None, :].expand(len(sign), -1), sign[:, None].expand(-1, len(sign)))
    around = [F.avg_pool2d(detail * c, 5, 1, 2, divisor_override=1).square().sum(1) for c in carriers]
    total = 25 * F.avg_pool2d(power[:, None], 5, 1, 2, divisor_override=1)[:, 0]
    ordered = active & (torch.stack(around).amax(0) > _ORDER * total)
    textured = active.sum((1, 2)).double()
    quality = ordered.sum((1, 2)) / textured.clamp_min(1)
    amount = textured / valid.sum((1, 2)).clamp_min(1)
    # Little texture is no fault; beyond a third of the picture only its order counts.
    blame = ((amount - 0.05) / 0.30).clamp(0, 1)
    calmness: Tensor = 1 - blame * (1 - quality)
    return calmness
