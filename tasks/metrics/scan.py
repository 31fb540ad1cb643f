"""Everything that is read from every pixel, in one pass: what the measures need of it is small.

Pictures are taken a few at a time, so that a piece's intermediate values stay in a processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import UNIT, oklab

STEP = 82
"""OKLab distance that is just seen, 0.02."""

_CAP = 512  # 0.125: an edge counts up to here, one strong contour must not decide
_PEAK = 164  # 0.04
_SLACK = 41
_SMOOTH = (16, 164)  # 0.004 to 0.04
_LATTICE = 256
"""Pixels a side that are compared with their cells: more would tell no more."""

_PIECE = {"cpu": 2**20, "cuda": 2**24}
"""Pixels that are scanned at a time."""


@dataclass(frozen=True)
class Scan:
    """What B pictures of H x W pixels have at their pixels.

    Attributes:
        energy_across, energy_down: visible edge energy at each line between columns (B, W-1) and rows (B, H-1), int64.
        one_step: (B,) 0-1, share of each visible transition that is done within one pixel, weighted by its size.
        visible_step: (B,) mean OKLab distance of the steps that are seen.
        gradient: (B,) 0-1, share of neighbouring pixels with a small but visible step.
        lattice: (B, 3, R, C) OKLab in whole units of the pixels on a lattice.
        rows, columns: their places, (R,) and (C,).
    """

    energy_across: Tensor
    energy_down: Tensor
    one_step: Tensor
    visible_step: Tensor
    gradient: Tensor
    lattice: Tensor
    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, pixels: Tensor) -> Scan:
        """Scan pictures (B, 3, H, W) uint8."""
        height, width = pixels.shape[2:]
        many = max(1, _PIECE.get(pixels.device.type, 2**24) // (height * width))
        pieces = [_scan(piece) for piece in pixels.split(many)]
        rows, columns = (
            torch.arange(0, side, _stride(side), device=pixels.device, dtype=torch.float64) for side in (height, width)
        )
        across, down, one_step, visible, gradient, lattice = (torch.cat(part) for part in zip(*pieces, strict=True))
        return cls(across, down, one_step, visible, gradient, lattice, rows, columns)


def step(first: Tensor, second: Tensor) -> Tensor:
    """OKLab distance of (B, 3, ...) in whole units, int32: a rounded root of an exact number, so exact itself."""
    delta = first - second
    square = delta.mul_(delta)
    return square[:, 0].add_(square[:, 1]).add_(square[:, 2]).float().sqrt_().int()


def _scan(pixels: Tensor) -> tuple[Tensor, ...]:
    """The parts of a `Scan` that differ from picture to picture."""
    lab = oklab(pixels)
    across, down = step(lab[..., 1:], lab[..., :-1]), step(lab[..., 1:, :], lab[..., :-1, :])
    both = (across, down)
    peaks = [_peaks(across, 2), _peaks(down, 1)]
    done, walked = (a + b for a, b in zip(*peaks, strict=True))
    seen = [edges > STEP for edges in both]
    total = sum(_total(edges * shown) for edges, shown in zip(both, seen, strict=True))
    count = sum(_total(shown) for shown in seen)
    low, high = _SMOOTH
    gradients = [_total((e >= low) & (e < high)).double() / e[0].numel() for e in both]
    return (
        _energy(across, 1), _energy(down, 2),
        done.double() / walked.double().clamp_min(1),
        torch.as_tensor(total).double() / torch.as_tensor(count).clamp_min(1) / UNIT,
        (gradients[0] + gradients[1]) / 2,
        lab[:, :, :: _stride(pixels.shape[2]), :: _stride(pixels.shape[3])].clone(),
    )  # fmt: skip


def _energy(edges: Tensor, dim: int) -> Tensor:
    """Edge energy at each line, (B, L)."""
    return (edges - STEP).clamp_(0, _CAP).sum(dim, dtype=torch.int32).long()


def _peaks(steps: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Size of the transitions' largest steps, and of these with the steps beside them, (B,)."""
    many = steps.shape[dim] - 2
    left, middle, right = (steps.narrow(dim, start, many) for start in range(3))
    peak = (middle >= left).logical_and_(middle >= right).logical_and_(middle > _PEAK)
    done = _total(middle * peak)
    beside = (left - _SLACK).clamp_min_(0).add_((right - _SLACK).clamp_min_(0)).mul_(peak)
    return done, done + _total(beside)


def _stride(side: int) -> int:
    return max(1, side // _LATTICE)


def _total(values: Tensor) -> Tensor:
    """Sums (B,) of (B, H, W); rows fit an int32, which spares a wider copy."""
    return values.sum(2, dtype=torch.int32).sum(1)
