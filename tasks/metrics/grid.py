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

from tasks.metrics.scan import CAP, LINES, Scan, as_bytes

_FALLBACK_CELLS = 32
_INSET = 0.22
_MIDDLE = 0.36
_NEAR = 0.93
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
class Combs:
    """All combs for one side length: S scales, each at O offsets and one more on either side; K different ones.

    Attributes:
        lines: (L, K) 1 where a comb has a line, else 0.
        place: (S, O + 2) where each scale's combs stand among the K; offsets run from -1.
        chance: (S, O) share of energy that falls on it by chance.
        loose_chance: (S, O) the same if lines beside it count half.
        there: (S, O) which offsets a scale has.
        loose: (S,) which scales are tried with lines beside as well.
    """

    lines: Tensor
    place: Tensor
    chance: Tensor
    loose_chance: Tensor
    there: Tensor
    loose: Tensor


def detect_grid(scan: Scan) -> Grid:
    """Find each picture's grid; whole numbers as far as the score, so that no batch or device changes it."""
    device = scan.energy_across.device
    width, height = scan.energy_across.shape[1] + 1, scan.energy_down.shape[1] + 1
    scales = _scales(width, height)
    energies = [_Energy.of(lines) for lines in (scan.energy_across, scan.energy_down)]
    kappas = [_on_combs(e, _combs(s, scales, device)) for e, s in zip(energies, (width, height), strict=True)]
    totals = [e.total for e in energies]
    best = [kappa.amax(2) for kappa in kappas]
    weight = (totals[0] + totals[1]).clamp_min(1)[:, None]
    score = ((best[0] * totals[0][:, None] + best[1] * totals[1][:, None]) / weight).clamp_min(0)  # (B, S)
    # Divisors of the true scale score as well, multiples lose half: take the largest near the best.
    sizes = torch.tensor(scales, device=device, dtype=torch.float64)
    near = score >= _NEAR * score.amax(1, keepdim=True)
    chosen = torch.where(near, torch.arange(len(scales), device=device), -1).amax(1)
    confidence = score.gather(1, chosen[:, None])[:, 0].clamp(0, 1)
    scale = sizes[chosen]
    left, top = (_offset(kappa, chosen) for kappa in kappas)
    found = (confidence > 0.22) & (scale >= 3)
    stand_in = max(1.0, max(width, height) / _FALLBACK_CELLS)
    return Grid(
        torch.where(found, scale, stand_in), torch.where(found, left, 0.0), torch.where(found, top, 0.0),
        confidence, torch.stack([e.effective * scale / e.extent for e in energies]).mean(0), found,
    )  # fmt: skip


def sample_cells(images: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """The picture at its native size: each cell's colour, the median of nine places inside it.

    Args:
        images: (B, 3, H, W), uint8 or in [0, 1].

    Returns:
        Colours (B, 3, N, N) uint8 and which cells lie in the picture (B, N, N); N suits the picture with the
        most cells.
    """
    height, width = images.shape[2:]
    most = math.ceil(max(height, width) / float(grid.scale.min())) + 1
    size = -(-most // 8) * 8
    x, valid_x = _centres(grid.scale, grid.left, width, size)
    y, valid_y = _centres(grid.scale, grid.top, height, size)
    inset = grid.scale[:, None] * torch.tensor([-_INSET, 0.0, _INSET], device=images.device, dtype=torch.float64)
    rows, columns = (_index(c[:, None] + inset[..., None], s) for c, s in ((y, height), (x, width)))  # (B, 3, N)
    index = (rows[:, :, None, :, None] * width + columns[:, None, :, None, :]).flatten(1)
    places = as_bytes(images.flatten(2).gather(2, index[:, None].expand(-1, 3, -1)))
    colours = _median_of_nine(list(places.view(len(images), 3, 9, size, size).unbind(2)))
    return colours, valid_y[:, :, None] & valid_x[:, None, :]


_MEDIAN = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip


def _median_of_nine(values: list[Tensor]) -> Tensor:
    """Elementwise median of nine tensors, which it overwrites: exchanges that bring it to the middle (Paeth 1990)."""
    for low, high in _MEDIAN:
        a, b = values[low], values[high]
        values[low], values[high] = torch.minimum(a, b), torch.maximum(a, b)
    return values[4]


def cell_of_pixels(cells: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """The colour of the cell that pixels lie in.

    Args:
        cells: (B, 3, N, N).
        rows, columns: the pixels' places, (R,) and (C,).

    Returns:
        (B, 3, R, C).
    """
    size = cells.shape[2]
    y, x = (place.floor().long().clamp(0, size - 1) for place in _in_cells(grid, rows, columns))
    index = (y[:, :, None] * size + x[:, None, :]).flatten(1)
    found = cells.flatten(2).gather(2, index[:, None].expand(-1, 3, -1))
    return found.view(len(cells), 3, len(rows), len(columns))


def amid_cells(grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Which pixels lie in the middle of their cells, off its borders, (B, R, C)."""
    y, x = ((place % 1 - 0.5).abs() < _MIDDLE for place in _in_cells(grid, rows, columns))
    return y[:, :, None] & x[:, None, :]


def _in_cells(grid: Grid, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Where pixels' centres lie, in cells from the first one's corner, (B, R) and (B, C)."""
    y, x = (
        (place + 0.5 - _first(start, grid.scale)[:, None]) / grid.scale[:, None]
        for place, start in ((rows, grid.top), (columns, grid.left))
    )
    return y, x


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
        # Less the texture that every line has; small enough for all of it to be counted exactly.
        profile = (energy - energy.median(1, keepdim=True).values * 9 // 8).clamp_min(0)
        profile = profile >> max(0, (energy.shape[1] * LINES * CAP).bit_length() - 24)
        lines = profile.double()
        total = lines.sum(1)
        place = torch.arange(profile.shape[1], device=profile.device)
        first = torch.where(profile > 0, place, profile.shape[1]).amin(1)
        last = torch.where(profile > 0, place, -1).amax(1)
        effective = total**2 / lines.square().sum(1).clamp_min(1)
        return cls(lines, total, effective, (last - first).clamp_min(1).double())


def _on_combs(energy: _Energy, combs: Combs) -> Tensor:
    """Share of energy on each comb beyond chance, (B, S, O); minus infinity where there is none."""
    held = _dot(energy.lines, combs.lines)[:, combs.place]  # (B, S, O + 2)
    strict, beside = held[..., 1:-1], held[..., :-2] + held[..., 2:]
    total = energy.total.clamp_min(1)[:, None, None]
    kappa = (strict / total - combs.chance) / (1 - combs.chance)
    near = ((strict + beside / 2) / total - combs.loose_chance) / (1 - combs.loose_chance)
    kappa = torch.maximum(kappa, torch.where(combs.loose[:, None], _LOOSE * near, -math.inf))
    # Few edges prove nothing: shrink by how many there effectively are.
    return torch.where(combs.there, kappa * (energy.effective / (energy.effective + 3))[:, None, None], -math.inf)


def _dot(energy: Tensor, lines: Tensor) -> Tensor:
    """Energy (B, L) on each comb (L, K), float64; sums of whole numbers below 2 ** 24 are exact in any order."""
    if energy.is_cuda:  # where float32 may mean TF32
        return energy @ lines.double()
    return (energy.float() @ lines).double()


@functools.lru_cache(maxsize=16)
def _scales(width: int, height: int) -> tuple[float, ...]:
    """Candidate sizes of an art pixel: whole numbers, and the side over a whole number of cells."""
    side = max(width, height)
    whole = {float(s) for s in range(2, max(5, min(max(44, side // 12), side // 4) + 1))}
    parts = {side / n for n in range(12, 171) if side / n >= 3}
    return tuple(sorted(whole | {s for s in parts if abs(s - round(s)) > 1e-9}))


@functools.lru_cache(maxsize=16)
def _combs(side: int, scales: tuple[float, ...], device: torch.device) -> Combs:
    line = torch.arange(1, side, dtype=torch.float64)[:, None]
    most = max(math.ceil(s) for s in scales)
    offsets = torch.arange(-1, most + 1, dtype=torch.float64)
    combs: list[Tensor] = []
    place, there = torch.zeros(len(scales), most + 2, dtype=torch.int64), []
    for number, s in enumerate(scales):
        many = math.ceil(s) + 2
        # A fractional line falls on the nearest pixel border, of two equally near ones on the first.
        nearest = torch.remainder(line - offsets[:many] + 0.5 + 1e-9, s) < 1
        place[number, :many] = torch.arange(many) + sum(c.shape[1] for c in combs)
        combs.append(nearest.float())
        there.append(offsets[1:-1] < math.ceil(s))
    lines = torch.cat(combs, 1)
    share = lines.double().mean(0)[place]
    sizes = torch.tensor(scales)
    loose = (sizes >= _LOOSE_FROM) & (sizes * _LOOSE_LINES <= side)  # drawn grids wobble by a pixel
    strict, beside = share[:, 1:-1], share[:, :-2] + share[:, 2:]
    parts = (lines, place, strict, strict + beside / 2, torch.stack(there), loose)
    return Combs(*(part.to(device) for part in parts))


def _offset(kappa: Tensor, chosen: Tensor) -> Tensor:
    """The best offset of the chosen scale, (B,); of equals the first."""
    ours = kappa[torch.arange(len(kappa), device=kappa.device), chosen]
    rank = torch.arange(ours.shape[1], device=kappa.device)
    return torch.where(ours == ours.amax(1, keepdim=True), rank, len(rank)).amin(1).double()


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
