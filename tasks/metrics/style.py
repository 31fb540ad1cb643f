"""Measure how much a picture is pixel art: sharpness, cell purity, photorealism, dithering.

The thresholds were tuned by hand on the labelled pictures of `benchmarks.metrics`, seeds 0, 3 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.colour import UNIT
from tasks.metrics.grid import Grid, amid_cells, cell_of_pixels
from tasks.metrics.scan import STEP, Scan, step

_STEP_STRENGTH = (0.035, 0.07)  # mean visible step, OKLab: JPEG blocks lie below, drawn edges above
_EVENNESS_RANGE = (0.40, 0.65)  # `Grid.evenness`: layouts of large shapes lie below, art drawn cell by cell above
_UNEVEN_LOSS = 0.38  # of purity for uneven grids; not more, because patterned backgrounds are uneven too
_WRONG_COLOUR = 410  # 0.1 in OKLab: a pixel this far from its cell's colour belongs to another shape
_CUT_CELLS = (0.008, 0.02)
"""Wrong pixels in the middle of cells, per visible cell border. Drawn pixel art has up to 0.01."""

_CUT_LOSS = 0.6  # of purity where shapes cut through cells
_CHANCE_CONFIDENCE = 0.15
"""Grid confidence that smooth pictures reach by chance."""

_TEXTURE_CONTRAST = (0.0075, 0.12)  # OKLab: weaker is flat, stronger are the outlines and features of sprites
_DENSE_NEIGHBOURS = 20  # of the 25 cells around: texture fills an area, the detail of a face does not
_ORDERED_SHARE = 0.30  # share of a cell's detail that one checkered carrier must explain; noise has less
_STRAY_DISTANCE = 123  # 0.03 in OKLab: just more than a visible step


@dataclass(frozen=True)
class Style:
    """Hold style figures of B pictures, each (B,). The first four are scores, 0-100; the last four are shares, 0-1.

    Attributes:
        sharpness: edges are completed within one pixel.
        purity: edges lie on a grid and are sharp, and cells are flat.
        photorealism: smooth gradients and soft edges without a grid; lower is better.
        dithering: 100 for no texture or an ordered one, 0 for noise.
        agreement: pixels that have their cell's colour, up to a just visible difference.
        stray: cells unlike all four neighbours.
        gradient: neighbouring pixels with a small step, as in gradients, smoothing and grain.
        antialiased: size of visible transitions not completed within one pixel.
    """

    sharpness: Tensor
    purity: Tensor
    photorealism: Tensor
    dithering: Tensor
    agreement: Tensor
    stray: Tensor
    gradient: Tensor
    antialiased: Tensor


def measure_style(scan: Scan, grid: Grid, cells: Tensor, valid: Tensor) -> Style:
    """Measure the style of B pictures.

    Args:
        scan: the pictures' pixels.
        grid: their grids.
        cells: (B, 3, N, N) their cell maps in OKLab, whole units.
        valid: (B, N, N) cells inside the picture.
    """
    sharp = ((scan.one_step - 0.40) / 0.50).clamp(0, 1)
    # The blocks of a strongly compressed photograph are a grid too, but a faint one.
    faint, clear = _STEP_STRENGTH
    strong = ((scan.visible_step - faint) / (clear - faint)).clamp(0, 1)
    uneven, even = _EVENNESS_RANGE
    drawn = 1 - _UNEVEN_LOSS * (1 - ((grid.evenness - uneven) / (even - uneven)).clamp(0, 1))
    residual = step(scan.lattice, cell_of_pixels(cells, grid, scan.rows, scan.columns))
    across, down = _differ(cells, valid)
    # Curves and slants of vector art cut through cells, even if its corners lie on a grid.
    wrong = _share(residual > _WRONG_COLOUR, amid_cells(grid, scan.rows, scan.columns))
    edges = (across.sum((1, 2)) + down.sum((1, 2))).double() / valid.sum((1, 2)).clamp_min(1)
    clean, cut = _CUT_CELLS
    whole = 1 - _CUT_LOSS * ((wrong / edges.clamp_min(1e-6) - clean) / (cut - clean)).clamp(0, 1)
    gridded = ((grid.confidence - _CHANCE_CONFIDENCE) / 0.5).clamp(0, 1) * strong * drawn * whole * grid.found
    flat = (1 - residual.sum((1, 2)).double() / residual[0].numel() / (0.1 * UNIT)).clamp(0, 1)
    # A weighted geometric mean, so that no grid means no purity, however sharp the edges are.
    purity = gridded**0.7 * sharp**0.1 * flat**0.2
    # A logistic of three signs of a photograph: gradients, soft edges, no grid. Coefficients are tuned by hand.
    smooth = ((scan.gradient - 0.02) / 0.33).clamp(0, 1)
    photo = torch.sigmoid(1.6 * (3.2 * smooth + 2 * (1 - sharp) + 1.5 * (1 - gridded) - 3.7))
    return Style(
        100 * sharp, 100 * purity, 100 * photo, 100 * _dithering(cells, valid),
        (residual <= STEP).sum((1, 2)).double() / residual[0].numel(), _stray_share(across, down, valid), scan.gradient,
        1 - scan.one_step,
    )  # fmt: skip


def _differ(cells: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Return which cells differ from the next one to the right (B, N, N-1) and below (B, N-1, N)."""
    across = (step(cells[..., 1:], cells[..., :-1]) > _STRAY_DISTANCE) & valid[..., 1:] & valid[..., :-1]
    down = (step(cells[..., 1:, :], cells[..., :-1, :]) > _STRAY_DISTANCE) & valid[..., 1:, :] & valid[..., :-1, :]
    return across, down


def _stray_share(across: Tensor, down: Tensor, valid: Tensor) -> Tensor:
    """Return the share of cells unlike all of their four neighbours, (B,)."""
    lonely = valid.clone()
    lonely[..., 1:] &= across | ~valid[..., :-1]
    lonely[..., :-1] &= across | ~valid[..., 1:]
    lonely[..., 1:, :] &= down | ~valid[..., :-1, :]
    lonely[..., :-1, :] &= down | ~valid[..., 1:, :]
    return _share(lonely, valid)


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Return the share of `whole` (B, R, C) that `part` covers, (B,)."""
    return (part & whole).sum((1, 2)).double() / whole.sum((1, 2)).clamp_min(1)


def _dithering(cells: Tensor, valid: Tensor) -> Tensor:
    """Return 1 for no texture or an ordered one, down to 0 for noise, (B,).

    An ordered dither repeats every second cell. Its detail, multiplied by one of three checkered carriers, therefore
    keeps its sign over a neighbourhood (Ulichney 1987). Noise does not.
    """
    exact = cells.double()  # sums of whole numbers: the same in any order
    padded = F.pad(exact, (1, 1, 1, 1), mode="replicate")
    detail = 9 * exact - F.avg_pool2d(padded, 3, 1, divisor_override=1)
    power = detail.square().sum(1)
    strength = power.sqrt() / (9 * UNIT)
    fine, coarse = _TEXTURE_CONTRAST
    lively = valid & (strength > fine) & (strength < coarse)
    # Texture fills an area; the detail of a face does not.
    active = lively & (F.avg_pool2d(lively[:, None].double(), 5, 1, 2, divisor_override=1)[:, 0] >= _DENSE_NEIGHBOURS)
    sign = 1 - 2 * (torch.arange(cells.shape[2], device=cells.device) % 2).double()
    carriers = (sign[:, None] * sign[None, :], sign[None, :].expand(len(sign), -1), sign[:, None].expand(-1, len(sign)))
    around = [F.avg_pool2d(detail * c, 5, 1, 2, divisor_override=1).square().sum(1) for c in carriers]
    total = 25 * F.avg_pool2d(power[:, None], 5, 1, 2, divisor_override=1)[:, 0]
    ordered = active & (torch.stack(around).amax(0) > _ORDERED_SHARE * total)
    textured = active.sum((1, 2)).double()
    quality = ordered.sum((1, 2)) / textured.clamp_min(1)
    amount = textured / valid.sum((1, 2)).clamp_min(1)
    # A little texture costs nothing; from a third of the picture on, only its order counts.
    blame = ((amount - 0.05) / 0.30).clamp(0, 1)
    calmness: Tensor = 1 - blame * (1 - quality)
    return calmness
