"""Read all that the measures need from a picture's own pixels, in one pass.

Lines are read, not areas. A grid's edges run through the whole picture, so every fourth row of 512 shows the same
columns as all rows, at a fraction of the cost. Pictures are scanned a few at a time, so that intermediate values stay
in a processor's cache.

The thresholds were tuned by hand on the labelled pictures of `benchmarks.metrics`, seeds 0, 3 and 11.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import UNIT, oklab

STEP = 82
"""Just visible OKLab distance in whole units: 0.02."""

CAP = 512
"""Largest energy that one edge adds, in whole units (0.125): one strong contour must not decide."""

LINES = 128
"""Rows and columns that are read of a picture; a smaller one is read whole."""

_MIN_PEAK = 164  # 0.04, two visible steps: weaker transitions are noise or gradients
_BESIDE_SLACK = 41  # 0.01: noise beside an edge that does not make it soft
_GRADIENT_STEP = (16, 164)  # 0.004 to 0.04: larger than rounding, smaller than an edge
_GOLDEN_RATIO = 0.6180339887498949  # its multiples modulo 1 are spread evenly and never fall into step with a grid

_PIXELS_PER_PIECE = {"cpu": 2**20, "cuda": 2**24}
"""Pixels scanned at a time: little enough for a CPU's cache, much enough to fill a GPU."""


@dataclass(frozen=True)
class Scan:
    """Hold pixel statistics of B pictures of H x W pixels.

    Attributes:
        energy_across, energy_down: visible edge energy at each line between columns (B, W-1) and rows (B, H-1), int64.
        one_step: (B,) 0-1, share of visible transitions completed within one pixel, weighted by their size.
        visible_step: (B,) mean OKLab distance of the visible steps.
        gradient: (B,) 0-1, share of neighbouring pixels that differ by 0.004 to 0.04 in OKLab.
        lattice: (B, 3, R, C) OKLab, in whole units, of the pixels where the lines cross.
        rows, columns: places of the lines, (R,) and (C,).
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
    def of(cls, images: Tensor) -> Scan:
        """Scan pictures (B, 3, H, W), uint8 or in [0, 1]."""
        height, width = images.shape[2:]
        rows, columns = (lines_of(side).to(images.device) for side in (height, width))
        many = max(1, _PIXELS_PER_PIECE.get(images.device.type, 2**24) // (height * width))
        pieces = [_scan(piece, rows, columns) for piece in images.split(many)]
        across, down, one_step, visible, gradient, lattice = (torch.cat(part) for part in zip(*pieces, strict=True))
        return cls(across, down, one_step, visible, gradient, lattice, rows, columns)


def lines_of(side: int) -> Tensor:
    """Return the places of the lines to read along a side, int64: one in each stride.

    Their places within the strides follow the golden ratio, so that the lines do not fall into step with any grid.
    """
    stride = max(1, side // LINES)
    number = torch.arange(side // stride, dtype=torch.float64)
    return (number * stride + ((number * _GOLDEN_RATIO) % 1 * stride).floor()).long()


def as_bytes(images: Tensor) -> Tensor:
    """Convert pictures in [0, 1] to uint8, rounded as when saved to a PNG file; uint8 is returned as it is."""
    if images.dtype == torch.uint8:
        return images
    return (images.float() * 255).round_().clamp_(0, 255).byte()


def step(first: Tensor, second: Tensor) -> Tensor:
    """Return the OKLab distance between (B, 3, ...) in whole units, rounded down, int32 (B, ...)."""
    delta = first - second
    square = delta.mul_(delta)
    return square[:, 0].add_(square[:, 1]).add_(square[:, 2]).float().sqrt_().int()


def _scan(images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of a `Scan` that differ from picture to picture, in order."""
    lying = oklab(as_bytes(images.index_select(2, rows)))  # (B, 3, R, W)
    # Along the last dimension `gather` is several times as fast as `index_select`.
    upright = images.gather(3, columns.expand(*images.shape[:3], -1))
    standing = oklab(as_bytes(upright).transpose(2, 3).contiguous())  # (B, 3, C, H)
    both = [step(lab[..., 1:], lab[..., :-1]) for lab in (lying, standing)]
    done, walked = (sum(parts) for parts in zip(*[_peaks(steps) for steps in both], strict=True))
    total, count = (sum(parts) for parts in zip(*[_seen(steps) for steps in both], strict=True))
    low, high = _GRADIENT_STEP
    gradients = [_total((e >= low).logical_and_(e < high)).double() / e[0].numel() for e in both]
    energies = [(steps - STEP).clamp_(0, CAP).sum(1, dtype=torch.int32).long() for steps in both]
    return (
        *energies,
        torch.as_tensor(done).double() / torch.as_tensor(walked).clamp_min(1),
        torch.as_tensor(total).double() / torch.as_tensor(count).clamp_min(1) / UNIT,
        (gradients[0] + gradients[1]) / 2,
        lying.index_select(3, columns),
    )  # fmt: skip


def _seen(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the sum and number of the visible steps, (B,) each."""
    shown = steps > STEP
    return _total(steps * shown), _total(shown)


def _peaks(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Return the summed size of the peak steps along lines (B, R, W), and the same with the steps beside them, (B,)."""
    left, middle, right = steps[..., :-2], steps[..., 1:-1], steps[..., 2:]
    peak = (middle >= left).logical_and_(middle >= right).logical_and_(middle > _MIN_PEAK)
    done = _total(middle * peak)
    slack = (steps - _BESIDE_SLACK).clamp_min_(0)
    return done, done + _total((slack[..., :-2] + slack[..., 2:]).mul_(peak))


def _total(values: Tensor) -> Tensor:
    """Return the sums (B,) of (B, R, W); a row's sum fits int32, which avoids a wider copy."""
    return values.sum(2, dtype=torch.int32).sum(1)
