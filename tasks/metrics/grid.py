"""Detect the pixel grid: size and offset of art pixels, including sizes that are not whole numbers.

Pixel art has its edges on a comb of equally spaced lines. The share of edge energy on a comb, beyond what falls there
by chance, measures both which comb is right and how clean the art is.

The thresholds were tuned by hand on the labelled pictures of `benchmarks.metrics`, seeds 0, 3 and 11.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.scan import CAP, LINES, Scan, as_bytes

_STAND_IN_CELLS = 32  # along the longer side where no grid is found, so that colours can still be measured
_SAMPLE_INSET = 0.22  # of a cell: samples stay off its borders, where resizing and JPEG mix colours
_MIDDLE_HALF_WIDTH = 0.36  # of a cell: pixels further from the centre may be mixed with the next cell
_NEAR_BEST_SCORE = 0.93  # of the best score: divisors of the true scale come this close, multiples do not
_LOOSE_DISCOUNT = 0.97  # a comb that forgives a pixel fits more easily, so its score counts a little less
_LOOSE_MIN_SCALE = 5.0  # pixels; on a finer grid one pixel beside each line is most of the picture
_LOOSE_MIN_LINES = 15  # on fewer lines a forgiving comb would fit anything


@dataclass(frozen=True)
class Grid:
    """Hold one grid a picture, each (B,).

    Attributes:
        scale: size of an art pixel in pixels; where no grid was found, that of a stand-in of 32 cells.
        left, top: where the first whole cell starts, in pixels.
        confidence: 0-1, share of edge energy on the grid beyond chance.
        evenness: effective number of lines that hold the energy, as a share of the lines between the first and the
            last. Art drawn cell by cell uses all lines alike; a layout of large shapes does not.
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
    """Hold all K combs for one side length: S scales, each at O offsets and one more on either side.

    Attributes:
        lines: (L, K) 1 where a comb has a line, else 0.
        place: (S, O + 2) index of each scale's combs among the K; offsets run from -1.
        chance: (S, O) share of energy that falls on a comb by chance.
        loose_chance: (S, O) the same if the lines beside it count half.
        there: (S, O) which offsets a scale has.
        loose: (S,) which scales are also tried with the lines beside.
    """

    lines: Tensor
    place: Tensor
    chance: Tensor
    loose_chance: Tensor
    there: Tensor
    loose: Tensor


def detect_grid(scan: Scan) -> Grid:
    """Return the grid of each picture.

    Everything up to the score is computed on whole numbers, so that neither batch nor device changes the result.
    """
    device = scan.energy_across.device
    width, height = scan.energy_across.shape[1] + 1, scan.energy_down.shape[1] + 1
    scales = _scales(width, height)
    energies = [_Energy.of(lines) for lines in (scan.energy_across, scan.energy_down)]
    kappas = [_on_combs(e, _combs(s, scales, device)) for e, s in zip(energies, (width, height), strict=True)]
    totals = [e.total for e in energies]
    best = [kappa.amax(2) for kappa in kappas]
    weight = (totals[0] + totals[1]).clamp_min(1)[:, None]
    score = ((best[0] * totals[0][:, None] + best[1] * totals[1][:, None]) / weight).clamp_min(0)  # (B, S)
    # Divisors of the true scale score as high as the scale itself; multiples lose half. Take the largest of the best.
    sizes = torch.tensor(scales, device=device, dtype=torch.float64)
    near = score >= _NEAR_BEST_SCORE * score.amax(1, keepdim=True)
    chosen = torch.where(near, torch.arange(len(scales), device=device), -1).amax(1)
    confidence = score.gather(1, chosen[:, None])[:, 0].clamp(0, 1)
    scale = sizes[chosen]
    left, top = (_offset(kappa, chosen) for kappa in kappas)
    # Smooth pictures reach a confidence of 0.15 by chance.
    found = (confidence > 0.22) & (scale >= 3)
    stand_in = max(1.0, max(width, height) / _STAND_IN_CELLS)
    return Grid(
        torch.where(found, scale, stand_in), torch.where(found, left, 0.0), torch.where(found, top, 0.0),
        confidence, torch.stack([e.effective * scale / e.extent for e in energies]).mean(0), found,
    )  # fmt: skip


def sample_cells(images: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Return the picture at its native size: for each cell the median colour of nine places inside it.

    Args:
        images: (B, 3, H, W), uint8 or in [0, 1].
        grid: the grids of the B pictures.

    Returns:
        Colours (B, 3, N, N) uint8, and which cells lie in the picture (B, N, N). N is a multiple of 8 that fits the
        picture with the most cells.
    """
    height, width = images.shape[2:]
    most = math.ceil(max(height, width) / float(grid.scale.min())) + 1
    size = -(-most // 8) * 8
    x, valid_x = _centres(grid.scale, grid.left, width, size)
    y, valid_y = _centres(grid.scale, grid.top, height, size)
    inset = grid.scale[:, None] * torch.tensor(
        [-_SAMPLE_INSET, 0.0, _SAMPLE_INSET], device=images.device, dtype=torch.float64
    )
    rows, columns = (_index(c[:, None] + inset[..., None], s) for c, s in ((y, height), (x, width)))  # (B, 3, N)
    index = (rows[:, :, None, :, None] * width + columns[:, None, :, None, :]).flatten(1)
    places = as_bytes(images.flatten(2).gather(2, index[:, None].expand(-1, 3, -1)))
    colours = _median_of_nine(list(places.view(len(images), 3, 9, size, size).unbind(2)))
    return colours, valid_y[:, :, None] & valid_x[:, None, :]


_MEDIAN_EXCHANGES = (
    (1, 2), (4, 5), (7, 8), (0, 1), (3, 4), (6, 7), (1, 2), (4, 5), (7, 8), (0, 3),
    (5, 8), (4, 7), (3, 6), (1, 4), (2, 5), (4, 7), (4, 2), (6, 4), (4, 2),
)  # fmt: skip
"""Pairs to put in order, one after the other, that bring the median of nine to place 4 (Paeth 1990)."""


def _median_of_nine(values: list[Tensor]) -> Tensor:
    """Return the elementwise median of nine tensors; overwrites the list. Faster than sorting all nine."""
    for low, high in _MEDIAN_EXCHANGES:
        a, b = values[low], values[high]
        values[low], values[high] = torch.minimum(a, b), torch.maximum(a, b)
    return values[4]


def cell_of_pixels(cells: Tensor, grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the colour of the cell that each pixel lies in, (B, 3, R, C).

    Args:
        cells: (B, 3, N, N) colours of the cells.
        grid: the grids of the B pictures.
        rows, columns: the pixels' places, (R,) and (C,).
    """
    size = cells.shape[2]
    y, x = (place.floor().long().clamp(0, size - 1) for place in _in_cells(grid, rows, columns))
    index = (y[:, :, None] * size + x[:, None, :]).flatten(1)
    found = cells.flatten(2).gather(2, index[:, None].expand(-1, 3, -1))
    return found.view(len(cells), 3, len(rows), len(columns))


def amid_cells(grid: Grid, rows: Tensor, columns: Tensor) -> Tensor:
    """Return which pixels lie in the middle of their cells, away from the borders, (B, R, C) bool."""
    y, x = ((place % 1 - 0.5).abs() < _MIDDLE_HALF_WIDTH for place in _in_cells(grid, rows, columns))
    return y[:, :, None] & x[:, None, :]


def _in_cells(grid: Grid, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the pixels' centres lie, in cells from the corner of the first one, (B, R) and (B, C)."""
    y, x = (
        (place + 0.5 - _first(start, grid.scale)[:, None]) / grid.scale[:, None]
        for place, start in ((rows, grid.top), (columns, grid.left))
    )
    return y, x


@dataclass(frozen=True)
class _Energy:
    """Hold the edge energy of B pictures along one axis.

    Attributes:
        lines: (B, L) whole numbers as float64.
        total: (B,) their sums.
        effective: (B,) effective number of lines that hold the energy: sum squared over sum of squares.
        extent: (B,) pixels from the first line with energy to the last, at least 1.
    """

    lines: Tensor
    total: Tensor
    effective: Tensor
    extent: Tensor

    @classmethod
    def of(cls, energy: Tensor) -> _Energy:
        # Subtract the texture that every line has. Then scale down so that sums stay exact in float32 (see `_dot`).
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
    """Return the share of energy on each comb beyond chance, (B, S, O); minus infinity where there is no comb."""
    held = _dot(energy.lines, combs.lines)[:, combs.place]  # (B, S, O + 2)
    strict, beside = held[..., 1:-1], held[..., :-2] + held[..., 2:]
    total = energy.total.clamp_min(1)[:, None, None]
    kappa = (strict / total - combs.chance) / (1 - combs.chance)
    near = ((strict + beside / 2) / total - combs.loose_chance) / (1 - combs.loose_chance)
    kappa = torch.maximum(kappa, torch.where(combs.loose[:, None], _LOOSE_DISCOUNT * near, -math.inf))
    # Few edges fit some comb by accident: shrink by the effective number of lines.
    return torch.where(combs.there, kappa * (energy.effective / (energy.effective + 3))[:, None, None], -math.inf)


def _dot(energy: Tensor, lines: Tensor) -> Tensor:
    """Return the energy (B, L) on each comb (L, K), float64; sums of whole numbers below 2 ** 24 are exact."""
    if energy.is_cuda:  # float32 products may run as TF32 there, which has 10 bits of mantissa
        return energy @ lines.double()
    return (energy.float() @ lines).double()


@functools.lru_cache(maxsize=16)
def _scales(width: int, height: int) -> tuple[float, ...]:
    """Return the candidate sizes of an art pixel: whole numbers, and the longer side over 12 to 170 cells."""
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
        # A fractional line falls on the nearest pixel border, of two equally near ones on the first; 1e-9 decides
        # such ties the same way despite rounding.
        nearest = torch.remainder(line - offsets[:many] + 0.5 + 1e-9, s) < 1
        place[number, :many] = torch.arange(many) + sum(c.shape[1] for c in combs)
        combs.append(nearest.float())
        there.append(offsets[1:-1] < math.ceil(s))
    lines = torch.cat(combs, 1)
    share = lines.double().mean(0)[place]
    sizes = torch.tensor(scales)
    # Edges of generated pixel art wobble by a pixel around the grid, so lines beside a comb count half.
    loose = (sizes >= _LOOSE_MIN_SCALE) & (sizes * _LOOSE_MIN_LINES <= side)
    strict, beside = share[:, 1:-1], share[:, :-2] + share[:, 2:]
    parts = (lines, place, strict, strict + beside / 2, torch.stack(there), loose)
    return Combs(*(part.to(device) for part in parts))


def _offset(kappa: Tensor, chosen: Tensor) -> Tensor:
    """Return the best offset of the chosen scale, (B,) in pixels; of equals the first."""
    ours = kappa[torch.arange(len(kappa), device=kappa.device), chosen]
    rank = torch.arange(ours.shape[1], device=kappa.device)
    return torch.where(ours == ours.amax(1, keepdim=True), rank, len(rank)).amin(1).double()


def _first(offset: Tensor, scale: Tensor) -> Tensor:
    """Return where the first cell starts; a cell cut off at the border counts if at least 35 % of it is visible."""
    return torch.where(offset >= 0.35 * scale, offset - scale, offset)


def _centres(scale: Tensor, offset: Tensor, side: int, size: int) -> tuple[Tensor, Tensor]:
    """Return the centres of `size` cells along one axis (B, N), and which of the cells lie in the picture."""
    number = torch.arange(size, device=scale.device) + 0.5
    centre = _first(offset, scale)[:, None] + number * scale[:, None]
    return centre, (centre > -0.5) & (centre < side - 0.35 * scale[:, None] + 0.5) & (centre < side)


def _index(place: Tensor, side: int) -> Tensor:
    return place.floor().long().clamp(0, side - 1)
