"""Find the accessories of a bust by their promised colour, in the zone where each kind belongs.

Colour alone is no proof. Cells count only if they are nearer to the promised colour than to skin, background and
promised hair. An accessory is present only if it has the size and place of its kind.

The thresholds were tuned by hand on the labelled busts of `benchmarks.metrics`, seeds 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tasks.metrics.colour import distance
from tasks.metrics.promises import Promises
from tasks.metrics.regions import Figure, hair_zone, neighbours

_COLOUR_REACH = 0.11  # OKLab; wider than for hair: nearness to the promise is checked against rivals as well
_SHADE_WEIGHT = 0.6  # weight of lightness for the accessory itself: some shading is forgiven
_RIM_SHADE_WEIGHT = 0.3  # weight of lightness for its rim, where shading is stronger
_RIVAL_FACTOR = 0.9  # the promised colour must be at least 10 % nearer than skin, background or hair
_INDISTINCT = 0.06
"""OKLab distance below which a promised colour cannot be distinguished from skin, background or hair."""


@dataclass(frozen=True)
class Kind:
    """Describe where an accessory belongs, relative to the height and width of the face.

    Attributes:
        rows: first and last row; 0 is the top of the face, 1 the chin.
        margin: how far beyond the sides of the face it may reach, in face widths.
        span: minimum width, in face widths.
        area: minimum number of cells, in squared face widths.
        home: minimum share of its colour that lies in its zone rather than in the hair beside the face. A crown's
            colour that also hangs beside the face is hair.
        inside: how far it may reach inwards from either side of the face, in face widths; None for the whole width.
        single: whether lone cells count, as for earrings.
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
"""The accessories that can be found."""


@dataclass(frozen=True)
class Found:
    """Hold one kind of accessory in B cell maps.

    Attributes:
        cells: (B, N, N) its cells; empty where it is absent.
        present: (B,) bool.
        clear: (B,) False where its promised colour cannot be distinguished from hair, skin or background.
    """

    cells: Tensor
    present: Tensor
    clear: Tensor


def find_accessory(kind: str, cells: Tensor, parts: Figure, promised: Promises, hair: Promises) -> Found:
    """Find a promised accessory.

    Args:
        kind: a key of `KINDS`.
        cells: OKLab (B, 3, N, N) in whole units.
        parts: the figure.
        promised: the promised colours of the accessory.
        hair: the promised colours of the hair.
    """
    about = KINDS[kind]
    near = promised.nearest(cells, _SHADE_WEIGHT)
    rival = _rival(cells, parts, hair, _SHADE_WEIGHT)
    alike = parts.figure & (near < _COLOUR_REACH) & (near < _RIVAL_FACTOR * rival)
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
    # Add its shadow and rim, so that its dominant colour is judged over the whole accessory.
    shaded = promised.nearest(cells, _RIM_SHADE_WEIGHT)
    rim = parts.figure & zone & (shaded < _rival(cells, parts, hair, _RIM_SHADE_WEIGHT).clamp_max(_COLOUR_REACH))
    whole = mine | (rim & (neighbours(mine) >= 2))
    closest = _rival(promised.first[..., None, None], parts, hair, 1.0)[:, 0, 0]
    return Found(whole & present[:, None, None], present, closest >= _INDISTINCT)


def _rival(cells: Tensor, parts: Figure, hair: Promises, shade: float) -> Tensor:
    """Return the OKLab distance (B, R, C) of cells to the nearest of skin, background and promised hair."""
    others = [distance(cells, c[..., None, None], shade) for c in (parts.skin_colour, parts.background_colour)]
    return torch.stack([*others, hair.nearest(cells, shade)]).amin(0)


def _zone(about: Kind, parts: Figure) -> tuple[Tensor, Tensor]:
    """Return the cells where a kind belongs (B, N, N), and the width of the face in cells (B,)."""
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
    """Return the first set index, and the number of places from there to the last set one, at least 1, (B,)."""
    first = torch.where(some, index, len(index)).amin(1)
    last = torch.where(some, index, -1).amax(1)
    return first, (last - first + 1).clamp_min(1)
