"""Pictures against what their prompts promise: background, hair, accessories, purity, bleeding.

A promise is a set of colours; the nearest one counts. Regions and their colours are found without looking at
the promise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.metrics.accessories import Found
from tasks.metrics.colour import accuracy, distance
from tasks.metrics.promises import Promises
from tasks.metrics.regions import Figure, Hair, share

_TOLERANCE = 0.08  # OKLab: still called by the same name
_SHADE = 0.3
_MINORITY = (0.08, 0.16)
_COHESION = 0.4
_APART = 0.14
_TWO_TONE = 0.57
_SOLID = 0.05
_BLEEDS = 0.05
_OTHERWISE = 0.12


def background_accuracy(parts: Figure, colour: Tensor, cells: Tensor, promised: Promises) -> Tensor:
    """0-100: the background's colour (B, 3), and how much of the picture's rim has a promised one, (B,)."""
    matches = (promised.nearest(cells) <= _TOLERANCE) & parts.rim
    return 0.6 * accuracy(promised.difference(colour)) + 0.4 * 100 * share(matches, parts.rim)


def hair_accuracy(colour: Tensor, promised: Promises) -> Tensor:
    """0-100: the hair's dominant colour (B, 3), (B,)."""
    return accuracy(promised.difference(colour))


def two_tone_score(cells: Tensor, hair: Hair) -> Tensor:
    """How much the hair has two hues in two areas, 0-1, (B,); shading of one hue is none.

    The second hue must be apart in more than lightness, cover its part, and hold together more than chance
    would have it. Where no second tone was found, up to a third tells how much hints at one.
    """
    apart = distance(hair.colour, hair.second_colour, _SHADE)
    second = share(hair.second, hair.mask)
    minority = torch.minimum(second, 1 - second)
    low, high = _MINORITY
    large = ((minority - low) / (high - low)).clamp(0, 1)
    clean = (_cohesion(hair.mask, hair.second) / _COHESION).clamp(0, 1)
    tone = large * clean * (apart / _APART).clamp(0, 1)
    return torch.where(tone > 0, (1 + 2 * tone) / 3, hair.hint / 3)


def is_two_toned(score: Tensor) -> Tensor:
    """Whether a two-tone score is one that people would call two-toned, (B,) bool."""
    return score > _TWO_TONE


def accessory_accuracy(found: Found, colour: Tensor, promised: Promises) -> Tensor:
    """0-100: half for being there, half for its dominant colour (B, 3), (B,)."""
    return torch.where(found.present, 50 + 0.5 * accuracy(promised.difference(colour)), 0.0)


def colour_purity(cells: Tensor, parts: Figure, hair: Hair) -> Tensor:
    """0-100: share of background and hair that has its region's colour, shading of hair forgiven, (B,)."""
    ground = distance(cells, parts.background_colour[..., None, None]) < _SOLID
    pure = share(ground, parts.rim | parts.background)
    one_hue = distance(cells, hair.colour[..., None, None], 0.5) < 1.4 * _SOLID
    return 100 * torch.where(hair.found, (pure + share(one_hue, hair.mask)) / 2, pure)


def colour_bleeding(cells: Tensor, parts: Figure, hair: Hair, promises: dict[str, Promises]) -> Tensor:
    """0-100: the largest share of a region that has the promised colour of another one, (B,); lower is better.

    Only promised colours that are clearly apart from what the region itself was promised count.
    """
    regions = {"background": parts.background, "hair": hair.mask, "skin": parts.skin}
    worst = torch.zeros(len(cells), device=cells.device, dtype=torch.float64)
    for source, promise in promises.items():
        stained = promise.nearest(cells) < _BLEEDS
        for name, region in regions.items():
            if name == source or name not in promises:
                continue
            own = promises[name]
            apart = own.any & (own.nearest(promise.first[..., None, None])[:, 0, 0] > _OTHERWISE)
            foreign = stained & (own.nearest(cells) > _OTHERWISE)
            worst = torch.maximum(worst, torch.where(apart & promise.any, share(foreign, region), 0.0))
    return 100 * worst


def _cohesion(mask: Tensor, other: Tensor) -> Tensor:
    """How much more often neighbours are of one kind than chance has it: 1 two clean areas, 0 strewn, (B,)."""
    links = same = torch.zeros(len(mask), device=mask.device, dtype=torch.int64)
    for a, b, x, y in (
        (mask[:, 1:], mask[:, :-1], other[:, 1:], other[:, :-1]),
        (mask[:, :, 1:], mask[:, :, :-1], other[:, :, 1:], other[:, :, :-1]),
    ):
        links = links + (a & b).sum((1, 2))
        same = same + (a & b & (x == y)).sum((1, 2))
    p = (mask & other).sum((1, 2)).double() / mask.sum((1, 2)).clamp_min(1)
    chance = p**2 + (1 - p) ** 2
    return (same / links.clamp_min(1).double() - chance) / (1 - chance).clamp_min(1e-6)
