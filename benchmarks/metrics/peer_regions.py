"""Regions of one picture by NumPy and SciPy: background, face, hair in one tone or two, and what is worn.

The same decisions as `tasks.metrics.regions` and `tasks.metrics.accessories`, written for one cell map at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from benchmarks.metrics.numpy_colour import Real, length
from tasks.metrics.accessories import Kind

Mask = npt.NDArray[np.bool_]
Whole = npt.NDArray[np.intp]

_SQUARE = np.ones((3, 3), int)


@dataclass(frozen=True)
class Materials:
    """The figure's colours: (K, 3), which are all but the same, which are shades of one hue, and each cell's one."""

    colours: Real
    near: Mask
    shades: Mask
    member: Whole  # K where there is none

    @classmethod
    def of(cls, cells: Real, mask: Mask) -> Materials:
        """The 24 most frequent colours of a region."""
        colours, _, member = palette(cells, mask)
        kept = colours[:24]
        apart = length((kept[:, None] - kept[None]) * np.array([0.6, 1, 1]))
        return cls(kept, apart < 0.055, _shades(kept), np.minimum(member, len(kept)))

    def count(self, mask: Mask) -> Whole:
        """Cells of each colour in a region."""
        return np.bincount(self.member[mask], minlength=len(self.colours) + 1)[: len(self.colours)]

    def count_solid(self, mask: Mask) -> Whole:
        """Those that belong to a block of 2 x 2 of one colour."""
        number = np.where(mask, self.member, -1)
        block = (number[1:, 1:] == number[:-1, :-1]) & (number[1:, :-1] == number[:-1, :-1])
        block &= (number[:-1, 1:] == number[:-1, :-1]) & (number[:-1, :-1] >= 0)
        return self.count(_grown(block))

    def mask(self, chosen: Mask) -> Mask:
        """Cells of the chosen colours."""
        return np.asarray(np.append(chosen, False)[self.member])


@dataclass(frozen=True)
class Parts:
    """What a picture is parted into."""

    ring: Mask
    background: Mask
    background_colour: Real
    figure: Mask
    materials: Materials
    face: Mask
    skin: Mask
    skin_colour: Real

    @property
    def rim(self) -> Mask:
        """The border but for its lowest quarter."""
        return self.ring & _upper(self.ring.shape)

    @property
    def chest(self) -> Mask:
        """The figure straight below the middle of the face, but for skin."""
        left, right = span(self.face.any(0))
        margin = (right - left + 1) // 5
        columns = np.arange(self.face.shape[1])
        middle = (columns >= left + margin) & (columns <= right - margin)
        return self.figure & ~self.skin & _below(self.face) & middle


@dataclass(frozen=True)
class Hair:
    """Hair with its colours, its cells of a second hue, and a hint of such."""

    mask: Mask
    colour: Real
    second: Mask
    second_colour: Real
    hint: float


def palette(cells: Real, mask: Mask) -> tuple[Real, Whole, Whole]:
    """Distinct colours of a region, their counts, and each cell's colour, most frequent first."""
    bins = np.clip(np.floor((cells + 0.5) * 32), 0, 63).astype(np.intp)
    keys = (bins[..., 0] * 64 + bins[..., 1]) * 64 + bins[..., 2]
    _, which, counts = np.unique(keys[mask], return_inverse=True, return_counts=True)
    if not len(counts):
        return np.zeros((0, 3)), counts, np.zeros(mask.shape, np.intp)
    order = np.argsort(-counts, kind="stable")[:256]
    means = np.stack([np.bincount(which, cells[mask][:, c]) for c in range(3)], 1)[order] / counts[order, None]
    near = ((means[:, None] - means[None]) ** 2).sum(2) < 0.045**2
    owner = np.full(len(means), -1)
    for i in range(len(means)):
        if owner[i] < 0:
            owner[near[i] & (owner < 0)] = i
    held = np.bincount(owner, counts[order], minlength=len(means)).astype(np.intp)
    kept = np.flatnonzero(owner == np.arange(len(means)))
    kept = kept[np.argsort(-held[kept], kind="stable")]
    place = np.full(len(counts), len(kept))
    place[order] = np.argsort(kept)[np.searchsorted(np.sort(kept), owner)]
    member = np.full(mask.shape, len(kept))
    member[mask] = place[which]
    return means[kept], held[kept], member


def find_parts(cells: Real) -> Parts:
    """Part a bust from its background and find its face."""
    ring = np.ones(cells.shape[:2], bool)
    ring[1:-1, 1:-1] = False
    background, colour = _background(cells, ring)
    figure = ~background
    materials = Materials.of(cells, figure)
    skin, best, face = _skin(materials, figure)
    skin_colour = materials.colours[best] if len(materials.colours) else np.zeros(3)
    return Parts(ring, background, colour, figure, materials, face, skin, skin_colour)


def find_hair(parts: Parts, worn: Mask) -> Hair:
    """Find hair in one hue or two."""
    materials = parts.materials
    nothing = np.zeros_like(worn)
    if not len(materials.colours):
        return Hair(nothing, np.zeros(3), nothing, np.zeros(3), 0.0)
    bare = parts.figure & ~parts.skin & ~worn
    upper, zone = hair_zone(bare, parts.face), hair_zone(bare, parts.face, hanging=True)
    own = materials.count_solid(upper) * 4 + materials.count(upper)
    members = materials.shades[int(np.argmax(materials.shades @ own * 4096 + own))]
    colour = materials.colours[int(np.argmax(materials.count(upper) * members))]
    mask = materials.mask(members) & zone
    rest = zone & ~mask
    second = _second_tone(materials, rest, parts, colour)
    rim = upper & (neighbours(parts.background) > 0)
    held = connected(second & ((neighbours(mask | worn) > 0) | rim), second)
    second = connected(held & (neighbours(held) >= 3), held)
    if not _is_solid(mask | second, colour):
        mask, second = nothing, nothing
    other = materials.colours[int(np.argmax(materials.count(second)))]
    return Hair(mask | second, colour, second, other, _hint(materials, rest, mask, parts, colour))


def find_worn(about: Kind, cells: Real, parts: Parts, promised: Real, hair: Real) -> tuple[Mask, bool, bool]:
    """Cells of a promised accessory, whether it is there, and whether its colour can be told from what is around."""
    near, rival = nearest(cells, promised, 0.6), _rival(cells, parts, hair, 0.6)
    alike = parts.figure & (near < 0.11) & (near < 0.9 * rival)
    zone, width = _zone(about, parts.face)
    mine = alike & zone
    if not about.single:
        mine &= neighbours(mine) >= 3
    area, across = int(mine.sum()), int(mine.any(0).sum())
    hanging = int((alike & ~zone & hair_zone(parts.figure, parts.face)).sum())
    present = across >= about.span * width and area >= max(1, about.area * width * width)
    present = present and area >= about.home * (area + hanging)
    rim = parts.figure & zone & (nearest(cells, promised, 0.3) < np.minimum(_rival(cells, parts, hair, 0.3), 0.11))
    whole = mine | (rim & (neighbours(mine) >= 2))
    clear = bool(_rival(promised[:1], parts, hair, 1.0)[0] >= 0.06)
    return whole if present else np.zeros_like(whole), present, clear


def nearest(cells: Real, colours: Real, shade: float = 1.0) -> Real:
    """Distance of each cell to the nearest of some colours; infinite if there are none."""
    found = np.full(cells.shape[:-1], np.inf)
    for colour in colours:
        found = np.minimum(found, apart(cells, colour, shade))
    return found


def apart(cells: Real, colour: Real, shade: float = 1.0) -> Real:
    """OKLab distance, with lightness weighted."""
    return length((cells - colour) * np.array([shade, 1, 1]))


def dominant(cells: Real, mask: Mask) -> Real:
    """The most frequent colour of a region: the fullest bin, then two steps to the mean around it."""
    flat = cells[mask]
    if not len(flat):
        return np.zeros(3)
    bins = np.clip(np.floor((flat + 0.5) * 16), 0, 63).astype(np.intp)
    _, which, counts = np.unique(
        (bins[:, 0] * 64 + bins[:, 1]) * 64 + bins[:, 2], return_inverse=True, return_counts=True
    )
    colour = flat[which == counts.argmax()].mean(0)
    for _ in range(2):
        colour = flat[length(flat - colour) < 0.07].mean(0)
    return np.asarray(colour)


def hair_zone(figure: Mask, face: Mask, hanging: bool = False) -> Mask:
    """Where hair can be: above the face, in its top fifth, and beside it."""
    (top, bottom), (left, right) = span(face.any(1)), span(face.any(0))
    tall, margin = bottom - top + 1, 0.06 * (right - left + 1)
    rows, columns = np.arange(face.shape[0])[:, None], np.arange(face.shape[1])
    beside = (columns < left + margin) | (columns > right - margin)
    above, level = rows < top + 0.2 * tall, rows <= bottom + (0.5 if hanging else 0.05) * tall
    zone = figure & (above | (level & beside))
    return connected(zone & ((rows < top) | beside), zone)


def connected(seed: Mask, allowed: Mask) -> Mask:
    """What of a region is connected to seeds over four sides."""
    labels, many = ndimage.label(allowed)
    hit = np.zeros(many + 1, bool)
    hit[labels[seed & allowed]] = True
    hit[0] = False
    return np.asarray(hit[labels])


def neighbours(mask: Mask) -> Whole:
    """Set cells of the nine around each place."""
    return np.asarray(ndimage.convolve(mask.astype(int), _SQUARE, mode="constant"))


def span(some: Mask) -> tuple[int, int]:
    """First and last place that is set; the whole side where none is."""
    places = np.flatnonzero(some)
    return (int(places[0]), int(places[-1])) if len(places) else (0, len(some) - 1)


def share(part: Mask, whole: Mask) -> float:
    """Share of a region that lies in a part of it."""
    return float((part & whole).sum() / max(whole.sum(), 1))


def _background(cells: Real, ring: Mask) -> tuple[Mask, Real]:
    rim = ring & _upper(ring.shape)
    first = dominant(cells, rim)
    grounds, near = [first], apart(cells, first) < 0.06
    for _ in range(5):
        rest = rim & ~near
        if not rest.any():
            break
        colour = dominant(cells, rest)
        mine = apart(cells, colour) < 0.06
        gradient = min(float(length(colour - g)) for g in grounds) < 1.9 * 0.06
        if share(mine & rest, rim) > 0.05 and (gradient or _is_pattern((mine & rim)[0])):
            grounds.append(colour)
            near |= mine
    return connected(ring & near, near), first


def _is_pattern(edge: Mask) -> bool:
    """Whether a colour stands in an upper corner or three times along the upper edge."""
    return bool(edge[0] or edge[-1] or (edge[1:] & ~edge[:-1]).sum() + edge[0] >= 3)


def _skin(materials: Materials, figure: Mask) -> tuple[Mask, int, Mask]:
    if not len(materials.colours):
        return np.zeros_like(figure), 0, np.zeros_like(figure)
    height, side = _place(figure)
    own = materials.count(figure & (height > 0.30) & (height < 0.70) & (np.abs(side) < 0.25))
    light, a, b = materials.colours.T
    usual = (a > 0.005) & (b > 0.01) & (a < 1.6 * b) & (b < 0.13) & (light > 0.3)
    owned = materials.near @ own
    votes = owned * (1 + 2 * usual)
    votes = (
        votes
        * 4096
        // (4096 + 4096 * (materials.near @ materials.count(_crest(figure, height))) // np.maximum(owned, 1))
    )
    best = int(np.argmax(votes * 4096 + own))
    near = materials.near[best]
    face = _face_box(materials.mask(near) & figure, side)
    inside, everywhere = materials.count(figure & (face | _below(face))), materials.count(figure)
    return materials.mask(near | (materials.shades[best] & (10 * inside >= 6 * everywhere))) & figure, best, face


def _crest(figure: Mask, height: Real) -> Mask:
    """The uppermost cells of each column that reaches the upper third of the figure."""
    rows = np.arange(len(figure))[:, None]
    top = np.where(figure, rows, len(figure)).min(0)
    high = (figure & (height < 0.35)).any(0)
    return figure & high & (rows - top < max(2, int(figure.any(1).sum()) // 8))


def _face_box(skin: Mask, side: Real) -> Mask:
    """Rows and columns where skin is wide, from its top down to a chin."""
    middle = skin & (np.abs(side) < 0.40)
    rows, index = middle.sum(1), np.arange(len(skin))
    width = int(rows.max())
    top = int(np.argmax(rows * 10 >= 4 * width))
    bottom = top + int(np.ceil(1.25 * width))
    within = middle & ((index >= top) & (index <= bottom))[:, None]
    columns = within.sum(0)
    left, right = span(columns * 10 >= 3 * max(int(columns.max()), 1))
    lowest = int(np.flatnonzero(within.any(1)).max(initial=-1))
    narrow = np.flatnonzero((rows * 100 < 62 * width) & (index > top + width // 2))
    bottom = min(bottom, lowest, int(narrow[0]) - 1 if len(narrow) else len(skin))
    box = np.zeros_like(skin)
    if columns.max():
        box[top : bottom + 1, left : right + 1] = True
    return box


def _second_tone(materials: Materials, rest: Mask, parts: Parts, first: Real) -> Mask:
    here, everywhere = materials.count(rest), materials.count(parts.figure & ~parts.skin)
    above = (
        np.arange(len(rest))[:, None] < span(parts.face.any(1))[0]
        if parts.face.any()
        else np.zeros((len(rest), 1), bool)
    )
    inside, above_face = materials.count(parts.face), materials.count(rest & above)
    rim = materials.count(rest & (neighbours(parts.background) > 0))
    eyes = (2 * inside >= everywhere) & (5 * above_face < everywhere) & (rim < 2)
    local = (5 * here >= everywhere) & ~eyes & (4 * materials.count(parts.chest) < everywhere)
    ear = (apart(materials.colours, parts.skin_colour, 0.3) < 0.07) & (3 * above_face < here)
    hue = apart(materials.colours, first, 0.15) > 0.06
    line = (materials.colours[:, 0] < 0.30) & (2 * materials.count_solid(rest) < here)
    second = materials.mask(local & hue & ~line & ~ear) & rest
    return second if second.sum() >= 4 else np.zeros_like(second)


def _hint(materials: Materials, rest: Mask, mask: Mask, parts: Parts, first: Real) -> float:
    regions = (rest, rest & (neighbours(mask) > 0), parts.chest, parts.figure & ~parts.skin)
    here, near, chest, everywhere = (materials.shades @ materials.count(region) for region in regions)
    size = int(mask.sum())
    minority = 2 * np.minimum(here, size) / np.maximum(here + size, 1)
    own = near / np.maximum(here, 1) * np.maximum(1 - chest / np.maximum(everywhere, 1), 0)
    hue, skin = apart(materials.colours, first, 0.15), apart(materials.colours, parts.skin_colour, 0.3)
    likely = minority * own * np.minimum(hue / 0.14, 1) * np.minimum(skin / 0.10, 1)
    return float(np.where(hue > 0.06, likely, 0).max())


def _is_solid(mask: Mask, colour: Real) -> bool:
    block = mask[1:, 1:] & mask[1:, :-1] & mask[:-1, 1:] & mask[:-1, :-1]
    return bool((mask.sum() >= 5 and colour[0] > 0.30) or _grown(block).sum() >= 4)


def _grown(corners: Mask) -> Mask:
    """The cells of blocks of 2 x 2 by their upper left corners."""
    grown = np.zeros((corners.shape[0] + 1, corners.shape[1] + 1), bool)
    for y in (0, 1):
        for x in (0, 1):
            grown[y : y + corners.shape[0], x : x + corners.shape[1]] |= corners
    return grown


def _shades(colours: Real) -> Mask:
    light, hue = colours[:, 0], colours[:, 1:]
    chroma = length(hue)
    off, lighter = length(hue[:, None] - hue[None]), np.abs(light[:, None] - light[None])
    cosine = hue @ hue.T / (chroma[:, None] * chroma[None] + 1e-12)
    grey, black = chroma < 0.035, light < 0.32
    same_hue = ~grey[:, None] & ~grey[None] & (cosine > 0.94) & (lighter < 0.30) & (off < 0.12)
    both_grey = grey[:, None] & grey[None] & (lighter < 0.18)
    return same_hue | both_grey | ((lighter < 0.08) & (off < 0.05)) | (black[:, None] & black[None] & (off < 0.08))


def _rival(cells: Real, parts: Parts, hair: Real, shade: float) -> Real:
    return nearest(cells, np.stack([parts.skin_colour, parts.background_colour, *hair]), shade)


def _zone(about: Kind, face: Mask) -> tuple[Mask, int]:
    (top, bottom), (left, right) = span(face.any(1)), span(face.any(0))
    height, width = bottom - top + 1, right - left + 1
    row, column = (np.arange(face.shape[0]) - top) / height, (np.arange(face.shape[1]) + 0.5 - left) / width
    columns = (column >= -about.margin) & (column <= 1 + about.margin)
    if about.inside is not None:
        columns &= (column <= about.inside) | (column >= 1 - about.inside)
    return ((row >= about.rows[0]) & (row <= about.rows[1]))[:, None] & columns, width


def _upper(shape: tuple[int, ...]) -> Mask:
    return np.asarray(np.arange(shape[0])[:, None] < 0.75 * shape[0])


def _below(face: Mask) -> Mask:
    return np.asarray(np.arange(len(face))[:, None] > span(face.any(1))[1])


def _place(figure: Mask) -> tuple[Real, Real]:
    """Where each cell lies in the figure's box: height 0 to 1 downwards, side -0.5 to 0.5."""
    (top, bottom), (left, right) = span(figure.sum(1) >= 3), span(figure.sum(0) >= 3)
    height = (np.arange(figure.shape[0]) - top) / max(bottom - top, 1)
    side = (np.arange(figure.shape[1]) - (left + right) / 2) / max(right - left, 1)
    return np.broadcast_to(height[:, None], figure.shape), np.broadcast_to(side, figure.shape)
