"""Drawn characters of many styles, batched on any device: what the demo's base model knows before a LoRA.

Each character is a stack of signed-distance shapes (background, hair behind, shirt, neck, head, hair,
eyes, mouth, crown). One stack is painted in four ways: shaded like a photograph, as a flat cartoon, as
a mosaic of block averages, and as a sprite sampled on a coarse grid. None of them is the style that the
demo's LoRA has to learn: DiceBear's proportions on a 4-pixel grid.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from demo.attributes import Attributes, Colour

SIZE = 64  # pixels; four for each of the 16 art pixels that the trained style has
STYLES = {"portrait": 0.55, "cartoon": 0.15, "mosaic": 0.12, "sprite": 0.18}
"""Caption word of each style and its share of the pictures."""

Place = tuple[Tensor, Tensor, Tensor]
"""Signed distance (B, H, W) to a shape, and the place (u, v) inside it."""

_LIGHT = (-0.55, -0.6, 0.58)  # towards the light: from above left, about unit length
_INK = 0.1  # grey of outlines, nearly black; chosen by hand


@dataclass(frozen=True)
class Colours:
    """Colours of B characters, each (B, 3) in [0, 1]; `crowned` is (B,) bool."""

    background: Tensor
    hair: Tensor
    skin: Tensor
    shirt: Tensor
    crown: Tensor
    crowned: Tensor

    @classmethod
    def of(cls, characters: list[Attributes], device: torch.device) -> Colours:
        """Stack the colours of characters; those without crown get a colour that is never painted."""

        def stack(pick: Callable[[Attributes], Colour | None]) -> Tensor:
            rows = [c.rgb if (c := pick(a)) else (0, 0, 0) for a in characters]
            return torch.tensor(rows, dtype=torch.float32, device=device) / 255

        return cls(
            stack(lambda a: a.background), stack(lambda a: a.hair), stack(lambda a: a.skin),
            stack(lambda a: a.shirt), stack(lambda a: a.crown),
            torch.tensor([a.crown is not None for a in characters], device=device),
        )  # fmt: skip

    def __getitem__(self, rows: Tensor) -> Colours:
        return Colours(*(getattr(self, name)[rows] for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Shape:
    """One painted shape of B characters on an H x W grid."""

    distance: Tensor  # (B, H, W), below 0 inside
    u: Tensor  # (B, H, W) and v: position inside the shape, -1 to 1, for shading
    v: Tensor
    colour: Tensor  # (B, 3)
    shade: float
    outlined: bool = False


@dataclass(frozen=True)
class Geometry:
    """Proportions of B characters, each (B, 1, 1), in parts of the picture's side."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    shoulders: Tensor
    smile: Tensor
    long_hair: Tensor

    @classmethod
    def draw(cls, count: int, device: torch.device) -> Geometry:
        """Random proportions from torch's global generator."""

        def uniform(low: float, high: float) -> Tensor:
            return torch.rand(count, 1, 1, device=device) * (high - low) + low

        width = uniform(0.17, 0.27)
        return cls(
            0.5 + uniform(-0.03, 0.03), 0.5 + uniform(-0.02, 0.06), width, width * uniform(1.0, 1.25),
            width * uniform(1.5, 2.0), uniform(0, 1), uniform(0, 1) < 0.5,
        )  # fmt: skip


def draw_characters(colours: Colours, style: str) -> Tensor:
    """Paint B characters in one style, with random proportions.

    Returns:
        (B, 3, 64, 64) in [0, 1].
    """
    count, device = len(colours.background), colours.background.device
    geometry = Geometry.draw(count, device)
    return _PAINTERS[style](colours, geometry).clamp(0, 1)


def caption(character: Attributes, style: str, rng: random.Random) -> str:
    """A caption as the base model sees them: sometimes without codes, shuffled, or with tags missing."""
    tags = [tag for tag in character.tags(codes=rng.random() < 0.5) if rng.random() > 0.1]
    if rng.random() < 0.3:
        rng.shuffle(tags)
    return ", ".join([f"{style} of a character", *tags])


def random_blocks(count: int, device: torch.device) -> Tensor:
    """Random flat cells of random sizes and phases: teaches a decoder edges on every grid.

    Returns:
        (B, 3, 64, 64) in [0, 1].
    """
    cell = int(torch.randint(2, 9, ()).item())
    cells = SIZE // cell + 2
    palette = torch.rand(count, 5, 3, device=device)
    coarse = torch.randint(0, 5, (count, cells // 2 + 1, cells // 2 + 1), device=device)
    fine = torch.randint(0, 5, (count, cells, cells), device=device)
    # Areas several cells wide, as pixel art has, with single cells strewn in.
    area = coarse.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :cells, :cells]
    index = torch.where(torch.rand(count, cells, cells, device=device) < 0.3, fine, area)
    colours = palette.gather(1, index.flatten(1)[..., None].expand(-1, -1, 3)).view(count, cells, cells, 3)
    picture = colours.permute(0, 3, 1, 2).repeat_interleave(cell, 2).repeat_interleave(cell, 3)
    top, left = (int(torch.randint(0, cell, ()).item()) for _ in range(2))
    return picture[..., top : top + SIZE, left : left + SIZE]


def _grid(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    axis = (torch.arange(n, device=device) + 0.5) / n
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]  # (1, n, n) each


def _ellipse(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, rx: Tensor | float, ry: Tensor | float) -> Place:
    """First-order distance to an ellipse, and the place inside it."""
    u, v = (x - cx) / rx, (y - cy) / ry
    k = torch.sqrt(u * u + v * v) + 1e-6
    return k * (k - 1) / (torch.sqrt((u / rx) ** 2 + (v / ry) ** 2) + 1e-6), u, v


def _box(x: Tensor, y: Tensor, cx: Tensor, cy: Tensor, hx: Tensor | float, hy: Tensor | float) -> Place:
    dx, dy = x - cx, y - cy
    return torch.maximum(dx.abs() - hx, dy.abs() - hy), dx / hx, dy / hy


def _shapes(c: Colours, g: Geometry, n: int) -> list[Shape]:
    """The painter's list, from back to front, on an n x n grid."""
    x, y = _grid(n, c.hair.device)
    w, h = g.width, g.height
    white, pupil = torch.full_like(c.skin, 0.96), torch.full_like(c.skin, 0.12)
    behind, u, v = _ellipse(x, y, g.x, g.y + 0.06, w * 1.4, h * 1.45)
    behind = torch.minimum(behind, _box(x, y, g.x, g.y + 0.2, w * 1.3, 0.19)[0])
    nowhere = torch.full_like(behind, 9.0)
    head, head_u, head_v = _ellipse(x, y, g.x, g.y, w, h)
    shapes = [
        Shape(torch.where(g.long_hair, behind, nowhere), u, v, c.hair * 0.82, 0.35, outlined=True),
        Shape(*_ellipse(x, y, g.x, torch.full_like(g.y, 1.06), g.shoulders, 0.28), c.shirt, 0.45, outlined=True),
        Shape(*_box(x, y, g.x, g.y + h + 0.02, w * 0.4, 0.08), c.skin * 0.82, 0.2),
        Shape(head, head_u, head_v, c.skin, 0.38, outlined=True),
        _hair(x, y, c, g),
    ]
    for side in (-1, 1):
        eye_x, eye_y = g.x + side * w * 0.44, g.y + 0.035
        shapes.append(Shape(*_ellipse(x, y, eye_x, eye_y, w * 0.23, w * 0.18), white, 0.1))
        shapes.append(Shape(*_ellipse(x, y, eye_x, eye_y, w * 0.13, w * 0.16), pupil, 0.1))
    lips = c.skin * torch.tensor((0.72, 0.42, 0.42), device=c.skin.device)
    shapes.append(Shape(*_ellipse(x, y, g.x, g.y + h * 0.62, w * (0.28 + 0.15 * g.smile), h * 0.09), lips, 0.1))
    shapes.append(_crown(x, y, c, g))
    return shapes


def _hair(x: Tensor, y: Tensor, c: Colours, g: Geometry) -> Shape:
    """A cap of hair: a larger ellipse cut along a wavy fringe, with sideburns."""
    w, h = g.width, g.height
    cap, u, v = _ellipse(x, y, g.x, g.y - 0.03, w * 1.17, h * 1.12)
    fringe = (g.y - h * 0.34) - 0.05 * torch.cos((x - g.x) / w * 2.2) + 0.03
    sideburns = torch.maximum(w * 0.86 - (x - g.x).abs(), y - (g.y + h * 0.25))
    return Shape(torch.maximum(cap, torch.minimum(sideburns, y - fringe)), u, v, c.hair, 0.5, outlined=True)


def _crown(x: Tensor, y: Tensor, c: Colours, g: Geometry) -> Shape:
    """A band with three points, on the characters that have one."""
    w, top = g.width * 0.95, g.y - g.height * 0.95
    shape, u, v = _box(x, y, g.x, top + 0.01, w, 0.045)
    for k in (-1, 0, 1):
        half, tall = w / 3, 0.12
        above = y - (top - 0.03)
        slope = ((x - g.x - k * w * 0.667).abs() / half - 1 - above / tall) * half * tall
        shape = torch.minimum(shape, torch.maximum(slope / torch.sqrt(half * half + tall * tall), above))
    shape = torch.where(c.crowned[:, None, None], shape, torch.full_like(shape, 9.0))
    return Shape(shape, u * 0.9, v * 0.15, c.crown, 0.45, outlined=True)


def _lambert(u: Tensor, v: Tensor) -> Tensor:
    """Brightness of a lit bump at the place (u, v) of a shape, about -0.5 to 1."""
    z = torch.sqrt(1 - (u * u + v * v).clamp(0, 1))
    return u * _LIGHT[0] + v * _LIGHT[1] + z * _LIGHT[2]


def _blend(picture: Tensor, colour: Tensor, cover: Tensor) -> Tensor:
    return picture * (1 - cover[:, None]) + colour * cover[:, None]


def _flat(colour: Tensor) -> Tensor:
    return colour[..., None, None]  # (B, 3, 1, 1)


def _portrait(c: Colours, g: Geometry) -> Tensor:
    """Shaded: light from the upper left, contact shadows, highlights, a vignette."""
    x, y = _grid(SIZE, c.hair.device)
    vignette = 1.12 - 0.42 * torch.sqrt((x - 0.35) ** 2 + (y - 0.3) ** 2)
    picture = _flat(c.background) * vignette[:, None]
    for s in _shapes(c, g, SIZE):
        if s.outlined:
            shadow = (1 - s.distance.clamp(0, 1) / 0.05).clamp(0, 1) * 0.22
            picture = picture * (1 - shadow[:, None])
        light = _lambert(s.u, s.v)[:, None]
        gloss = light.clamp(0, 1) ** 14 * (0.28 if s.outlined else 0.04)
        colour = _flat(s.colour) * (1 - s.shade * 0.55 + s.shade * light) + gloss
        picture = _blend(picture, colour, (0.5 - s.distance * SIZE / 1.3).clamp(0, 1))
    return picture


def _cartoon(c: Colours, g: Geometry) -> Tensor:
    """Flat colours inside a soft dark outline."""
    shapes = _shapes(c, g, SIZE)
    picture = _flat(c.background).expand(-1, -1, SIZE, SIZE)
    figure = torch.stack([s.distance for s in shapes if s.outlined]).amin(0)
    picture = _blend(picture, torch.full_like(_flat(c.hair), _INK), (0.5 - (figure - 1.6 / SIZE) * SIZE).clamp(0, 1))
    for s in shapes:
        picture = _blend(picture, _flat(s.colour), (0.5 - s.distance * SIZE / 1.3).clamp(0, 1))
    return picture


def _mosaic(c: Colours, g: Geometry) -> Tensor:
    """The shaded picture averaged over blocks of 4 or 8 pixels."""
    block = (4, 4, 8)[int(torch.randint(0, 3, ()).item())]
    return F.avg_pool2d(_portrait(c, g), block).repeat_interleave(block, 2).repeat_interleave(block, 3)


def _sprite(c: Colours, g: Geometry) -> Tensor:
    """Sampled hard on a grid of 32 or 16 cells, in two tones a shape, most with an outline."""
    cells = (32, 32, 16)[int(torch.randint(0, 3, ()).item())]
    shapes = _shapes(c, g, cells)
    picture = _flat(c.background).expand(-1, -1, cells, cells)
    if cells == 32:
        figure = torch.stack([s.distance for s in shapes if s.outlined]).amin(0)
        picture = _blend(picture, torch.full_like(_flat(c.hair), _INK), (figure < 1 / cells).float())
    for s in shapes:
        dark = (_lambert(s.u, s.v) < 0.12)[:, None] & torch.tensor(s.outlined, device=picture.device)
        colour = torch.where(dark, _flat(s.colour) * 0.68, _flat(s.colour))
        picture = _blend(picture, colour, (s.distance < 0).float())
    return picture.repeat_interleave(SIZE // cells, 2).repeat_interleave(SIZE // cells, 3)


_PAINTERS: dict[str, Callable[[Colours, Geometry], Tensor]] = {
    "portrait": _portrait,
    "cartoon": _cartoon,
    "mosaic": _mosaic,
    "sprite": _sprite,
}
