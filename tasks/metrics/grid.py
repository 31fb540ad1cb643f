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

from tasks.metrics.scan import Scan

_FALLBACK_CELLS = 32
_INSET = 0.22
_NEAR = 0.93
_MULTIPLE = 0.87
_LOOSE = 0.97  # what a comb that forgives a pixel is worth
_LOOSE_FROM = 5.0
_LOOSE_LINES = 15  # on fewer it would fit anything


@dataclass(frozen=True)
class Grid:
    """One grid a picture, each (B,).

    Attributes:
        scale: size of an art pixel in pixels; of a stand-in grid where none was found.
        left, top: where the first whole cell starts, in pixels.
        confidence: 0-1, edge energy on the grid beyond chance.
        evenness: lines that hold the energy, effectively, as a share of the lines between the first and the last:
            art drawn cell by cell uses them alike, a layout of large shapes does not.
        found: False where there is no grid.
    """

    scale: Tensor
    left: Tensor
    top: Tensor
    confidence: Tensor
    evenness: Tensor
    found: Tensor


@dataclass(frozen=True)
class Comb:
    """All combs for one side length.

    Attributes:
        lines: (K, L) float64, 2 where a comb has a line, 1 beside one in its loose version, 0 elsewhere.
        scale, offset: (K,) float64.
        which: (K,) index of the scale in the list of scales.
        chance: (K,) share of energy that falls on it by chance.
        worth: (K,) factor on its score.
    """

    lines: Tensor
    scale: Tensor
    offset: Tensor
    which: Tensor
    chance: Tensor
    worth: Tensor


def detect_grid(scan: Scan) -> Grid:
    """Find each picture's grid; whole numbers as far as the score, so that no batch or device changes it."""
    device = scan.energy_across.device
    width, height = scan.energy_across.shape[1] + 1, scan.energy_down.shape[1] + 1
    scales = _scales(width, height)
    sides = [_comb(width, scales, device), _comb(height, scales, device)]
    energies = [_Energy.of(lines) for lines in (scan.energy_across, scan.energy_down)]
    kappas = [_on_combs(e, c) for e, c in zip(energies, sides, strict=True)]
    totals = [e.total for e in energies]
    best = [_best_offsets(k, c.which, len(scales)) for k, c in zip(kappas, sides, strict=True)]
    weight = (totals[0] + totals[1]).clamp_min(1)[:, None]
    score = ((best[0] * totals[0][:, None] + best[1] * totals[1][:, None]) / weight).clamp_min(0)  # (B, S)
    # Divisors of the true scale score as well, multiples lose half: take the largest near the best.
    best_score, best_place = score.max(1, keepdim=True)
    sizes = torch.tensor(scales, device=device, dtype=torch.float64)
    multiple = sizes >= 1.9 * sizes[best_place]
    near = score >= torch.where(multiple, _MULTIPLE, _NEAR) * best_score
    chosen = torch.where(near, torch.arange(len(scales), device=device), -1).amax(1)
    confidence = score.gather(1, chosen[:, None])[:, 0].clamp(0, 1)
    scale = sizes[chosen]
    left, top = (_offset(k, c, chosen) for k, c in zip(kappas, sides, strict=True))
    found = (confidence > 0.22) & (scale >= 3)
    stand_in = max(1.0, max(width, height) / _FALLBACK_CELLS)
    return Grid(
        torch.where(found, scale, stand_in), torch.where(found, left, 0.0), torch.where(found, top, 0.0),
        confidence, torch.stack([e.effective * scale / e.extent for e in energies]).mean(0), found,
    )  # fmt: skip


def sample_cells(pixels: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The picture at its native size: each cell's colour, the median of nine places inside it.

    Args:
        pixels: (B, 3, H, W) uint8.

    Returns:
        Colours (B, 3, N, N) uint8 and which cells lie in the picture (B, N, N); N suits the picture with the
        most cells.
    """
    height, width = pixels.shape[2:]
    most = math.ceil(max(height, width) / float(grid.scale.min())) + 1
    size = -(-most // 8) * 8
    x, valid_x = _centres(grid.scale, grid.left, width, size)
    y, valid_y = _centres(grid.scale, grid.top, height, size)
    inset = (grid.scale * _INSET)[:, None]
    flat = pixels.flatten(2)
    places = []
    for dy in (-1, 0, 1):
        rows = _index(y + dy * inset, height) * width
        for dx in (-1, 0, 1):
            index = (rows[:, :, None] + _index(x + dx * inset, width)[:, None, :]).flatten(1)
            places.append(flat.gather(2, index[:, None].expand(-1, 3, -1)))
    colours = torch.stack(places).median(0).values.view(len(pixels), 3, size, size)
    return colours, valid_y[:, :, None] & valid_x[:, None, :]


def cell_of_pixels(cells: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """The colour of the cell that pixels lie in.

    Args:
        cells: (B, 3, N, N).
        rows, columns: the pixels' places, (R,) and (C,).

    Returns:
        (B, 3, R, C).
    """
    size = cells.shape[2]
    y, x = (
        ((place + 0.5 - _first(start, grid.scale)[:, None]) / grid.scale[:, None]).floor().long().clamp(0, size - 1)
        for place, start in ((rows, grid.top), (columns, grid.left))
    )
    index = (y[:, :, None] * size + x[:, None, :]).flatten(1)
    found = cells.flatten(2).gather(2, index[:, None].expand(-1, 3, -1))
    return found.view(len(cells), 3, len(rows), len(columns))


@dataclass(frozen=True)
class _Energy:
    """Edge energy of B pictures along one axis.

    Attributes:
        lines: (B, L) float64 of whole numbers.
        total: (B,) their sums.
        effective: (B,) how many lines hold it, effectively.
        extent: (B,) pixels from the first line with any to the last, at least 1.
    """

    lines: Tensor
    total: Tensor
    effective: Tensor
    extent: Tensor

    @classmethod
    def of(cls, energy: Tensor) -> _Energy:
        # Less the texture that every line has.
        profile = (energy - energy.median(1, keepdim=True).values * 9 // 8).clamp_min(0)
        lines = profile.double()
        total = lines.sum(1)
        place = torch.arange(profile.shape[1], device=profile.device)
        first = torch.where(profile > 0, place, profile.shape[1]).amin(1)
        last = torch.where(profile > 0, place, -1).amax(1)
        effective = total**2 / lines.square().sum(1).clamp_min(1)
        return cls(lines, total, effective, (last - first).clamp_min(1).double())


def _on_combs(energy: _Energy, comb: Comb) -> Tensor:
    """Share of energy on each comb beyond chance, (B, K)."""
    on_comb = energy.lines @ comb.lines.T / 2 / energy.total.clamp_min(1)[:, None]  # whole numbers: exact
    kappa = (on_comb - comb.chance) / (1 - comb.chance) * comb.worth
    # Few edges prove nothing: shrink by how many there effectively are.
    return kappa * (energy.effective / (energy.effective + 3))[:, None]


@functools.lru_cache(maxsize=16)
def _scales(width: int, height: int) -> tuple[float, ...]:
    """Candidate sizes of an art pixel: whole numbers, and the side over a whole number of cells."""
    side = max(width, height)
    whole = {float(s) for s in range(2, max(5, min(max(44, side // 12), side // 4) + 1))}
    parts = {side / n for n in range(12, 171) if side / n >= 3}
    return tuple(sorted(whole | {s for s in parts if abs(s - round(s)) > 1e-9}))


@functools.lru_cache(maxsize=16)
def _comb(side: int, scales: tuple[float, ...], device: torch.device) -> Comb:
    line = torch.arange(1, side, dtype=torch.float64)
    rows, described = [], []
    for which, s in enumerate(scales):
        reach = 0.25 if s == round(s) else 0.5 + 1e-9  # a fractional line falls on the nearest pixel border
        for offset in range(math.ceil(s)):
            phase = torch.remainder(line - offset, s)
            strict = (torch.minimum(phase, s - phase) <= reach).double() * 2
            rows.append(strict)
            described.append((s, offset, which, 1.0))
            if s >= _LOOSE_FROM and side >= _LOOSE_LINES * s:  # drawn grids wobble by a pixel
                beside = torch.zeros_like(strict)
                beside[1:] = strict[:-1] / 2
                beside[:-1] = torch.maximum(beside[:-1], strict[1:] / 2)
                rows.append(torch.maximum(strict, beside))
                described.append((s, offset, which, _LOOSE))
    lines = torch.stack(rows)
    scale, start, index, worth = torch.tensor(described, dtype=torch.float64).T
    parts = (lines, scale, start, index.long(), lines.mean(1) / 2, worth)
    return Comb(*(part.to(device) for part in parts))


def _best_offsets(kappa: Tensor, which: Tensor, scales: int) -> Tensor:
    """The best offset's value for each scale, (B, S)."""
    start = torch.full((len(kappa), scales), -1.0, device=kappa.device, dtype=kappa.dtype)
    return start.scatter_reduce(1, which.expand(len(kappa), -1), kappa, "amax")


def _offset(kappa: Tensor, comb: Comb, chosen: Tensor) -> Tensor:
    """The offset of the best comb of the chosen scale, (B,); of equals the first."""
    ours = torch.where(comb.which[None] == chosen[:, None], kappa, -math.inf)
    rank = torch.arange(kappa.shape[1], device=kappa.device)
    first = torch.where(ours == ours.amax(1, keepdim=True), rank, len(rank)).amin(1)
    return comb.offset[first]


def _first(offset: Tensor, scale: Tensor) -> Tensor:
    """Where the first cell starts: a large part of a cell at the border counts as one."""
    return torch.where(offset >= 0.35 * scale, offset - scale, offset)


def _centres(scale: Tensor, offset: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Centres of `size` cells along one axis (B, N), and which lie in the picture."""
    number = torch.arange(size, device=scale.device) + 0.5
    centre = _first(offset, scale)[:, None] + number * scale[:, None]
    return centre, (centre > -0.5) & (centre < side - 0.35 * scale[:, None] + 0.5) & (centre < side)


def _index(place: Tensor, side: int) -> Tensor:
    return place.floor().long().clamp(0, side - 1)
