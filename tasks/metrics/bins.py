"""Sort cells into cubes of colour space, to find the most frequent colour of a region.

Only cubes that occur in a picture are numbered, so no table of all 64 ** 3 cubes is needed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import UNIT, distance

_MEAN_RADIUS = 0.07  # OKLab; wider than a cube of 1/16, so a colour split over neighbouring cubes is averaged whole


@dataclass(frozen=True)
class Bins:
    """Hold the OKLab cube that each cell of B cell maps lies in.

    Attributes:
        cells: (B, 3, M) OKLab in whole units; M is all cells of a map.
        number: (B, M) number of each cell's cube among the cubes that occur in the picture, in order of colour.
    """

    cells: Tensor
    number: Tensor

    @classmethod
    def of(cls, cells: Tensor, bits: int) -> Bins:
        """Sort cells (B, 3, N, N) into cubes of 2 ** bits units a side."""
        flat = cells.flatten(2)
        cube = ((flat + UNIT // 2) >> bits).clamp_(0, 63)
        # Sorting brings equal cubes together, so a running count of changes numbers them.
        key, order = ((cube[:, 0] * 64 + cube[:, 1]) * 64 + cube[:, 2]).sort(1)
        number = torch.zeros_like(order)
        number[:, 1:] = (key[:, 1:] != key[:, :-1]).cumsum(1)
        return cls(flat, torch.zeros_like(order).scatter_(1, order, number))

    def count(self, mask: Tensor) -> Tensor:
        """Count the cells of a region (B, N, N) in each cube, as (B, M) int64."""
        counts = torch.zeros(self.number.shape, device=mask.device, dtype=torch.int64)
        return counts.scatter_add_(1, self.number, mask.flatten(1).long())

    def dominant(self, mask: Tensor) -> Tensor:
        """Return the most frequent colour (B, 3) of a region: the mean of the fullest cube, after two mean shifts."""
        counts = self.count(mask)
        # Unique numbers, so that no device has ties to break.
        place = torch.arange(counts.shape[1], device=mask.device)
        fullest = (counts * len(place) - place).argmax(1, keepdim=True)
        inside = mask.flatten(1)
        colour = _mean(self.cells, inside & (self.number == fullest))
        for _ in range(2):
            colour = _mean(self.cells, inside & (distance(self.cells, colour[..., None]) < _MEAN_RADIUS))
        return colour


def _mean(flat: Tensor, mask: Tensor) -> Tensor:
    """Return the mean (B, 3) of (B, 3, M) over a mask, in whole units; 0 where the mask is empty."""
    total = (flat * mask[:, None]).sum(2)
    return total.div(mask.sum(1).clamp_min(1)[:, None], rounding_mode="floor").int()
