"""How many colours a picture has, as an eye counts them on the native grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.bins import Bins
from tasks.metrics.colour import UNIT

_BINS = 256
_FEW = 32
_SAME = round(0.045 * UNIT)
"""OKLab distance below which two cells have the same colour: a decoder's noise stays inside."""


@dataclass(frozen=True)
class Palette:
    """The colours of cell maps, most frequent first.

    Attributes:
        colours: (B, K, 3) int32, OKLab in whole units; K is 32 to 256.
        counts: (B, K) cells of each; 0 where there are fewer colours.
        member: (B, N, N) the colour that each cell has, its index; 256 for cells outside the mask.
    """

    colours: Tensor
    counts: Tensor
    member: Tensor

    @classmethod
    def of(cls, cells: Bins, mask: Tensor) -> Palette:
        """Distinct colours of the masked cells.

        Args:
            cells: in cubes of 1/32 a side.
            mask: (B, N, N).

        The fullest bins are taken in order, each that is not near an earlier one is a colour; the fixpoint is
        reached in a few rounds and equals doing it one by one.
        """
        colours, counts, bin_of = _fullest_bins(cells, mask)
        most = min(_BINS, max(_FEW, int((counts > 0).sum(1).max())))  # clean art has few
        colours, counts = colours[:, :most], counts[:, :most]
        near = _near(colours)
        rank = torch.arange(most, device=mask.device)
        live = counts > 0
        blocking, keep = near & (rank[:, None] > rank), live
        for _ in range(most):
            changed = live & ~(blocking & keep[:, None, :]).any(2)
            if torch.equal(changed, keep):
                break
            keep = changed
        # A bin belongs to the first kept colour near it.
        owner = torch.where(near & keep[:, None, :], rank, most - 1).amin(2)
        cells_of = torch.zeros_like(counts).scatter_add(1, owner, counts)
        order = torch.where(keep, cells_of * most + (most - 1 - rank), -1 - rank).argsort(1, descending=True)
        position = torch.zeros_like(order).scatter(1, order, rank.expand_as(order)).gather(1, owner)
        outside = torch.full_like(position[:, :1], _BINS)
        member = torch.cat([position, outside], 1).gather(1, bin_of.clamp_max(most)).view(mask.shape)
        return cls(
            colours.gather(1, order[..., None].expand(-1, -1, 3)),
            torch.where(keep, cells_of, 0).gather(1, order),
            torch.where(mask, member, _BINS),
        )


def palette_size(palette: Palette) -> Tensor:
    """Distinct colours that at least two cells have, (B,) whole numbers."""
    return (palette.counts >= 2).sum(1)


def palette_score(size: Tensor, low: float = 4, high: float = 50) -> Tensor:
    """100 between low and high, falling to 0 at one colour and at three times high."""
    size = size.double()
    few = (size - 1) / (low - 1)
    many = (3 * high - size) / (2 * high)
    return 100 * torch.minimum(few, many).clamp(0, 1)


def _near(colours: Tensor) -> Tensor:
    """Which colours (B, K, 3) are the same to the eye, (B, K, K)."""
    square = torch.zeros(1, dtype=torch.int32, device=colours.device)
    for channel in colours.unbind(2):
        delta = channel[:, :, None] - channel[:, None, :]
        square = square + delta * delta
    return square < _SAME**2


def _fullest_bins(cells: Bins, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean colours (B, 256, 3) and counts (B, 256) of the fullest cubes, and each cell's place among them (B, M)."""
    count = cells.count(mask)
    size = count.shape[1]
    number = torch.arange(size, device=mask.device)
    top = (count * size + (size - 1 - number)).topk(min(_BINS, size), dim=1).indices  # no ties: any order is the same
    rank = torch.arange(top.shape[1], device=mask.device).expand_as(top)
    place = torch.full_like(count, _BINS).scatter_(1, top, rank).gather(1, cells.number)
    sums = torch.zeros(len(count), 3, _BINS + 1, device=mask.device, dtype=torch.int32)
    sums.scatter_add_(2, place[:, None].expand(-1, 3, -1), cells.cells * mask.flatten(1)[:, None])
    counts = F.pad(count.gather(1, top), (0, _BINS - top.shape[1]))
    means = sums[..., :_BINS].div(counts.clamp_min(1)[:, None], rounding_mode="floor").int()
    return means.transpose(1, 2), counts, place
