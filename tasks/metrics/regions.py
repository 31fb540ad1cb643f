"""Background, figure, skin, hair and crown zone on the native cell map, blind to what was promised.

Assumes a front bust with the head on top, ten cells or more wide.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

_BACKGROUND_REACH = 0.06
_SKIN_REACH = 0.07
_SHADE = 0.5  # weight of lightness where shading of one colour must hold together
_BIN = 0.07


@dataclass(frozen=True)
class Regions:
    """Masks (B, N, N) and colours (B, 3) in OKLab, of B cell maps.

    `height` and `side` place each cell in the figure: 0 at its top to 1 at its bottom, and -0.5 to 0.5 from
    left to right.
    """

    valid: Tensor
    ring: Tensor
    background: Tensor
    background_colour: Tensor
    figure: Tensor
    skin_colour: Tensor
    hair: Tensor
    hair_colour: Tensor
    height: Tensor
    side: Tensor

    @property
    def figure_share(self) -> Tensor:
        """Share of the picture that is figure, (B,)."""
        return share(self.figure, self.valid)


def find_regions(cells: Tensor, valid: Tensor, crown: Tensor) -> Regions:
    """Split cell maps into regions.

    Args:
        cells: OKLab (B, 3, N, N).
        valid: cells inside the picture (B, N, N).
        crown: cells known to be a crown, which is no hair (B, N, N).
    """
    ring = _ring(valid)
    background_colour = dominant_colour(cells, ring)
    background = _flood(ring, valid & (shaded_distance(cells, background_colour) < _BACKGROUND_REACH))
    figure = valid & ~background
    height, side = _place(figure & ~crown)
    face = figure & (height > 0.35) & (height < 0.62) & (side.abs() < 0.22)
    skin_colour = dominant_colour(cells, face)
    skin = shaded_distance(cells, skin_colour) < _SKIN_REACH
    # Above the eyes, and beside the face.
    place = (height < 0.18) | ((height < 0.5) & (side.abs() > 0.36))
    hair = figure & place & ~skin & ~crown
    hair_colour = dominant_colour(cells, _solid(hair))
    return Regions(valid, ring, background, background_colour, figure, skin_colour, hair, hair_colour, height, side)


def shaded_distance(cells: Tensor, colour: Tensor, shade: float = _SHADE) -> Tensor:
    """OKLab distance (B, N, N) of cells to a colour (B, 3), lightness weighted down: shading is forgiven."""
    delta = cells - colour[:, :, None, None]
    weight = torch.tensor([shade, 1.0, 1.0], device=cells.device, dtype=cells.dtype)
    distance: Tensor = torch.linalg.vector_norm(delta * weight[:, None, None], dim=1)
    return distance


def dominant_colour(cells: Tensor, mask: Tensor) -> Tensor:
    """The most frequent colour (B, 3) of a region: the fullest bin, then two steps to the mean around it."""
    flat, weight = cells.flatten(2), mask.flatten(1).to(cells.dtype)  # (B, 3, M), (B, M)
    bins = ((flat + 0.5) / _BIN).round().long().clamp(0, 31)
    key = (bins[:, 0] * 32 + bins[:, 1]) * 32 + bins[:, 2]
    counts = torch.zeros(len(cells), 32**3, device=cells.device, dtype=cells.dtype).scatter_add(1, key, weight)
    inside = (key == counts.argmax(1, keepdim=True)) * weight
    colour = (flat * inside[:, None]).sum(2) / inside.sum(1).clamp_min(1)[:, None]
    for _ in range(2):
        near = ((flat - colour[:, :, None]).norm(dim=1) < _BIN) * weight
        colour = (flat * near[:, None]).sum(2) / near.sum(1).clamp_min(1)[:, None]
    return colour


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Share of a region's cells (B, N, N) that lie in a part of it; 0 for an empty region."""
    return (part & whole).sum((1, 2)).double() / whole.sum((1, 2)).clamp_min(1).double()


def neighbours(mask: Tensor) -> Tensor:
    """Number of the nine cells around and at each place that are set, (B, N, N)."""
    kernel = torch.ones(1, 1, 3, 3, device=mask.device)
    return F.conv2d(mask[:, None].float(), kernel, padding=1)[:, 0]


def _ring(valid: Tensor) -> Tensor:
    """The outermost cells of the picture."""
    inner = -F.max_pool2d(-F.pad(valid[:, None].float(), (1, 1, 1, 1)), 3, 1)[:, 0]
    return valid & (inner < 0.5)


def _flood(seed: Tensor, allowed: Tensor) -> Tensor:
    """Cells of `allowed` that are connected to the seed over their four sides."""
    reached = seed & allowed
    for _ in range(2 * reached.shape[1]):  # to the fixpoint; each pass goes one cell further
        x = reached[:, None].float()
        grown = torch.maximum(F.max_pool2d(x, (3, 1), 1, (1, 0)), F.max_pool2d(x, (1, 3), 1, (0, 1)))
        grown_cells = (grown[:, 0] > 0.5) & allowed
        if torch.equal(grown_cells, reached):
            break
        reached = grown_cells
    return reached


def _place(figure: Tensor) -> tuple[Tensor, Tensor]:
    """Where each cell lies in the figure's box: height 0 to 1 downwards, side -0.5 to 0.5."""
    size = figure.shape[1]
    index = torch.arange(size, device=figure.device, dtype=torch.float32)
    # Stray cells do not stretch the box: a row or column counts from three cells on.
    rows, columns = figure.sum(2) >= 3, figure.sum(1) >= 3  # (B, N)
    top, bottom = _span(rows, index)
    left, right = _span(columns, index)
    height = (index[None, :, None] - top) / (bottom - top).clamp_min(1)
    side = (index[None, None, :] - (left + right) / 2) / (right - left).clamp_min(1)
    return height.expand(-1, size, size), side.expand(-1, size, size)


def _span(some: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    first = torch.where(some, index, torch.inf).amin(1).clamp(0, len(index) - 1)
    last = torch.where(some, index, -torch.inf).amax(1).clamp(0, len(index) - 1)
    return first[:, None, None], last[:, None, None]


def _solid(mask: Tensor) -> Tensor:
    """Cells with company: thin outlines do not vote. The mask itself where nothing is left."""
    solid = mask & (neighbours(mask) >= 5)
    return torch.where(solid.any(2).any(1)[:, None, None], solid, mask)
