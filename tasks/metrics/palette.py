"""How many colours a picture has, as an eye counts them on the native grid."""

from __future__ import annotations

import torch
from torch import Tensor

_BINS = 256
_SAME = 0.045
"""OKLab distance below which two cells have the same colour: a decoder's noise stays inside."""


def palette_size(cells: Tensor, valid: Tensor) -> Tensor:
    """Distinct colours that at least two cells have, (B,) whole numbers.

    Args:
        cells: OKLab (B, 3, N, N).
        valid: cells inside the picture (B, N, N).

    The fullest bins are taken in order, each that is not near an earlier one is a colour; the fixpoint is
    reached in a few rounds and equals doing it one by one.
    """
    colours, counts = _fullest_bins(cells, valid)  # (B, 256, 3), (B, 256)
    near = torch.cdist(colours, colours) < _SAME
    earlier = torch.ones(_BINS, _BINS, device=cells.device).tril(-1).bool()
    live = counts > 0
    keep = live
    for _ in range(32):
        blocked = (near & earlier & keep[:, None, :]).any(2)
        changed = live & ~blocked
        if torch.equal(changed, keep):
            break
        keep = changed
    # Cells of a colour: those of the bins whose first kept neighbour it is.
    nearest = (near & keep[:, None, :]).float().argmax(2)
    cells_of = torch.zeros_like(counts).scatter_add(1, nearest, counts)
    return (keep & (cells_of >= 2)).sum(1)


def palette_score(size: Tensor, low: float = 4, high: float = 50) -> Tensor:
    """100 between low and high, falling to 0 at one colour and at three times high."""
    size = size.double()
    few = (size - 1) / (low - 1)
    many = (3 * high - size) / (2 * high)
    return 100 * torch.minimum(few, many).clamp(0, 1)


def _fullest_bins(cells: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean colours and counts of the 256 fullest of 48^3 bins, fullest first."""
    flat, weight = cells.flatten(2), valid.flatten(1).to(cells.dtype)
    bins = ((flat + 0.5) * 32).long().clamp(0, 47)
    key = (bins[:, 0] * 48 + bins[:, 1]) * 48 + bins[:, 2]  # (B, M)
    counts = torch.zeros(len(cells), 48**3, device=cells.device).scatter_add(1, key, weight)
    top = counts.topk(_BINS, dim=1)
    sums = torch.zeros(len(cells), 3, 48**3, device=cells.device)
    sums = sums.scatter_add(2, key[:, None].expand(-1, 3, -1), flat * weight[:, None])
    picked = sums.gather(2, top.indices[:, None].expand(-1, 3, -1)) / top.values.clamp_min(1)[:, None]
    return picked.transpose(1, 2), top.values
