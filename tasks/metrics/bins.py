"""Cells sorted into cubes of colour: what is most frequent in a region, found without a table of all colours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import UNIT, distance

_NEAR = 0.07


@dataclass(frozen=True)
class Bins:
    """Which cube of OKLab each cell of B cell maps lies in.

    Attributes:
        cells: OKLab (B, 3, M) in whole units.
        number: (B, M) of its cube, counted over the cubes that occur in the picture, in the order of their colours.
    """

    cells: Tensor
    number: Tensor

    @classmethod
    def of(cls, cells: Tensor, bits: int) -> Bins:
        """Sort cells (B, 3, N, N) into cubes of 2 ** bits units a side."""
        flat = cells.flatten(2)
        cube = ((flat + UNIT // 2) >> bits).clamp_(0, 63)
        key, order = ((cube[:, 0] * 64 + cube[:, 1]) * 64 + cube[:, 2]).sort(1)
        number = torch.zeros_like(order)
        number[:, 1:] = (key[:, 1:] != key[:, :-1]).cumsum(1)
        return cls(flat, torch.zeros_like(order).scatter_(1, order, number))

    def count(self, mask: Tensor) -> Tensor:
        """Cells of a region (B, N, N) in each cube, (B, M) int64."""
        counts = torch.zeros(self.number.shape, device=mask.device, dtype=torch.int64)
        return counts.scatter_add_(1, self.number, mask.flatten(1).long())

    def dominant(self, mask: Tensor) -> Tensor:
        """The most frequent colour (B, 3) of a region: the fullest cube, then two steps to the mean around it."""
        counts = self.count(mask)
        place = torch.arange(counts.shape[1], device=mask.device)
        fullest = (counts * len(place) - place).argmax(1, keepdim=True)
        inside = mask.flatten(1)
        colour = _mean(self.cells, inside & (self.number == fullest))
        for _ in range(2):
            colour = _mean(self.cells, inside & (distance(self.cells, colour[..., None]) < _NEAR))
        return colour


def _mean(flat: Tensor, mask: Tensor) -> Tensor:
    """Mean (B, 3) of (B, 3, M) over a mask, in whole units; 0 where it is empty."""
    total = (flat * mask[:, None]).sum(2)
    return total.div(mask.sum(1).clamp_min(1)[:, None], rounding_mode="floor").int()
