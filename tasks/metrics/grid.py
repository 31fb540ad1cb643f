"""The pixel grid: size and phase of art pixels, also when they are not whole numbers.

Pixel art has its edges on a comb of equally spaced lines. How much edge energy lies on a comb, beyond what
chance would put there, tells both which comb it is and how clean the art is.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

STEP = 0.02
"""OKLab distance that is just seen."""

_CAP = 0.125  # an edge counts up to here: one strong contour must not decide
_CELLS = 64
_FALLBACK_CELLS = 32
_INSET = 0.22


@dataclass(frozen=True)
class Edges:
    """Steps between neighbouring pixels in OKLab: across columns (B, H, W-1) and rows (B, H-1, W)."""

    across: Tensor
    down: Tensor

    @classmethod
    def of(cls, lab: Tensor) -> Edges:
        """Edges of OKLab pictures (B, 3, H, W)."""
        return cls(lab.diff(dim=3).norm(dim=1), lab.diff(dim=2).norm(dim=1))


@dataclass(frozen=True)
class Grid:
    """One grid a picture, each (B,).

    Attributes:
        scale: size of an art pixel in pixels; of a stand-in grid where none was found.
        left, top: where the first whole cell starts, in pixels.
        confidence: 0-1, edge energy on the grid beyond chance.
        found: False where there is no grid.
    """

    scale: Tensor
    left: Tensor
    top: Tensor
    confidence: Tensor
    found: Tensor


@dataclass(frozen=True)
class Comb:
    """All combs for one side length: lines (K, L) with weights, and scale, offset of each (K,)."""

    lines: Tensor
    scale: Tensor
    offset: Tensor
    chance: Tensor


def detect_grid(edges: Edges, height: int, width: int) -> Grid:
    """Find each picture's grid."""
    columns, rows = _profile(edges.across, 1), _profile(edges.down, 2)  # (B, W-1), (B, H-1)
    scales = _scales(width, height)
    per_axis = []
    for profile, side in ((columns, width), (rows, height)):
        comb = _comb(side, scales, edges.across.device)
        total = profile.sum(1, keepdim=True).clamp_min(1e-6)
        on_comb = (profile @ comb.lines.T) / total  # (B, K)
        kappa = (on_comb - comb.chance) / (1 - comb.chance)
        # Few edges prove nothing: shrink by how many there effectively are.
        effective = total[:, 0] ** 2 / (profile**2).sum(1).clamp_min(1e-9)
        per_axis.append((kappa * (effective / (effective + 3))[:, None], total, comb))
    (kx, wx, comb), (ky, wy, _) = per_axis
    which = torch.searchsorted(torch.tensor(scales), comb.scale.cpu()).to(kx.device)  # (K,)
    best_x, best_y = _best_offsets(kx, which, len(scales)), _best_offsets(ky, which, len(scales))
    score = ((best_x * wx + best_y * wy) / (wx + wy)).clamp_min(0)  # (B, S)
    # Divisors of the true scale score as well, multiples lose half: take the largest near the best.
    near = score >= 0.93 * score.amax(1, keepdim=True)
    chosen = torch.where(near, torch.arange(len(scales), device=score.device), -1).amax(1)
    confidence = score.gather(1, chosen[:, None])[:, 0].clamp(0, 1)
    scale = torch.tensor(scales, device=score.device)[chosen]
    ours = which[None] == chosen[:, None]
    left, top = (comb.offset[torch.where(ours, k, -math.inf).argmax(1)] for k in (kx, ky))
    found = (confidence > 0.22) & (scale >= 3)
    stand_in = max(1.0, max(width, height) / _FALLBACK_CELLS)
    return Grid(
        torch.where(found, scale, stand_in), torch.where(found, left, 0.0), torch.where(found, top, 0.0),
        confidence, found,
    )  # fmt: skip


def sample_cells(picture: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The picture at its native size: each cell's colour, the median of nine places inside it.

    Args:
        picture: (B, 3, H, W) in any colour space.

    Returns:
        Colours (B, 3, N, N) and which cells lie in the picture (B, N, N).
    """
    height, width = picture.shape[2:]
    x, valid_x = _centres(grid.scale, grid.left, width)
    y, valid_y = _centres(grid.scale, grid.top, height)
    inset = (grid.scale * _INSET)[:, None]
    batch = torch.arange(len(picture), device=picture.device)[:, None, None]
    pixels = picture.permute(0, 2, 3, 1)  # (B, H, W, 3)
    places = [
        pixels[batch, _index(y + dy * inset, height)[:, :, None], _index(x + dx * inset, width)[:, None, :]]
        for dy in (-1, 0, 1) for dx in (-1, 0, 1)
    ]  # fmt: skip
    colours = torch.stack(places).median(0).values  # (B, N, N, 3)
    return colours.permute(0, 3, 1, 2), valid_y[:, :, None] & valid_x[:, None, :]


def cell_of_pixels(cells: Tensor, grid: Grid, height: int, width: int) -> Tensor:
    """The colour of the cell that each pixel lies in, (B, 3, H, W)."""
    first = [torch.where(o >= 0.35 * grid.scale, o - grid.scale, o) for o in (grid.top, grid.left)]
    index = [
        ((torch.arange(side, device=cells.device) + 0.5 - start[:, None]) / grid.scale[:, None])
        .floor().long().clamp(0, cells.shape[2] - 1)
        for start, side in zip(first, (height, width), strict=True)
    ]  # fmt: skip
    batch = torch.arange(len(cells), device=cells.device)[:, None, None]
    return cells.permute(0, 2, 3, 1)[batch, index[0][:, :, None], index[1][:, None, :]].permute(0, 3, 1, 2)


def _profile(edges: Tensor, dim: int) -> Tensor:
    """Edge energy at each line (B, L), less the texture that every line has."""
    energy = (edges - STEP).clamp(0, _CAP).sum(dim)
    return (energy - 1.125 * energy.median(1, keepdim=True).values).clamp_min(0)


@functools.lru_cache(maxsize=16)
def _scales(width: int, height: int) -> tuple[float, ...]:
    """Candidate sizes of an art pixel: whole numbers, and the side over a whole number of cells."""
    side = max(width, height)
    whole = {float(s) for s in range(2, min(44, side // 4) + 1)}
    parts = {side / n for n in range(12, 114) if side / n >= 3}
    return tuple(sorted(whole | {s for s in parts if abs(s - round(s)) > 1e-9}))


@functools.lru_cache(maxsize=16)
def _comb(side: int, scales: tuple[float, ...], device: torch.device) -> Comb:
    line = torch.arange(1, side, dtype=torch.float64)
    rows, scale, offset = [], [], []
    for s in scales:
        reach = 0.25 if s == round(s) else 0.5 + 1e-9  # a fractional line falls on the nearest pixel border
        for o in range(math.ceil(s)):
            phase = torch.remainder(line - o, s)
            rows.append((torch.minimum(phase, s - phase) <= reach).float())
            scale.append(s)
            offset.append(float(o))
    lines = torch.stack(rows).to(device)
    return Comb(lines, torch.tensor(scale, device=device), torch.tensor(offset, device=device), lines.mean(1))


def _best_offsets(kappa: Tensor, which: Tensor, scales: int) -> Tensor:
    """The best offset's value for each scale, (B, S)."""
    start = torch.full((len(kappa), scales), -1.0, device=kappa.device, dtype=kappa.dtype)
    return start.scatter_reduce(1, which.expand(len(kappa), -1), kappa, "amax")


def _centres(scale: Tensor, offset: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Centres of cells along one axis (B, N), and which lie in the picture."""
    first = torch.where(offset >= 0.35 * scale, offset - scale, offset)  # a large part of a cell counts as one
    centre = first[:, None] + (torch.arange(_CELLS, device=scale.device) + 0.5) * scale[:, None]
    return centre, (centre > -0.5) & (centre < side - 0.35 * scale[:, None] + 0.5) & (centre < side)


def _index(place: Tensor, side: int) -> Tensor:
    return place.floor().long().clamp(0, side - 1)
