"""Everything that is read from the picture's own pixels: what the measures need of it is small.

Lines are read, not areas: a grid's edges run through the whole picture, so that every fourth row of 512 shows the
same columns as all of them do, at a fraction of the cost. Pictures are taken a few at a time, so that a piece's
intermediate values stay in a processor's cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import UNIT, oklab

STEP = 82
"""OKLab distance that is just seen, 0.02."""

CAP = 512
"""An edge counts up to here, 0.125: one strong contour must not decide."""

LINES = 128
"""Rows and columns that are read of a picture; of a smaller one all are."""

_PEAK = 164  # 0.04
_SLACK = 41
_SMOOTH = (16, 164)  # 0.004 to 0.04
_GOLDEN = 0.6180339887498949

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
        lattice: (B, 3, R, C) OKLab in whole units of the pixels where the lines cross.
        rows, columns: the lines' places, (R,) and (C,).
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
        many = max(1, _PIECE.get(images.device.type, 2**24) // (height * width))
        pieces = [_scan(piece, rows, columns) for piece in images.split(many)]
        across, down, one_step, visible, gradient, lattice = (torch.cat(part) for part in zip(*pieces, strict=True))
        return cls(across, down, one_step, visible, gradient, lattice, rows, columns)


def lines_of(side: int) -> Tensor:
    """Places of the lines that are read along a side, int64: one in each stride.

    Where in its stride a line lies follows the golden ratio, so that lines keep no step with any grid.
    """
    stride = max(1, side // LINES)
    number = torch.arange(side // stride, dtype=torch.float64)
    return (number * stride + ((number * _GOLDEN) % 1 * stride).floor()).long()


def as_bytes(images: Tensor) -> Tensor:
    """Pictures or parts of them as a PNG file would hold them, uint8."""
    if images.dtype == torch.uint8:
        return images
    return (images.float() * 255).round_().clamp_(0, 255).byte()


def step(first: Tensor, second: Tensor) -> Tensor:
    """OKLab distance of (B, 3, ...) in whole units, int32: a rounded root of an exact number, so exact itself."""
    delta = first - second
    square = delta.mul_(delta)
    return square[:, 0].add_(square[:, 1]).add_(square[:, 2]).float().sqrt_().int()


def _scan(images: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, ...]:
    """The parts of a `Scan` that differ from picture to picture."""
    lying = oklab(as_bytes(images.index_select(2, rows)))  # (B, 3, R, W)
    # Gathering is several times as fast along the last dimension as selecting.
    upright = images.gather(3, columns.expand(*images.shape[:3], -1))
    standing = oklab(as_bytes(upright).transpose(2, 3).contiguous())  # (B, 3, C, H)
    both = [step(lab[..., 1:], lab[..., :-1]) for lab in (lying, standing)]
    done, walked = (sum(parts) for parts in zip(*[_peaks(steps) for steps in both], strict=True))
    total, count = (sum(parts) for parts in zip(*[_seen(steps) for steps in both], strict=True))
    low, high = _SMOOTH
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
    """Sum and number of the steps that are seen, (B,)."""
    shown = steps > STEP
    return _total(steps * shown), _total(shown)


def _peaks(steps: Tensor) -> tuple[Tensor, Tensor]:
    """Size of the transitions' largest steps along lines (B, R, W), and of these with the steps beside them, (B,)."""
    left, middle, right = steps[..., :-2], steps[..., 1:-1], steps[..., 2:]
    peak = (middle >= left).logical_and_(middle >= right).logical_and_(middle > _PEAK)
    done = _total(middle * peak)
    slack = (steps - _SLACK).clamp_min_(0)
    return done, done + _total((slack[..., :-2] + slack[..., 2:]).mul_(peak))


def _total(values: Tensor) -> Tensor:
    """Sums (B,) of (B, R, W); rows fit an int32, which spares a wider copy."""
    return values.sum(2, dtype=torch.int32).sum(1)
