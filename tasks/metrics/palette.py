"""Count the colours of a picture as a person would, on the native grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.bins import Bins
from tasks.metrics.colour import UNIT

_MAX_COLOURS = 256  # of a picture: colours are compared pairwise, so memory grows with the square
_MIN_COLOURS = 32  # size of the tables for clean art, which rarely has more
_SAME_COLOUR = round(0.045 * UNIT)
"""OKLab distance below which two cells have the same colour. It is larger than the noise of the VAE decoder."""


@dataclass(frozen=True)
class Palette:
    """Hold the colours of B cell maps, most frequent first.

    Attributes:
        colours: (B, K, 3) int32, OKLab in whole units; K is 32 to 256.
        counts: (B, K) cells of each colour; 0 for padding.
        member: (B, N, N) index of each cell's colour; 256 for cells outside the mask.
    """

    colours: Tensor
    counts: Tensor
    member: Tensor

    @classmethod
    def of(cls, cells: Bins, mask: Tensor) -> Palette:
        """Find the distinct colours of the masked cells.

        Bins are visited from the fullest on. Each one that is not near an earlier colour becomes a colour itself. All
        bins are decided at once and the decision is repeated until it is stable, which takes a few rounds and gives
        the same result as visiting them one by one.

        Args:
            cells: in cubes of 1/32 a side.
            mask: (B, N, N) the cells to count.
        """
        colours, counts, bin_of = _fullest_bins(cells, mask)
        # Clean art has few colours: cutting the tables makes the pairwise comparison cheap.
        most = min(_MAX_COLOURS, max(_MIN_COLOURS, int((counts > 0).sum(1).max())))
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
        outside = torch.full_like(position[:, :1], _MAX_COLOURS)
        member = torch.cat([position, outside], 1).gather(1, bin_of.clamp_max(most)).view(mask.shape)
        return cls(
            colours.gather(1, order[..., None].expand(-1, -1, 3)),
            torch.where(keep, cells_of, 0).gather(1, order),
            torch.where(mask, member, _MAX_COLOURS),
        )


def palette_size(palette: Palette) -> Tensor:
    """Count the distinct colours that at least two cells have, (B,) int64."""
    return (palette.counts >= 2).sum(1)


def palette_score(size: Tensor, low: float = 4, high: float = 50) -> Tensor:
    """Score a palette size: 100 from `low` to `high` colours, falling to 0 at one colour and at 3 x `high`."""
    size = size.double()
    few = (size - 1) / (low - 1)
    many = (3 * high - size) / (2 * high)
    return 100 * torch.minimum(few, many).clamp(0, 1)


def _near(colours: Tensor) -> Tensor:
    """Return which pairs (B, K, K) of colours (B, K, 3) look the same."""
    square = torch.zeros(1, dtype=torch.int32, device=colours.device)
    for channel in colours.unbind(2):
        delta = channel[:, :, None] - channel[:, None, :]
        square = square + delta * delta
    return square < _SAME_COLOUR**2


def _fullest_bins(cells: Bins, mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return mean colours (B, 256, 3) and counts (B, 256) of the fullest cubes, and each cell's rank there (B, M)."""
    count = cells.count(mask)
    size = count.shape[1]
    number = torch.arange(size, device=mask.device)
    # The numbers are unique, so that no device has ties to break.
    top = (count * size + (size - 1 - number)).topk(min(_MAX_COLOURS, size), dim=1).indices
    rank = torch.arange(top.shape[1], device=mask.device).expand_as(top)
    place = torch.full_like(count, _MAX_COLOURS).scatter_(1, top, rank).gather(1, cells.number)
    sums = torch.zeros(len(count), 3, _MAX_COLOURS + 1, device=mask.device, dtype=torch.int32)
    sums.scatter_add_(2, place[:, None].expand(-1, 3, -1), cells.cells * mask.flatten(1)[:, None])
    counts = F.pad(count.gather(1, top), (0, _MAX_COLOURS - top.shape[1]))
    means = sums[..., :_MAX_COLOURS].div(counts.clamp_min(1)[:, None], rounding_mode="floor").int()
    return means.transpose(1, 2), counts, place
