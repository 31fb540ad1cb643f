"""Stack the colours that prompts promise into batched tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schema.prompts import Expectation
from tasks.metrics.colour import difference, distance, hex_bytes, oklab


@dataclass(frozen=True)
class Promises:
    """Hold one promised attribute of B prompts, up to K colours each.

    Attributes:
        colours: (B, K, 3) sRGB in [0, 1].
        lab: (B, 3, K) OKLab in whole units.
        given: (B, K) False for padding.
    """

    colours: Tensor
    lab: Tensor
    given: Tensor

    @classmethod
    def of(cls, expectations: Sequence[Expectation], device: torch.device) -> dict[str, Promises]:
        """Return the promises by attribute; K is the largest number of colours that any prompt gives, at least 1."""
        names = list(Expectation.model_fields)
        codes = [[getattr(e, name) for e in expectations] for name in names]
        most = max(1, *(len(c) for of_name in codes for c in of_name))
        # Any colour pads: `given` masks it out.
        padded = [[*c, *["#000000"] * (most - len(c))] for of_name in codes for c in of_name]
        numbers = torch.tensor([len(c) for of_name in codes for c in of_name])
        given = (torch.arange(most) < numbers[:, None]).view(len(names), -1, most).to(device)
        colours = hex_bytes([c for row in padded for c in row]).view(len(padded), most, 3).to(device)
        parts = (part.view(len(names), -1, *part.shape[1:]) for part in (colours / 255, oklab(colours.transpose(1, 2))))
        return {name: cls(*stacked) for name, *stacked in zip(names, *parts, given, strict=True)}

    @property
    def any(self) -> Tensor:
        """Return which prompts promise this attribute, (B,) bool."""
        return self.given.any(1)

    @property
    def first(self) -> Tensor:
        """Return the first promised colour in OKLab units, (B, 3); black where nothing is promised."""
        return self.lab[:, :, 0]

    def difference(self, colours: Tensor) -> Tensor:
        """Return CIEDE2000 from sRGB colours (B, 3) in [0, 1] to the nearest promised one, (B,); infinite if none."""
        return torch.where(self.given, difference(colours[:, None], self.colours), torch.inf).amin(1)

    def nearest(self, cells: Tensor, shade: float = 1.0) -> Tensor:
        """Return the OKLab distance (B, R, C) of cells (B, 3, R, C) to the nearest promised colour; infinite if none.

        `shade` weighs lightness as in `colour.distance`.
        """
        each = [
            torch.where(self.given[:, k, None, None], distance(cells, self.lab[:, :, k, None, None], shade), torch.inf)
            for k in range(self.given.shape[1])
        ]
        return torch.stack(each).amin(0)
