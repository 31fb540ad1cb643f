"""How much a picture is pixel art: sharpness, cell purity, photorealism, dithering."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.grid import STEP, Edges, Grid, cell_of_pixels

_PEAK = 0.04
_SLACK = 0.01
_SMOOTH = (0.004, 0.04)
_CHANCE = 0.15
"""Grid confidence that smooth pictures reach by chance."""


@dataclass(frozen=True)
class Style:
    """Style figures of B pictures, each (B,), 0-100; photorealism: lower is better; stray: a share, 0-1."""

    sharpness: Tensor
    purity: Tensor
    photorealism: Tensor
    dithering: Tensor
    stray: Tensor


def measure_style(lab: Tensor, edges: Edges, grid: Grid, cells: Tensor, valid: Tensor) -> Style:
    """Measure style.

    Args:
        lab: OKLab pictures (B, 3, H, W).
        cells: their cell maps (B, 3, N, N), with the cells inside the picture (B, N, N).
    """
    sharp = ((_one_step_share(edges) - 0.40) / 0.50).clamp(0, 1)
    gridded = ((grid.confidence - _CHANCE) / 0.5).clamp(0, 1) * grid.found
    flat = cell_flatness(lab, grid, cells)
    purity = gridded**0.7 * sharp**0.1 * flat**0.2
    gradient = ((_gradient_share(edges) - 0.02) / 0.33).clamp(0, 1)
    photo = torch.sigmoid(1.6 * (3.2 * gradient + 2 * (1 - sharp) + 1.5 * (1 - gridded) - 3.5))
    return Style(100 * sharp, 100 * purity, 100 * photo, 100 * _dithering(cells, valid), stray_share(cells, valid))


def cell_flatness(lab: Tensor, grid: Grid, cells: Tensor) -> Tensor:
    """1 where each pixel has its cell's colour, 0 where it is 0.1 OKLab away on average, (B,)."""
    height, width = lab.shape[2:]
    residual = torch.linalg.vector_norm(lab - cell_of_pixels(cells, grid, height, width), dim=1).mean((1, 2))
    flatness: Tensor = (1 - residual / 0.1).clamp(0, 1)
    return flatness


def stray_share(cells: Tensor, valid: Tensor) -> Tensor:
    """Share of cells that none of their four neighbours resembles, (B,)."""
    padded = F.pad(cells, (1, 1, 1, 1), value=torch.inf)
    size = cells.shape[2]
    around = [padded[:, :, y : y + size, x : x + size] for y, x in ((0, 1), (2, 1), (1, 0), (1, 2))]
    nearest = torch.stack([torch.linalg.vector_norm(cells - a, dim=1) for a in around]).amin(0)
    lonely = valid & (nearest > 1.5 * STEP)
    return lonely.sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)


def _one_step_share(edges: Edges) -> Tensor:
    """Share of each visible transition that is completed within one pixel, weighted by its size, (B,)."""
    parts = [_peaks(edges.across), _peaks(edges.down.transpose(1, 2))]
    done, walked = (sum(part[i] for part in parts) for i in range(2))
    return torch.as_tensor(done / torch.as_tensor(walked).clamp_min(1e-6))


def _peaks(steps: Tensor) -> tuple[Tensor, Tensor]:
    left, middle, right = steps[:, :, :-2], steps[:, :, 1:-1], steps[:, :, 2:]
    peak = (middle >= left) & (middle >= right) & (middle > _PEAK)
    walked = middle + (left - _SLACK).clamp_min(0) + (right - _SLACK).clamp_min(0)
    return (middle * peak).sum((1, 2)), (walked * peak).sum((1, 2))


def _gradient_share(edges: Edges) -> Tensor:
    """Share of neighbouring pixels with a small but visible step: gradients, smoothing and grain live there."""
    low, high = _SMOOTH
    shares = [((e >= low) & (e < high)).float().mean((1, 2)) for e in (edges.across, edges.down)]
    return (shares[0] + shares[1]) / 2


def _dithering(cells: Tensor, valid: Tensor) -> Tensor:
    """1 for no texture or an ordered one, 0 for noise, (B,).

    An ordered dither repeats every second cell: its detail, multiplied by one of three checkered carriers,
    keeps its sign over a neighbourhood (Ulichney 1987). Noise does not.
    """
    detail = cells - F.avg_pool2d(F.pad(cells, (1, 1, 1, 1), mode="replicate"), 3, 1)
    strength = torch.linalg.vector_norm(detail, dim=1)
    # Texture, not the detail of a face: fine steps far from any strong one.
    calm = F.max_pool2d(strength[:, None], 5, 1, 2)[:, 0] < 0.08
    active = valid & calm & (strength > STEP / 2)
    sign = 1 - 2 * (torch.arange(cells.shape[2], device=cells.device) % 2).float()
    carriers = (sign[:, None] * sign[None, :], sign[None, :].expand(len(sign), -1), sign[:, None].expand(-1, len(sign)))
    local = [F.avg_pool2d(detail * carrier, 5, 1, 2).square().sum(1) for carrier in carriers]
    power = F.avg_pool2d(detail.square().sum(1, keepdim=True), 5, 1, 2)[:, 0].clamp_min(1e-9)
    ordered = active & (torch.stack(local).amax(0) / power > 0.35)
    textured = active.sum((1, 2)).float()
    quality = ordered.sum((1, 2)) / textured.clamp_min(1)
    amount = textured / valid.sum((1, 2)).clamp_min(1)
    # Little texture is no fault; beyond a third of the picture only its order counts.
    blame = ((amount - 0.05) / 0.30).clamp(0, 1)
    calmness: Tensor = 1 - blame * (1 - quality)
    return calmness
