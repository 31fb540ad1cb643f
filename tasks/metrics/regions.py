"""Find background, figure, face and hair on the native cell map, without a model and without reading the prompt.

Assumes a bust with the head on top, at least about ten cells wide. Every decision is made on whole numbers, or on
float64 values that are exact, so that CPU and GPU agree.

The thresholds were tuned by hand on the labelled busts of `benchmarks.metrics`, seeds 5 and 6.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tasks.metrics.bins import Bins
from tasks.metrics.colour import UNIT, distance
from tasks.metrics.palette import Palette

_BACKGROUND_REACH = 0.06
"""OKLab distance within which a cell has the background's colour: three just noticeable differences."""

_BACKGROUND_COLOURS = 6  # at most, for gradients and patterns; each costs a pass over the cells
_MIN_BACKGROUND_SHARE = 0.04  # of the picture; a smaller one is treated as not drawn
_MAX_MATERIALS = 24  # colours of a figure; they are compared pairwise, so memory grows with the square
_SAME_COLOUR = 0.055  # OKLab, lightness at weight 0.6: noise and slight shading stay inside
_DARK = 0.30 * UNIT  # OKLab lightness; thin shapes below it are outlines, not hair
_SHADE_WEIGHT = 0.15  # weight of lightness between hair colours: shading of one hue must not look like a second hue
_OTHER_HUE = 0.06  # OKLab, lightness at `_SHADE_WEIGHT`: from here on a hue is not the hair's own
_CLEARLY_OTHER_HUE = 0.14  # same scale: from here on a hint of a second tone counts in full
_LIKE_SKIN = 0.07  # OKLab, lightness at `_SKIN_SHADE_WEIGHT`: below it a patch beside the hair is an ear or a neck
_NOT_SKIN = 0.10  # same scale: from here on a hint cannot be skin; larger than `_LIKE_SKIN` so that hints fade in
_SKIN_SHADE_WEIGHT = 0.3  # weight of lightness against skin, whose shadows are darker but of the same hue
_MIN_SOLID_HAIR_CELLS = 4  # one block of 2 x 2: less is an outline
_MIN_STRAND_CELLS = 5  # bright thin hair has no block of 2 x 2, so it needs more cells to count
_MIN_SECOND_TONE_CELLS = 4  # fewer are mixed colours at an edge


@dataclass(frozen=True)
class Figure:
    """Hold the regions of B cell maps: masks (B, N, N) and colours (B, 3) in OKLab units.

    Attributes:
        valid: cells inside the picture.
        ring: the outermost cells.
        background: cells connected to the border that have one of its colours.
        background_colour: the most frequent border colour.
        figure: valid cells that are not background.
        materials: the figure's colours.
        face: the bounding box of the face.
        skin: cells of the face's colour or its shades.
        skin_index: (B,) index of the most frequent skin colour in `materials`.
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
        """Return the most frequent skin colour, (B, 3)."""
        return _pick(self.materials.colours, self.skin_index)

    @property
    def has_background(self) -> Tensor:
        """Return whether the background covers at least 4 % of the picture, (B,) bool."""
        return share(self.background, self.valid) >= _MIN_BACKGROUND_SHARE

    @property
    def share(self) -> Tensor:
        """Return the share of the picture that is figure, 0-1, (B,)."""
        return share(self.figure, self.valid)

    @property
    def rim(self) -> Tensor:
        """Return the upper three quarters of the ring, (B, N, N): below them, shoulders touch the border."""
        return self.ring & _upper(self.valid, 0.75)

    @property
    def above_face(self) -> Tensor:
        """Return the rows above the face, (B, N, 1)."""
        rows = self.face.any(2)
        return ((rows.cumsum(1) == 0) & rows.any(1, keepdim=True))[:, :, None]

    @property
    def chest(self) -> Tensor:
        """Return the clothes below the middle three fifths of the face, (B, N, N)."""
        index = torch.arange(self.face.shape[1], device=self.face.device)
        left, right = _span(self.face.any(1), index)
        margin = (right - left + 1) // 5
        middle = (index >= (left + margin)[:, None]) & (index <= (right - margin)[:, None])
        return self.clothes & middle[:, None, :]

    @property
    def clothes(self) -> Tensor:
        """Return the figure below the face without skin, (B, N, N)."""
        return self.figure & ~self.skin & _below(self.face)


@dataclass(frozen=True)
class Hair:
    """Hold the hair of B cell maps.

    Attributes:
        mask: (B, N, N), empty where no hair was found.
        colour: (B, 3) the most frequent colour of the first hue, OKLab units.
        second: (B, N, N) hair cells of a second hue.
        second_colour: (B, 3) the most frequent colour of the second hue; undefined where `second` is empty.
        hint: (B,) 0-1, how much of one other hue touches the hair, even where it is too little for a second tone.
    """

    mask: Tensor
    colour: Tensor
    second: Tensor
    second_colour: Tensor
    hint: Tensor

    @property
    def found(self) -> Tensor:
        """Return whether any hair was found, (B,) bool."""
        return self.mask.any(2).any(1)


def find_figure(cells: Tensor, valid: Tensor, coarse: Bins, fine: Bins) -> Figure:
    """Separate a bust from its background and locate its face.

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
    """Find hair of one or two hues.

    Args:
        parts: the figure.
        worn: (B, N, N) cells of accessories such as a crown, which are excluded.
    """
    materials = parts.materials
    bare = parts.figure & ~parts.skin & ~worn
    zone = hair_zone(bare, parts.face, hanging=True)
    first, members = _largest_material(materials, hair_zone(bare, parts.face))
    mask = materials.mask(members) & zone
    rest = zone & ~mask
    second = _second_tone(materials, rest, parts, _pick(materials.colours, first))
    # A crown or the head may separate the two tones, so the second one need not touch the first. Cells that touch the
    # background cannot be eyes.
    rim = hair_zone(bare, parts.face) & (neighbours(parts.background) > 0)
    held = connected(second & ((neighbours(mask | worn) > 0) | rim), second)
    second = connected(held & (neighbours(held) >= 3), held)  # mixed colours at an edge are lone cells
    is_hair = _is_solid(mask | second, _pick(materials.colours, first))[:, None, None]
    mask, second = mask & is_hair, second & is_hair
    other = _first_largest(materials.count(second))
    hint = _hint(materials, rest, mask, parts, _pick(materials.colours, first))
    return Hair(mask | second, _pick(materials.colours, first), second, _pick(materials.colours, other), hint)


def _second_tone(materials: Materials, rest: Tensor, parts: Figure, first: Tensor) -> Tensor:
    """Return the cells where hair may be whose hue differs from the first hair colour (B, 3), as (B, N, N).

    Clothes reach up to the chin, eyes up to the fringe, ears and necks are shades of skin, and outlines run
    everywhere. A second tone is therefore rejected if most of it lies in the face or on the chest, if it looks like
    skin, or if it is a dark line.
    """
    here, everywhere = materials.count(rest), materials.count(parts.figure & ~parts.skin)
    inside, above = materials.count(parts.face), materials.count(rest & parts.above_face)
    rim = materials.count(rest & (neighbours(parts.background) > 0))
    eyes = (2 * inside >= everywhere) & (5 * above < everywhere) & (rim < 2)
    local = (5 * here >= everywhere) & ~eyes & (4 * materials.count(parts.chest) < everywhere)
    hues = materials.colours.transpose(1, 2)
    ear = (distance(hues, parts.skin_colour[..., None], _SKIN_SHADE_WEIGHT) < _LIKE_SKIN) & (3 * above < here)
    hue = distance(hues, first[..., None], _SHADE_WEIGHT) > _OTHER_HUE
    blocks = materials.count_solid(rest)
    line = (materials.colours[..., 0] < _DARK) & (2 * blocks < materials.count(rest))
    second = materials.mask(local & hue & ~line & ~ear) & rest
    return second & (second.sum((1, 2)) >= _MIN_SECOND_TONE_CELLS)[:, None, None]


def _hint(materials: Materials, rest: Tensor, mask: Tensor, parts: Figure, first: Tensor) -> Tensor:
    """Return how much of one hue that is neither the first hair colour (B, 3) nor skin lies beside the hair, 0-1."""
    here, near_hair, chest, everywhere = (
        _sum_over(materials.shades, materials.count(region)).double()
        for region in (rest, rest & (neighbours(mask) > 0), parts.chest, parts.figure & ~parts.skin)
    )
    size = mask.sum((1, 2)).double()[:, None]
    minority = 2 * torch.minimum(here, size) / (here + size).clamp_min(1)
    own = (near_hair / here.clamp_min(1)) * (1 - chest / everywhere.clamp_min(1)).clamp_min(0)
    hues = materials.colours.transpose(1, 2)
    apart = distance(hues, first[..., None], _SHADE_WEIGHT)
    skin = distance(hues, parts.skin_colour[..., None], _SKIN_SHADE_WEIGHT)
    likely = minority * own * (apart / _CLEARLY_OTHER_HUE).clamp(max=1) * (skin / _NOT_SKIN).clamp(max=1)
    return torch.where(materials.live & (apart > _OTHER_HUE), likely, 0.0).amax(1)


def _is_solid(mask: Tensor, colour: Tensor) -> Tensor:
    """Return whether a region is hair, (B,): it has a solid block, or its thin strands are bright.

    Thin dark strands are outlines; thin bright ones may be hair.
    """
    thin = (mask.sum((1, 2)) >= _MIN_STRAND_CELLS) & (colour[:, 0] > _DARK)
    return thin | (solid(mask).sum((1, 2)) >= _MIN_SOLID_HAIR_CELLS)


@dataclass(frozen=True)
class Materials:
    """Hold up to K = 24 colours of a figure, and which of them are shades of one material.

    Attributes:
        colours: (B, K, 3) OKLab in whole units, most frequent first.
        live: (B, K) False for the padding where a figure has fewer colours.
        near: (B, K, K) which pairs are nearly the same colour.
        shades: (B, K, K) which pairs are shades of one hue.
        member: (B, N, N) index of each cell's colour; K for none.
    """

    colours: Tensor
    live: Tensor
    near: Tensor
    shades: Tensor
    member: Tensor

    @classmethod
    def of(cls, cells: Bins, mask: Tensor) -> Materials:
        """Collect the most frequent colours of the masked cells (B, N, N)."""
        palette = Palette.of(cells, mask)
        colours, live = palette.colours[:, :_MAX_MATERIALS], palette.counts[:, :_MAX_MATERIALS] > 0
        both = live[:, :, None] & live[:, None, :]
        # Lightness at weight 0.6: shading differs more in lightness than in hue.
        apart = distance(colours.transpose(1, 2)[..., :, None], colours.transpose(1, 2)[..., None, :], 0.6)
        near, shades = (apart < _SAME_COLOUR) & both, _shades(colours) & both
        return cls(colours, live, near, shades, palette.member.clamp_max(_MAX_MATERIALS))

    def count(self, mask: Tensor) -> Tensor:
        """Count the cells of each colour in a region (B, N, N), as (B, K) int64."""
        counts = torch.zeros(len(mask), _MAX_MATERIALS + 1, device=mask.device, dtype=torch.int64)
        return counts.scatter_add_(1, self.member.flatten(1), mask.flatten(1).long())[:, :_MAX_MATERIALS]

    def count_solid(self, mask: Tensor) -> Tensor:
        """Count the cells of each colour in a region that belong to a 2 x 2 block of that colour, (B, K) int64."""
        # Outside the region neighbouring columns get different negative numbers, so that no block can form there.
        corner = torch.where(mask, self.member, -1 - torch.arange(mask.shape[2], device=mask.device))
        rows = corner[:, 1:] == corner[:, :-1]
        return self.count(_blocks(rows[:, :, 1:] & rows[:, :, :-1] & (corner[:, 1:, 1:] == corner[:, 1:, :-1])))

    def mask(self, chosen: Tensor) -> Tensor:
        """Return the cells (B, N, N) that have one of the chosen colours (B, K)."""
        none = torch.zeros_like(chosen[:, :1])
        return torch.cat([chosen, none], 1).gather(1, self.member.flatten(1)).view(self.member.shape)


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Return the share of the cells of `whole` (B, N, N) that `part` covers, 0-1, (B,); 0 for an empty `whole`."""
    return (part & whole).sum((1, 2)).double() / whole.sum((1, 2)).clamp_min(1).double()


def neighbours(mask: Tensor) -> Tensor:
    """Count the set cells in the 3 x 3 window around each cell, itself included, (B, N, N)."""
    return F.avg_pool2d(mask[:, None].float(), 3, 1, 1, divisor_override=1)[:, 0]


def solid(mask: Tensor) -> Tensor:
    """Return the cells (B, N, N) that belong to a full 2 x 2 block: outlines and strands drop out."""
    return _blocks(mask[:, 1:, 1:] & mask[:, 1:, :-1] & mask[:, :-1, 1:] & mask[:, :-1, :-1])


def _blocks(corners: Tensor) -> Tensor:
    """Return the cells (B, N, N) of all 2 x 2 blocks whose upper left corners are given, (B, N-1, N-1)."""
    padded = F.pad(corners, (1, 1, 1, 1))
    return padded[:, 1:, 1:] | padded[:, 1:, :-1] | padded[:, :-1, 1:] | padded[:, :-1, :-1]


def connected(seed: Tensor, allowed: Tensor) -> Tensor:
    """Return the cells of `allowed` that are 4-connected to `seed`, (B, N, N)."""
    reached = seed & allowed
    # Whole runs are filled at once: a round crosses the picture, where a step to the neighbours crosses one cell.
    while True:
        along = _fill_runs(reached, allowed)
        along = _fill_runs(along.transpose(1, 2), allowed.transpose(1, 2)).transpose(1, 2)
        if torch.equal(along, reached):
            return reached
        reached = along


def _fill_runs(reached: Tensor, allowed: Tensor) -> Tensor:
    """Fill each row's runs of allowed cells that contain a reached cell."""
    run = (~allowed).int().cumsum(2)
    hit = torch.zeros(*run.shape[:2], run.shape[2] + 1, dtype=torch.int32, device=run.device)
    hit.scatter_reduce_(2, run.long(), reached.int(), "amax")
    return (hit.gather(2, run.long()) > 0) & allowed


def _background(cells: Tensor, valid: Tensor, ring: Tensor, bins: Bins) -> tuple[Tensor, Tensor]:
    """Return the cells (B, N, N) connected to the border in one of its colours, and the main border colour (B, 3).

    A further colour is accepted where a gradient leads to it, or where it appears in an upper corner or several
    times along the upper edge, as a pattern does.
    """
    rim = ring & _upper(valid, 0.75)
    first = bins.dominant(rim)
    grounds = [first]
    near = distance(cells, first[..., None, None]) < _BACKGROUND_REACH
    for _ in range(_BACKGROUND_COLOURS - 1):
        rest = rim & ~near
        colour = bins.dominant(rest)
        mine = distance(cells, colour[..., None, None]) < _BACKGROUND_REACH
        # A step of a gradient lies less than two reaches from the colour before it.
        gradient = torch.stack([distance(colour, g) for g in grounds]).amin(0) < 1.9 * _BACKGROUND_REACH
        accepted = (share(mine & rest, rim) > 0.05) & (gradient | _is_pattern(mine & rim, valid))
        grounds.append(torch.where(accepted[:, None], colour, first))
        near = near | (mine & accepted[:, None, None])
    return connected(ring & near, valid & near), first


def _is_pattern(mine: Tensor, valid: Tensor) -> Tensor:
    """Return whether a border colour appears in an upper corner or in three places along the upper edge, (B,)."""
    top = valid.int().argmax(1, keepdim=True)  # (B, 1, N): the first row of each column
    edge = mine.gather(1, top)[:, 0]
    columns = valid.any(1)
    last = columns.sum(1, keepdim=True) - 1
    corner = edge[:, 0] | edge.gather(1, last.clamp_min(0))[:, 0]
    runs = (edge[:, 1:] & ~edge[:, :-1]).sum(1) + edge[:, 0]
    return corner | (runs >= 3)


def _skin(materials: Materials, figure: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return skin (B, N, N), the index of its most frequent colour (B,), and the box of the face (B, N, N).

    Skin is the colour that dominates the middle of the figure, with its near colours. A darker or lighter shade
    counts only if at least 60 % of it lies in the face or below: hair often has the same hue.
    """
    height, side = _place(figure)
    # On a bust the face lies in the middle: below the hair, above the clothes, between the sides.
    middle = figure & (height > 0.30) & (height < 0.70) & (side.abs() < 0.25)
    light, a, b = materials.colours.double().unbind(2)
    # Human skin lies between pink and yellow and is neither dark nor grey. Such colours get three times the votes;
    # others stay possible: the figure need not be a person.
    usual = (a > 0.005 * UNIT) & (b > 0.01 * UNIT) & (a < 1.6 * b) & (b < 0.13 * UNIT) & (light > 0.3 * UNIT)
    own = materials.count(middle)
    votes = _sum_over(materials.near, own) * (1 + 2 * usual.long()) * materials.live
    crest = _sum_over(materials.near, materials.count(_crest(figure)))
    # A colour that also covers the top of the head is probably hair, so it loses votes, but not all: it may be the
    # only candidate.
    votes = votes * 4096 // (4096 + 4096 * crest // _sum_over(materials.near, own).clamp_min(1))
    best = _first_largest(votes * 4096 + own)
    near = _row(materials.near, best)
    face = _face_box(materials.mask(near) & figure, figure)
    inside, everywhere = materials.count(face | _below(face)), materials.count(figure)
    shade = _row(materials.shades, best) & (10 * inside >= 6 * everywhere)
    return materials.mask(near | shade) & figure, best, face


def _crest(figure: Tensor) -> Tensor:
    """Return the uppermost cells of each column that reaches the upper third of the figure, (B, N, N)."""
    height, _ = _place(figure)
    row = torch.arange(figure.shape[1], device=figure.device)[None, :, None]
    top = torch.where(figure, row, figure.shape[1]).amin(1, keepdim=True)
    high = (figure & (height < 0.35)).any(1, keepdim=True)
    tall = figure.any(2).sum(1)[:, None, None]
    return figure & high & (row - top < (tall // 8).clamp_min(2))


def _face_box(skin: Tensor, figure: Tensor) -> Tensor:
    """Return the box of the face: rows and columns where skin is wide, from the forehead to the chin, (B, N, N)."""
    _, side = _place(figure)
    middle = skin & (side.abs() < 0.40)
    rows = middle.sum(2)
    index = torch.arange(skin.shape[1], device=skin.device)
    wide = rows * 10 >= 4 * rows.amax(1, keepdim=True)
    top = torch.where(wide, index, len(index)).amin(1)
    width = rows.amax(1)
    bottom = top + (1.25 * width).ceil().long()  # a face is at most a quarter higher than it is wide
    within = middle & (index[None, :, None] >= top[:, None, None]) & (index[None, :, None] <= bottom[:, None, None])
    columns = within.sum(1)
    tall = columns * 10 >= 3 * columns.amax(1, keepdim=True).clamp_min(1)
    left, right = torch.where(tall, index, len(index)).amin(1), torch.where(tall, index, -1).amax(1)
    lowest = torch.where(within.any(2), index, -1).amax(1)
    # The neck begins where skin becomes narrow in the lower half of the face.
    narrow = (rows * 100 < 62 * width[:, None]) & (index > (top + width // 2)[:, None])
    neck = torch.where(narrow, index, len(index)).amin(1)
    bottom = torch.minimum(torch.minimum(bottom, lowest), neck - 1)
    in_rows = (index >= top[:, None]) & (index <= bottom[:, None])
    in_columns = (index >= left[:, None]) & (index <= right[:, None])
    return in_rows[:, :, None] & in_columns[:, None, :]


def hair_zone(figure: Tensor, face: Tensor, hanging: bool = False) -> Tensor:
    """Return the cells where hair may be: above the face, in its top fifth, and beside it, (B, N, N).

    Args:
        figure: (B, N, N) candidate cells.
        face: (B, N, N) the box of the face.
        hanging: also include half a face height below the chin, where long hair hangs (and clothes begin).
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
    # Eyes may lie as high as a fringe, but skin surrounds them, so they are not connected to the outside.
    return connected(zone & ((index[:, None] < top[:, None, None]) | beside), zone)


def _largest_material(materials: Materials, zone: Tensor) -> tuple[Tensor, Tensor]:
    """Return the main colour (B,) and all shades (B, K) of the material with the most solid cells in a zone."""
    own = materials.count_solid(zone) * 4 + materials.count(zone)
    votes = _sum_over(materials.shades, own) * materials.live
    best = _first_largest(votes * 4096 + own)
    chosen = _row(materials.shades, best)
    return _first_largest(materials.count(zone) * chosen), chosen


def _shades(colours: Tensor) -> Tensor:
    """Return which pairs (B, K, K) of colours (B, K, 3) are shades of one material: same hue, both grey, or near."""
    light, a, b = (colours.double() / UNIT).unbind(2)
    chroma = (a * a + b * b).sqrt()
    apart = ((a[:, :, None] - a[:, None]).square() + (b[:, :, None] - b[:, None]).square()).sqrt()
    lighter = (light[:, :, None] - light[:, None]).abs()
    cosine = (a[:, :, None] * a[:, None] + b[:, :, None] * b[:, None]) / (chroma[:, :, None] * chroma[:, None] + 1e-12)
    grey = chroma < 0.035  # below it the hue of a colour is noise
    hued = ~grey[:, :, None] & ~grey[:, None]
    same_hue = hued & (cosine > 0.94) & (lighter < 0.30) & (apart < 0.12)
    both_grey = grey[:, :, None] & grey[:, None] & (lighter < 0.18)
    black = light < 0.32  # the eye cannot distinguish hues there
    return (
        same_hue
        | both_grey
        | ((lighter < 0.08) & (apart < 0.05))
        | (black[:, :, None] & black[:, None] & (apart < 0.08))
    )


def _ring(valid: Tensor) -> Tensor:
    padded = F.pad(valid, (1, 1, 1, 1))
    return valid & ~(padded[:, 2:, 1:-1] & padded[:, :-2, 1:-1] & padded[:, 1:-1, 2:] & padded[:, 1:-1, :-2])


def _upper(valid: Tensor, part: float) -> Tensor:
    """Return the upper `part` (0-1) of the picture's rows, (B, N, 1)."""
    rows = valid.any(2)
    index = torch.arange(valid.shape[1], device=valid.device)
    first, last = _span(rows, index)
    return (index < (first + part * (last - first + 1))[:, None])[:, :, None]


def _below(face: Tensor) -> Tensor:
    """Return the rows below the face, (B, N, 1)."""
    index = torch.arange(face.shape[1], device=face.device)
    _, bottom = _span(face.any(2), index)
    return (index > bottom[:, None])[:, :, None]


def _place(figure: Tensor) -> tuple[Tensor, Tensor]:
    """Return where each cell lies in the figure's box: height 0 (top) to 1, side -0.5 (left) to 0.5, (B, N, N)."""
    index = torch.arange(figure.shape[1], device=figure.device)
    # Rows and columns with fewer than three cells are ignored: stray cells must not stretch the box.
    top, bottom = _span(figure.sum(2) >= 3, index)
    left, right = _span(figure.sum(1) >= 3, index)
    height = (index - top[:, None]).double() / (bottom - top).clamp_min(1)[:, None]
    side = (index - (left + right)[:, None] / 2).double() / (right - left).clamp_min(1)[:, None]
    return height[:, :, None].expand_as(figure), side[:, None, :].expand_as(figure)


def _span(some: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Return the first and last set index, (B,); the whole side where none is set."""
    first = torch.where(some, index, len(index)).amin(1)
    last = torch.where(some, index, -1).amax(1)
    none = last < 0
    return first.masked_fill(none, 0), last.masked_fill(none, len(index) - 1)


def _first_largest(values: Tensor) -> Tensor:
    """Return the index (B,) of the largest of (B, K) whole numbers; of equals the first, which `argmax` leaves open."""
    size = values.shape[1]
    return (values * size + (size - 1 - torch.arange(size, device=values.device))).argmax(1)


def _sum_over(relation: Tensor, per_colour: Tensor) -> Tensor:
    """Sum `per_colour` (B, K) over all colours that each colour is related to by (B, K, K)."""
    return (relation.long() * per_colour[:, None, :]).sum(2)


def _row(matrix: Tensor, index: Tensor) -> Tensor:
    """Pick one row (B, K) of each matrix (B, K, K)."""
    return matrix.gather(1, index[:, None, None].expand(-1, 1, matrix.shape[2]))[:, 0]


def _pick(colours: Tensor, index: Tensor) -> Tensor:
    return colours.gather(1, index[:, None, None].expand(-1, 1, 3))[:, 0]
