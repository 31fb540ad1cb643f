"""Things a bust wears, looked for by their promised colour in the zone where each belongs.

The colour alone proves nothing: cells count only where they are nearer to the promised colour than to skin,
background and promised hair, and only a thing of the size and place of its kind is there.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import distance
from tasks.metrics.promises import Promises
from tasks.metrics.regions import Figure, hair_zone, neighbours

_REACH = 0.11
_SHADE = 0.6
_RIM_SHADE = 0.3
_RIVAL = 0.9
_SAME = 0.06
"""OKLab distance below which a promised accessory cannot be told from what is around it."""


@dataclass(frozen=True)
class Kind:
    """Where an accessory belongs, in parts of the face's height below its top and of its width around it.

    Attributes:
        rows: first and last row, 0 the top of the face, 1 the chin.
        inside: columns from its sides inwards are excluded beyond this part; None: the whole width counts.
        margin: columns beyond the face's sides that still count.
        span: part of the face's width that the thing spreads over at least.
        area: its cells in squares of the face's width at least.
        home: if it sits on hair: part that is not beside the face as well, where hair hangs, at least.
    """

    rows: tuple[float, float]
    margin: float
    span: float
    area: float
    home: float = 0.0
    inside: float | None = None
    single: bool = False


KINDS = {
    "crown": Kind(rows=(-9, 0.15), margin=0.5, span=0.3, area=0.03, home=0.6),
    "hat": Kind(rows=(-9, 0.15), margin=0.8, span=0.55, area=0.12, home=0.6),
    "sunglasses": Kind(rows=(0.0, 0.75), margin=0.1, span=0.5, area=0.08),
    "earrings": Kind(rows=(0.35, 1.15), margin=0.25, span=0.0, area=0.002, inside=0.15, single=True),
    "necklace": Kind(rows=(0.85, 1.7), margin=0.2, span=0.3, area=0.01),
}
"""Accessories that can be looked for."""


@dataclass(frozen=True)
class Found:
    """One kind of accessory in B cell maps.

    Attributes:
        cells: (B, N, N) its cells; empty where it is absent.
        present: (B,) bool.
        clear: (B,) False where its colour cannot be told from hair, skin or background.
    """

    cells: Tensor
    present: Tensor
    clear: Tensor


def find_accessory(kind: str, cells: Tensor, parts: Figure, promised: Promises, hair: Promises) -> Found:
    """Look for a promised accessory.

    Args:
        kind: a key of `KINDS`.
        cells: OKLab (B, 3, N, N) in whole units.
        promised, hair: its promised colours, and those of the hair.
    """
    about = KINDS[kind]
    near = promised.nearest(cells, _SHADE)
    rival = _rival(cells, parts, hair, _SHADE)
    alike = parts.figure & (near < _REACH) & (near < _RIVAL * rival)
    zone, width = _zone(about, parts)
    mine = alike & zone
    if not about.single:
        mine = mine & (neighbours(mine) >= 3)
    area, span = mine.sum((1, 2)), mine.any(1).sum(1)
    hanging = (alike & ~zone & hair_zone(parts.figure, parts.face)).sum((1, 2))
    present = (
        promised.any & (span >= about.span * width) & (area >= (about.area * width * width).clamp_min(1))
        & (area >= about.home * (area + hanging))
    )  # fmt: skip
    # Its own shading and rim belong to it.
    shaded = promised.nearest(cells, _RIM_SHADE)
    rim = parts.figure & zone & (shaded < _rival(cells, parts, hair, _RIM_SHADE).clamp_max(_REACH))
    whole = mine | (rim & (neighbours(mine) >= 2))
    closest = _rival(promised.first[..., None, None], parts, hair, 1.0)[:, 0, 0]
    return Found(whole & present[:, None, None], present, closest >= _SAME)


def _rival(cells: Tensor, parts: Figure, hair: Promises, shade: float) -> Tensor:
    """OKLab distance (B, R, C) of cells to what else they may be: skin, background or promised hair."""
    others = [distance(cells, c[..., None, None], shade) for c in (parts.skin_colour, parts.background_colour)]
    return torch.stack([*others, hair.nearest(cells, shade)]).amin(0)


def _zone(about: Kind, parts: Figure) -> tuple[Tensor, Tensor]:
    """The cells where a kind belongs (B, N, N), and the width of the face (B,)."""
    face = parts.face
    index = torch.arange(face.shape[1], device=face.device)
    top, height = _extent(face.any(2), index)
    left, width = _extent(face.any(1), index)
    row = (index - top[:, None]).double() / height[:, None]
    column = (index + 0.5 - left[:, None]).double() / width[:, None]
    in_rows = (row >= about.rows[0]) & (row <= about.rows[1])
    in_columns = (column >= -about.margin) & (column <= 1 + about.margin)
    if about.inside is not None:
        in_columns = in_columns & ((column <= about.inside) | (column >= 1 - about.inside))
    return in_rows[:, :, None] & in_columns[:, None, :], width


def _extent(some: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """First place that is set, and how many places from there to the last, at least 1, (B,)."""
    first = torch.where(some, index, len(index)).amin(1)
    last = torch.where(some, index, -1).amax(1)
    return first, (last - first + 1).clamp_min(1)
