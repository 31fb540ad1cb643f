"""Score pictures against what their prompts promise: background, hair, accessories, purity, bleeding.

A promise is a set of colours; the nearest one counts. Background, figure and hair are found without looking at the
promise. Distances are in OKLab. The thresholds were tuned by hand on the labelled busts of `benchmarks.metrics`,
seeds 5 and 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tasks.metrics.accessories import Found
from tasks.metrics.colour import accuracy, distance
from tasks.metrics.promises import Promises
from tasks.metrics.regions import Figure, Hair, share

_SAME_NAME = 0.08  # within this distance people still use the same colour name
_SHADE_WEIGHT = 0.3  # weight of lightness between two hair tones: shading alone must not make a second tone
_MINORITY_SHARE = (0.08, 0.16)  # share of the hair: a second tone counts from the first value, in full from the second
_FULL_COHESION = 0.4  # cohesion from which two tones are clean areas; a random mix has 0
_FULL_TONE_DISTANCE = 0.14  # distance at which two tones are clearly different hues
_TWO_TONE_SCORE = 0.57  # a second tone of strength 0.36; any that was found scores above 1/3
_SAME_REGION_COLOUR = 0.05  # distance within which a cell belongs to its region's colour
_BLEED_REACH = 0.05  # distance within which a cell counts as another region's promised colour
_FOREIGN_DISTANCE = 0.12  # distance from the own promise; nearer ones could be shading of the own colour


def background_accuracy(parts: Figure, colour: Tensor, cells: Tensor, promised: Promises) -> Tensor:
    """Score the background, 0-100, (B,).

    60 % of the score is the background's colour (B, 3), sRGB in [0, 1]; 40 % is the share of the upper border that
    has a promised colour.
    """
    matches = (promised.nearest(cells) <= _SAME_NAME) & parts.rim
    return 0.6 * accuracy(promised.difference(colour)) + 0.4 * 100 * share(matches, parts.rim)


def hair_accuracy(colour: Tensor, promised: Promises) -> Tensor:
    """Score the hair's dominant colour (B, 3), sRGB in [0, 1], as 0-100, (B,)."""
    return accuracy(promised.difference(colour))


def two_tone_score(cells: Tensor, hair: Hair) -> Tensor:
    """Score how clearly the hair has two hues in two areas, 0-1, (B,); shading of one hue scores 0.

    A second hue must differ in more than lightness, cover at least 8 % of the hair, and form connected areas. A
    score above 1/3 means that one was found. A score up to 1/3 is only a hint of another hue beside the hair.
    """
    apart = distance(hair.colour, hair.second_colour, _SHADE_WEIGHT)
    second = share(hair.second, hair.mask)
    minority = torch.minimum(second, 1 - second)
    low, high = _MINORITY_SHARE
    large = ((minority - low) / (high - low)).clamp(0, 1)
    clean = (_cohesion(hair.mask, hair.second) / _FULL_COHESION).clamp(0, 1)
    tone = large * clean * (apart / _FULL_TONE_DISTANCE).clamp(0, 1)
    return torch.where(tone > 0, (1 + 2 * tone) / 3, hair.hint / 3)


def is_two_toned(score: Tensor) -> Tensor:
    """Return whether a two-tone score is high enough for people to call the hair two-toned, (B,) bool."""
    return score > _TWO_TONE_SCORE


def accessory_accuracy(found: Found, colour: Tensor, promised: Promises) -> Tensor:
    """Score an accessory, 0-100, (B,): 50 for being there, up to 50 for its dominant colour (B, 3)."""
    return torch.where(found.present, 50 + 0.5 * accuracy(promised.difference(colour)), 0.0)


def colour_purity(cells: Tensor, parts: Figure, hair: Hair) -> Tensor:
    """Return the percentage of background and hair cells in their region's colour, 0-100, (B,).

    Lightness counts half for hair, so that shading costs little.
    """
    ground = distance(cells, parts.background_colour[..., None, None]) < _SAME_REGION_COLOUR
    pure = share(ground, parts.rim | parts.background)
    one_hue = distance(cells, hair.colour[..., None, None], 0.5) < 1.4 * _SAME_REGION_COLOUR
    return 100 * torch.where(hair.found, (pure + share(one_hue, hair.mask)) / 2, pure)


def colour_bleeding(cells: Tensor, parts: Figure, hair: Hair, promises: dict[str, Promises]) -> Tensor:
    """Return the largest percentage of a region in another region's promised colour, 0-100, (B,); lower is better.

    Only promised colours that clearly differ from the region's own promise count.
    """
    regions = {"background": parts.background, "hair": hair.mask, "skin": parts.skin}
    worst = torch.zeros(len(cells), device=cells.device, dtype=torch.float64)
    for source, promise in promises.items():
        stained = promise.nearest(cells) < _BLEED_REACH
        for name, region in regions.items():
            if name == source or name not in promises:
                continue
            own = promises[name]
            apart = own.any & (own.nearest(promise.first[..., None, None])[:, 0, 0] > _FOREIGN_DISTANCE)
            foreign = stained & (own.nearest(cells) > _FOREIGN_DISTANCE)
            worst = torch.maximum(worst, torch.where(apart & promise.any, share(foreign, region), 0.0))
    return 100 * worst


def _cohesion(mask: Tensor, other: Tensor) -> Tensor:
    """Return how much more often neighbours are of one kind than by chance, (B,): 1 two clean areas, 0 random."""
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
