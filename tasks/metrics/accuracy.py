"""Pictures against what their prompts promise: background, hair, crown, purity.

A promise is a set of colours; the nearest one counts. Regions and their colours are found without looking
at the promise, only a crown is looked for by its colour, which must stand out against what is around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from schema.prompts import Expectation
from tasks.metrics.colour import accuracy, difference, hex_colours, oklab
from tasks.metrics.regions import Regions, neighbours, shaded_distance, share

_TOLERANCE = 10.0  # CIEDE2000: still called by the same name
_HAIR_SHARE = 0.03
_TWO_TONE_SHARE = 0.18
_TWO_TONE_DISTANCE = 0.09
_TWO_TONE_COHESION = 0.3
_SOLID = 0.05


@dataclass(frozen=True)
class Promises:
    """One promised attribute of B prompts as colours (B, K, 3) in sRGB, with which of the K count (B, K)."""

    colours: Tensor
    given: Tensor

    @classmethod
    def of(cls, expectations: Sequence[Expectation], attribute: str, device: torch.device) -> Promises:
        """Stack the promises of one attribute; K is the largest number of colours."""
        codes = [list(getattr(e, attribute)) for e in expectations]
        most = max([len(c) for c in codes] + [1])
        padded = [c + ["#000000"] * (most - len(c)) for c in codes]
        given = torch.tensor([[i < len(c) for i in range(most)] for c in codes], device=device)
        return cls(hex_colours([c for row in padded for c in row]).view(len(codes), most, 3).to(device), given)

    @property
    def any(self) -> Tensor:
        """Which prompts promise anything, (B,)."""
        return self.given.any(1)

    def distance(self, colours: Tensor) -> Tensor:
        """CIEDE2000 of sRGB colours (B, 3) to the nearest promised one; infinite where none is."""
        return torch.where(self.given, difference(colours[:, None], self.colours), torch.inf).amin(1)

    @property
    def lab(self) -> Tensor:
        """The first promised colour in OKLab, (B, 3)."""
        return oklab(self.colours[:, 0, :, None, None])[:, :, 0, 0]


def background_accuracy(regions: Regions, colour: Tensor, cells_rgb: Tensor, promised: Promises) -> Tensor:
    """0-100: the background's colour, and how much of the picture's rim has it, (B,)."""
    target = promised.colours.permute(1, 0, 2)[..., None, None]  # (K, B, 3, 1, 1)
    pixels = cells_rgb[None].expand(len(target), -1, -1, -1, -1)
    delta = difference(pixels.permute(0, 1, 3, 4, 2), target.permute(0, 1, 3, 4, 2))  # (K, B, N, N)
    given = promised.given.T[:, :, None, None]
    matches = (torch.where(given, delta, torch.inf).amin(0) <= _TOLERANCE) & regions.ring
    rim = regions.ring & (regions.height < 0.75)  # below it the shoulders leave the picture
    return 0.6 * accuracy(promised.distance(colour)) + 0.4 * 100 * share(matches, rim)


def hair_accuracy(regions: Regions, colour: Tensor, promised: Promises) -> Tensor:
    """0-100: the hair's dominant colour; 0 where no hair was found, (B,)."""
    found = share(regions.hair, regions.figure) >= _HAIR_SHARE
    return torch.where(found, accuracy(promised.distance(colour)), 0.0)


def two_tone(cells: Tensor, regions: Regions) -> Tensor:
    """Whether the hair has two hues in two areas, (B,) bool; shading of one hue is none.

    Two means, started from the dominant colour and the cell farthest from it; the areas must differ in hue
    or much in lightness, both be large, and hold together more than chance would have it.
    """
    weight = torch.tensor([0.3, 1.0, 1.0], device=cells.device)[None, :, None]
    flat, mask = cells.flatten(2) * weight, (regions.hair & (neighbours(regions.hair) >= 4)).flatten(1)
    first = regions.hair_colour * weight[:, :, 0]
    far = torch.where(mask, (flat - first[:, :, None]).norm(dim=1), -1.0).argmax(1)
    second = flat.gather(2, far[:, None, None].expand(-1, 3, -1))[:, :, 0]
    for _ in range(8):
        other = (flat - second[:, :, None]).norm(dim=1) < (flat - first[:, :, None]).norm(dim=1)
        first, second = _mean(flat, mask & ~other, first), _mean(flat, mask & other, second)
    size = mask.sum(1).clamp_min(1)
    minority = torch.minimum((mask & other).sum(1), (mask & ~other).sum(1)) / size
    apart = (first - second).norm(dim=1)
    cohesion = _cohesion(mask.view_as(regions.hair), other.view_as(regions.hair))
    large = mask.sum(1) >= 6
    different = (apart > _TWO_TONE_DISTANCE) & (cohesion > _TWO_TONE_COHESION)
    flagged: Tensor = large & (minority > _TWO_TONE_SHARE) & different
    return flagged


def find_crown(cells: Tensor, valid: Tensor, promised: Promises, hair: Promises) -> tuple[Tensor, Tensor]:
    """Cells of a promised crown (B, N, N), and whether it is there (B,).

    A crown's cells lie in the upper third, have its colour, shading forgiven, are nearer to it than to the
    promised hair, and hold together over some width.
    """
    crown = promised.lab
    near = shaded_distance(cells, crown, shade=0.6)
    rival = torch.where(hair.any[:, None, None], shaded_distance(cells, hair.lab, shade=0.6), torch.inf)
    rows = torch.arange(cells.shape[2], device=cells.device)[None, :, None]
    height = valid.any(2).sum(1)[:, None, None]
    zone = valid & (rows < 0.45 * height) & promised.any[:, None, None]
    mine = zone & (near < 0.11) & (near < 0.9 * rival)
    mine = mine & (neighbours(mine) >= 3)
    width = valid.any(1).sum(1)
    span = mine.any(1).sum(1) / width.clamp_min(1)
    # A background of the crown's colour is no crown: its cells reach the rim.
    rim = mine[:, 0].sum(1) + mine[:, :, 0].sum(1)
    area = mine.sum((1, 2)) / valid.sum((1, 2)).clamp_min(1)
    present = (span > 0.12) & (span < 0.8) & (area > 0.008) & (rim < 0.25 * width)
    return mine & present[:, None, None], present


def crown_accuracy(cells_rgb: Tensor, crown: Tensor, present: Tensor, promised: Promises) -> Tensor:
    """0-100: half for being there, half for the colour of its cells' median, (B,)."""
    pixels = cells_rgb.flatten(2)
    inside = torch.where(crown.flatten(1)[:, None], pixels, torch.nan)
    colour = inside.nanmedian(2).values.nan_to_num(0.0)
    return torch.where(present, 50 + 0.5 * accuracy(promised.distance(colour)), 0.0)


def colour_purity(cells: Tensor, regions: Regions) -> Tensor:
    """0-100: share of background and hair that has its region's colour, shading of hair forgiven, (B,)."""
    rim = regions.ring & (regions.height < 0.75)
    ground = shaded_distance(cells, regions.background_colour, shade=1.0) < _SOLID
    hair = shaded_distance(cells, regions.hair_colour) < 1.4 * _SOLID
    return 100 * (share(ground, rim | regions.background) + share(hair, regions.hair)) / 2


def _mean(flat: Tensor, mask: Tensor, otherwise: Tensor) -> Tensor:
    total = (flat * mask[:, None]).sum(2) / mask.sum(1).clamp_min(1)[:, None]
    return torch.where(mask.any(1)[:, None], total, otherwise)


def _cohesion(mask: Tensor, other: Tensor) -> Tensor:
    """How much more often neighbours are of one kind than chance has it: 1 two clean areas, 0 strewn, (B,)."""
    links = same = torch.zeros(len(mask), device=mask.device)
    for a, b, x, y in (
        (mask[:, 1:], mask[:, :-1], other[:, 1:], other[:, :-1]),
        (mask[:, :, 1:], mask[:, :, :-1], other[:, :, 1:], other[:, :, :-1]),
    ):
        links = links + (a & b).sum((1, 2))
        same = same + (a & b & (x == y)).sum((1, 2))
    p = (mask & other).sum((1, 2)) / mask.sum((1, 2)).clamp_min(1)
    chance = p**2 + (1 - p) ** 2
    return (same / links.clamp_min(1) - chance) / (1 - chance).clamp_min(1e-6)
