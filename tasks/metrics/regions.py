"""Background, figure, face and hair on the native cell map, without a model and blind to what was promised.

Assumes a bust with the head on top, about ten cells wide or more. Works on whole numbers throughout.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.bins import Bins
from tasks.metrics.colour import UNIT, distance
from tasks.metrics.palette import Palette

_REACH = 0.06
"""OKLab distance within which a cell has the background's colour."""

_GROUNDS = 6
_MATERIALS = 24
_NEAR = 0.055
_DARK = 0.30 * UNIT
_SHADE = 0.15
_OTHER_HUE = 0.06
_CLEARLY = 0.14
_LIKE_SKIN = 0.07
_NOT_SKIN = 0.10
_SKIN_SHADE = 0.3
_MIN_HAIR = 4
_MIN_STRANDS = 5
_MIN_SECOND = 4


@dataclass(frozen=True)
class Figure:
    """Masks (B, N, N) and colours (B, 3) in OKLab units, of B cell maps.

    Attributes:
        ring: the outermost cells.
        background: connected to the border, in the border's colours.
        background_colour: the most frequent of them.
        materials: the figure's colours.
        face: the box of the face.
        skin: what is of the face's colour or of its shades.
        skin_index: (B,) the most frequent of the materials in the face.
    """

    valid: Tensor
    ring: Tensor
    background: Tensor
    background_colour: Tensor
    figure: Tensor
    materials: Materials
    face: Tensor
    skin: Tensor
    skin_index: Tensor

    @property
    def skin_colour(self) -> Tensor:
        """Its most frequent colour, (B, 3)."""
        return _pick(self.materials.colours, self.skin_index)

    @property
    def share(self) -> Tensor:
        """Share of the picture that is figure, (B,)."""
        return share(self.figure, self.valid)

    @property
    def rim(self) -> Tensor:
        """The part of the ring where a background is to be expected: below, shoulders leave the picture."""
        return self.ring & _upper(self.valid, 0.75)

    @property
    def above_face(self) -> Tensor:
        """Rows above the face, (B, N, 1)."""
        rows = self.face.any(2)
        return ((rows.cumsum(1) == 0) & rows.any(1, keepdim=True))[:, :, None]

    @property
    def chest(self) -> Tensor:
        """The figure straight below the middle of the face, but for skin."""
        index = torch.arange(self.face.shape[1], device=self.face.device)
        left, right = _span(self.face.any(1), index)
        margin = (right - left + 1) // 5
        middle = (index >= (left + margin)[:, None]) & (index <= (right - margin)[:, None])
        return self.clothes & middle[:, None, :]

    @property
    def clothes(self) -> Tensor:
        """The figure below the face, but for skin."""
        return self.figure & ~self.skin & _below(self.face)


@dataclass(frozen=True)
class Hair:
    """Hair of B cell maps.

    Attributes:
        mask: (B, N, N), empty where no hair was found.
        colour: (B, 3) the most frequent colour of its first hue, OKLab units.
        second: (B, N, N) its cells that have another hue.
        second_colour: (B, 3) the most frequent of those; means nothing where there are none.
        hint: (B,) 0-1, how much of one other hue touches the hair, whether or not it is enough to call it a tone.
    """

    mask: Tensor
    colour: Tensor
    second: Tensor
    second_colour: Tensor
    hint: Tensor

    @property
    def found(self) -> Tensor:
        """Whether there is hair to speak of, (B,)."""
        return self.mask.any(2).any(1)


def find_figure(cells: Tensor, valid: Tensor, coarse: Bins, fine: Bins) -> Figure:
    """Part a bust from its background and find its face.

    Args:
        cells: OKLab (B, 3, N, N) in whole units.
        valid: cells inside the picture (B, N, N).
        coarse, fine: the cells in cubes of 1/16 and 1/32 a side.
    """
    ring = _ring(valid)
    background, background_colour = _background(cells, valid, ring, coarse)
    figure = valid & ~background
    materials = Materials.of(fine, figure)
    skin, skin_index, face = _skin(materials, figure)
    return Figure(valid, ring, background, background_colour, figure, materials, face, skin, skin_index)


def find_hair(parts: Figure, worn: Tensor) -> Hair:
    """Find hair in one hue or two.

    Args:
        parts: the figure.
        worn: cells known to be a crown or the like, which are no hair (B, N, N).
    """
    materials = parts.materials
    bare = parts.figure & ~parts.skin & ~worn
    zone = hair_zone(bare, parts.face, hanging=True)
    first, members = _largest_material(materials, hair_zone(bare, parts.face))
    mask = materials.mask(members) & zone
    rest = zone & ~mask
    second = _second_tone(materials, rest, parts, _pick(materials.colours, first))
    # A crown may part the two, and so may the head itself: what is seen against the background is no eye.
    rim = hair_zone(bare, parts.face) & (neighbours(parts.background) > 0)
    held = connected(second & ((neighbours(mask | worn) > 0) | rim), second)
    second = connected(held & (neighbours(held) >= 3), held)  # mixed colours at an edge are lone cells
    is_hair = _is_solid(mask | second, _pick(materials.colours, first))[:, None, None]
    mask, second = mask & is_hair, second & is_hair
    other = _first_largest(materials.count(second))
    hint = _hint(materials, rest, mask, parts, _pick(materials.colours, first))
    return Hair(mask | second, _pick(materials.colours, first), second, _pick(materials.colours, other), hint)


def _second_tone(materials: Materials, rest: Tensor, parts: Figure, first: Tensor) -> Tensor:
    """What else is in the hair's place and of another hue than its first colour (B, 3), (B, N, N).

    Clothes reach up to the chin, eyes up to the fringe, ears and necks are shades of skin, and outlines run
    everywhere: a second tone of hair is hardly seen below or inside the face, and is more than a dark line.
    """
    here, everywhere = materials.count(rest), materials.count(parts.figure & ~parts.skin)
    inside, above = materials.count(parts.face), materials.count(rest & parts.above_face)
    rim = materials.count(rest & (neighbours(parts.background) > 0))
    eyes = (2 * inside >= everywhere) & (5 * above < everywhere) & (rim < 2)
    local = (5 * here >= everywhere) & ~eyes & (4 * materials.count(parts.chest) < everywhere)
    hues = materials.colours.transpose(1, 2)
    ear = (distance(hues, parts.skin_colour[..., None], _SKIN_SHADE) < _LIKE_SKIN) & (3 * above < here)
    hue = distance(hues, first[..., None], _SHADE) > _OTHER_HUE
    blocks = materials.count_solid(rest)
    line = (materials.colours[..., 0] < _DARK) & (2 * blocks < materials.count(rest))
    second = materials.mask(local & hue & ~line & ~ear) & rest
    return second & (second.sum((1, 2)) >= _MIN_SECOND)[:, None, None]


def _hint(materials: Materials, rest: Tensor, mask: Tensor, parts: Figure, first: Tensor) -> Tensor:
    """How much of one hue, other than the hair's first colour (B, 3) and skin, is beside the hair, 0-1, (B,)."""
    here, near_hair, chest, everywhere = (
        _sum_over(materials.shades, materials.count(region)).double()
        for region in (rest, rest & (neighbours(mask) > 0), parts.chest, parts.figure & ~parts.skin)
    )
    size = mask.sum((1, 2)).double()[:, None]
    minority = 2 * torch.minimum(here, size) / (here + size).clamp_min(1)
    own = (near_hair / here.clamp_min(1)) * (1 - chest / everywhere.clamp_min(1)).clamp_min(0)
    hues = materials.colours.transpose(1, 2)
    apart = distance(hues, first[..., None], _SHADE)
    skin = distance(hues, parts.skin_colour[..., None], _SKIN_SHADE)
    likely = minority * own * (apart / _CLEARLY).clamp(max=1) * (skin / _NOT_SKIN).clamp(max=1)
    return torch.where(materials.live & (apart > _OTHER_HUE), likely, 0.0).amax(1)


def _is_solid(mask: Tensor, colour: Tensor) -> Tensor:
    """Whether a region is more than strands, (B,); dark strands are outlines, bright ones may be thin hair."""
    thin = (mask.sum((1, 2)) >= _MIN_STRANDS) & (colour[:, 0] > _DARK)
    return thin | (solid(mask).sum((1, 2)) >= _MIN_HAIR)


@dataclass(frozen=True)
class Materials:
    """The colours of a figure, and which of them are shades of one material.

    Attributes:
        colours: (B, K, 3) OKLab in whole units.
        live: (B, K) which of them there are.
        near: (B, K, K) which are all but the same.
        shades: (B, K, K) which are shades of one hue.
        member: (B, N, N) which of them a cell has; K for none.
    """

    colours: Tensor
    live: Tensor
    near: Tensor
    shades: Tensor
    member: Tensor

    @classmethod
    def of(cls, cells: Bins, mask: Tensor) -> Materials:
        """The most frequent colours of the masked cells."""
        palette = Palette.of(cells, mask)
        colours, live = palette.colours[:, :_MATERIALS], palette.counts[:, :_MATERIALS] > 0
        both = live[:, :, None] & live[:, None, :]
        apart = distance(colours.transpose(1, 2)[..., :, None], colours.transpose(1, 2)[..., None, :], 0.6)
        return cls(colours, live, (apart < _NEAR) & both, _shades(colours) & both, palette.member.clamp_max(_MATERIALS))

    def count(self, mask: Tensor) -> Tensor:
        """Cells of each colour in a region, (B, K)."""
        counts = torch.zeros(len(mask), _MATERIALS + 1, device=mask.device, dtype=torch.int64)
        return counts.scatter_add_(1, self.member.flatten(1), mask.flatten(1).long())[:, :_MATERIALS]

    def count_solid(self, mask: Tensor) -> Tensor:
        """Cells of each colour in a region that belong to a block of 2 x 2 of it, (B, K)."""
        corner = torch.where(mask, self.member, -1 - torch.arange(mask.shape[2], device=mask.device))
        rows = corner[:, 1:] == corner[:, :-1]
        return self.count(_blocks(rows[:, :, 1:] & rows[:, :, :-1] & (corner[:, 1:, 1:] == corner[:, 1:, :-1])))

    def mask(self, chosen: Tensor) -> Tensor:
        """Cells (B, N, N) of the chosen colours (B, K)."""
        none = torch.zeros_like(chosen[:, :1])
        return torch.cat([chosen, none], 1).gather(1, self.member.flatten(1)).view(self.member.shape)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Share of a region's cells (B, N, N) that lie in a part of it; 0 for an empty region."""
    return (part & whole).sum((1, 2)).double() / whole.sum((1, 2)).clamp_min(1).double()


def neighbours(mask: Tensor) -> Tensor:
    """Number of the nine cells around and at each place that are set, (B, N, N)."""
    return F.avg_pool2d(mask[:, None].float(), 3, 1, 1, divisor_override=1)[:, 0]


def solid(mask: Tensor) -> Tensor:
    """Cells (B, N, N) that belong to a full block of 2 x 2: outlines and strands drop out."""
    return _blocks(mask[:, 1:, 1:] & mask[:, 1:, :-1] & mask[:, :-1, 1:] & mask[:, :-1, :-1])


def _blocks(corners: Tensor) -> Tensor:
    """The cells (B, N, N) of all blocks of 2 x 2 whose upper left corners are given, (B, N-1, N-1)."""
    padded = F.pad(corners, (1, 1, 1, 1))
    return padded[:, 1:, 1:] | padded[:, 1:, :-1] | padded[:, :-1, 1:] | padded[:, :-1, :-1]


def connected(seed: Tensor, allowed: Tensor) -> Tensor:
    """Cells of `allowed` that are connected to the seed over their four sides, (B, N, N)."""
    reached = seed & allowed
    while True:
        along = _fill_runs(reached, allowed)
        along = _fill_runs(along.transpose(1, 2), allowed.transpose(1, 2)).transpose(1, 2)
        if torch.equal(along, reached):
            return reached
        reached = along


def _fill_runs(reached: Tensor, allowed: Tensor) -> Tensor:
    """Spread along each row's runs of allowed cells."""
    run = (~allowed).int().cumsum(2)
    hit = torch.zeros(*run.shape[:2], run.shape[2] + 1, dtype=torch.int32, device=run.device)
    hit.scatter_reduce_(2, run.long(), reached.int(), "amax")
    return (hit.gather(2, run.long()) > 0) & allowed


def _background(cells: Tensor, valid: Tensor, ring: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """What is connected to the border in the border's colours, and the first of those.

    More colours than one belong to it where a gradient leads from one to the next, or where a further one
    stands in a corner above or several times along the upper edge, as a pattern does.
    """
    rim = ring & _upper(valid, 0.75)
    first = bins.dominant(rim)
    grounds = [first]
    near = distance(cells, first[..., None, None]) < _REACH
    for _ in range(_GROUNDS - 1):
        rest = rim & ~near
        colour = bins.dominant(rest)
        mine = distance(cells, colour[..., None, None]) < _REACH
        gradient = torch.stack([distance(colour, g) for g in grounds]).amin(0) < 1.9 * _REACH
        accepted = (share(mine & rest, rim) > 0.05) & (gradient | _is_pattern(mine & rim, valid))
        grounds.append(torch.where(accepted[:, None], colour, first))
        near = near | (mine & accepted[:, None, None])
    return connected(ring & near, valid & near), first


def _is_pattern(mine: Tensor, valid: Tensor) -> Tensor:
    """Whether a colour of the border stands in an upper corner or in three places along the upper edge, (B,)."""
    top = valid.int().argmax(1, keepdim=True)  # (B, 1, N): the first row of each column
    edge = mine.gather(1, top)[:, 0]
    columns = valid.any(1)
    last = columns.sum(1, keepdim=True) - 1
    corner = edge[:, 0] | edge.gather(1, last.clamp_min(0))[:, 0]
    runs = (edge[:, 1:] & ~edge[:, :-1]).sum(1) + edge[:, 0]
    return corner | (runs >= 3)


def _skin(materials: Materials, figure: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Skin, the most frequent of its colours, and the box of the face.

    Skin is the colour that owns the middle of the figure, with its neighbours; of its darker and lighter shades
    only those that lie in the face or below it: hair is often of the same hue.
    """
    height, side = _place(figure)
    middle = figure & (height > 0.30) & (height < 0.70) & (side.abs() < 0.25)
    light, a, b = materials.colours.double().unbind(2)
    # Skin is between pink and yellow and neither dark nor grey, if it is a person's: three times as likely.
    usual = (a > 0.005 * UNIT) & (b > 0.01 * UNIT) & (a < 1.6 * b) & (b < 0.13 * UNIT) & (light > 0.3 * UNIT)
    own = materials.count(middle)
    votes = _sum_over(materials.near, own) * (1 + 2 * usual.long()) * materials.live
    crest = _sum_over(materials.near, materials.count(_crest(figure)))
    # What also covers the top of the head is hair, unless there is nothing else.
    votes = votes * 4096 // (4096 + 4096 * crest // _sum_over(materials.near, own).clamp_min(1))
    best = _first_largest(votes * 4096 + own)
    near = _row(materials.near, best)
    face = _face_box(materials.mask(near) & figure, figure)
    inside, everywhere = materials.count(face | _below(face)), materials.count(figure)
    shade = _row(materials.shades, best) & (10 * inside >= 6 * everywhere)
    return materials.mask(near | shade) & figure, best, face


def _crest(figure: Tensor) -> Tensor:
    """The uppermost cells of each column that reaches the upper third of the figure, (B, N, N)."""
    height, _ = _place(figure)
    row = torch.arange(figure.shape[1], device=figure.device)[None, :, None]
    top = torch.where(figure, row, figure.shape[1]).amin(1, keepdim=True)
    high = (figure & (height < 0.35)).any(1, keepdim=True)
    tall = figure.any(2).sum(1)[:, None, None]
    return figure & high & (row - top < (tall // 8).clamp_min(2))


def _face_box(skin: Tensor, figure: Tensor) -> Tensor:
    """The box of the face: rows and columns where skin is wide, from its top down to a chin, (B, N, N)."""
    _, side = _place(figure)
    middle = skin & (side.abs() < 0.40)
    rows = middle.sum(2)
    index = torch.arange(skin.shape[1], device=skin.device)
    wide = rows * 10 >= 4 * rows.amax(1, keepdim=True)
    top = torch.where(wide, index, len(index)).amin(1)
    width = rows.amax(1)
    bottom = top + (1.25 * width).ceil().long()
    within = middle & (index[None, :, None] >= top[:, None, None]) & (index[None, :, None] <= bottom[:, None, None])
    columns = within.sum(1)
    tall = columns * 10 >= 3 * columns.amax(1, keepdim=True).clamp_min(1)
    left, right = torch.where(tall, index, len(index)).amin(1), torch.where(tall, index, -1).amax(1)
    lowest = torch.where(within.any(2), index, -1).amax(1)
    # The neck begins where skin becomes narrow below the middle of that.
    narrow = (rows * 100 < 62 * width[:, None]) & (index > (top + width // 2)[:, None])
    neck = torch.where(narrow, index, len(index)).amin(1)
    bottom = torch.minimum(torch.minimum(bottom, lowest), neck - 1)
    in_rows = (index >= top[:, None]) & (index <= bottom[:, None])
    in_columns = (index >= left[:, None]) & (index <= right[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def hair_zone(figure: Tensor, face: Tensor, hanging: bool = False) -> Tensor:
    """Where hair can be: above the face, in its top fifth, and beside it, (B, N, N).

    Args:
        figure: cells that come into question (B, N, N).
        face: the box of the face.
        hanging: also where long hair hangs down, and clothes are.
    """
    index = torch.arange(face.shape[1], device=face.device)
    rows, columns = face.any(2), face.any(1)
    top, bottom = _span(rows, index)
    left, right = _span(columns, index)
    tall = bottom - top + 1
    above = index[:, None] < (top + 0.2 * tall)[:, None, None]
    level = index[:, None] <= (bottom + (0.5 if hanging else 0.05) * tall)[:, None, None]
    margin = 0.06 * (right - left + 1)
    beside = (index < (left + margin)[:, None, None]) | (index > (right - margin)[:, None, None])
    zone = figure & (above | (level & beside))
    # Eyes may lie as high as a fringe, but skin is around them.
    return connected(zone & ((index[:, None] < top[:, None, None]) | beside), zone)


def _largest_material(materials: Materials, zone: Tensor) -> tuple[Tensor, Tensor]:
    """The colour (B,) and the shades (B, K) of the material with the most solid cells in a zone."""
    own = materials.count_solid(zone) * 4 + materials.count(zone)
    votes = _sum_over(materials.shades, own) * materials.live
    best = _first_largest(votes * 4096 + own)
    chosen = _row(materials.shades, best)
    return _first_largest(materials.count(zone) * chosen), chosen


def _shades(colours: Tensor) -> Tensor:
    """Which colours (B, K, 3) are shades of one material: near in hue, or both grey, or simply near."""
    light, a, b = (colours.double() / UNIT).unbind(2)
    chroma = (a * a + b * b).sqrt()
    apart = ((a[:, :, None] - a[:, None]).square() + (b[:, :, None] - b[:, None]).square()).sqrt()
    lighter = (light[:, :, None] - light[:, None]).abs()
    cosine = (a[:, :, None] * a[:, None] + b[:, :, None] * b[:, None]) / (chroma[:, :, None] * chroma[:, None] + 1e-12)
    grey = chroma < 0.035
    hued = ~grey[:, :, None] & ~grey[:, None]
    same_hue = hued & (cosine > 0.94) & (lighter < 0.30) & (apart < 0.12)
    both_grey = grey[:, :, None] & grey[:, None] & (lighter < 0.18)
    black = light < 0.32  # the eye tells no hues apart there
    return (
        same_hue
        | both_grey
        | ((lighter < 0.08) & (apart < 0.05))
        | (black[:, :, None] & black[:, None] & (apart < 0.08))
    )


def _ring(valid: Tensor) -> Tensor:
    """The outermost cells of the picture."""
    padded = F.pad(valid, (1, 1, 1, 1))
    return valid & ~(padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2])


def _upper(valid: Tensor, part: float) -> Tensor:
    """The upper part of the picture's rows, (B, N, 1)."""
    rows = valid.any(2)
    index = torch.arange(valid.shape[1], device=valid.device)
    first, last = _span(rows, index)
    return (index < (first + part * (last - first + 1))[:, None])[:, :, None]


def _below(face: Tensor) -> Tensor:
    """Everything below the face, (B, N, 1)."""
    index = torch.arange(face.shape[1], device=face.device)
    _, bottom = _span(face.any(2), index)
    return (index > bottom[:, None])[:, :, None]


def _place(figure: Tensor) -> tuple[Tensor, Tensor]:
    """Where each cell lies in the figure's box: height 0 to 1 downwards, side -0.5 to 0.5."""
    index = torch.arange(figure.shape[1], device=figure.device)
    # Stray cells do not stretch the box: a row or column counts from three cells on.
    top, bottom = _span(figure.sum(2) >= 3, index)
    left, right = _span(figure.sum(1) >= 3, index)
    height = (index - top[:, None]).double() / (bottom - top).clamp_min(1)[:, None]
    side = (index - (left + right)[:, None] / 2).double() / (right - left).clamp_min(1)[:, None]
    return height[:, :, None].expand_as(figure), side[:, None, :].expand_as(figure)


def _span(some: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """First and last place that is set, (B,); the whole side where none is."""
    first = torch.where(some, index, len(index)).amin(1)
    last = torch.where(some, index, -1).amax(1)
    none = last < 0
    return first.masked_fill(none, 0), last.masked_fill(none, len(index) - 1)


def _first_largest(values: Tensor) -> Tensor:
    """Index of the largest of (B, K); of equals the first, on every device."""
    size = values.shape[1]
    return (values * size + (size - 1 - torch.arange(size, device=values.device))).argmax(1)


def _sum_over(relation: Tensor, per_colour: Tensor) -> Tensor:
    """Sums (B, K) over all colours that each is related to by (B, K, K)."""
    return (relation.long() * per_colour[:, None, :]).sum(2)


def _row(matrix: Tensor, index: Tensor) -> Tensor:
    """One row (B, K) of each of (B, K, K)."""
    return matrix.gather(1, index[:, None, None].expand(-1, 1, matrix.shape[2]))[:, 0]


def _pick(colours: Tensor, index: Tensor) -> Tensor:
    return colours.gather(1, index[:, None, None].expand(-1, 1, 3))[:, 0]
