"""Colour spaces and distances."""

from __future__ import annotations

import math

import kornia.color
import torch
from torch import Tensor

JND = 2.3
"""CIEDE2000 below which two colours look the same."""

_LMS = torch.tensor(
    [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]]
)  # fmt: skip
_LAB = torch.tensor(
    [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]]
)  # fmt: skip


def oklab(images: Tensor) -> Tensor:
    """sRGB (B, 3, H, W) in [0, 1] to OKLab (Ottosson 2020): L in [0, 1], a and b about -0.4 to 0.4."""
    linear = kornia.color.rgb_to_linear_rgb(images)
    lms = torch.einsum("ij,bjhw->bihw", _LMS.to(images), linear)
    return torch.einsum("ij,bjhw->bihw", _LAB.to(images), lms.clamp_min(0) ** (1 / 3))


def hex_colours(codes: list[str]) -> Tensor:
    """Hex codes as sRGB (N, 3) in [0, 1]."""
    return torch.tensor([[int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)] for code in codes]).view(-1, 3)


def hex_code(colour: Tensor) -> str:
    """An sRGB colour (3,) in [0, 1] as a hex code."""
    return "#" + "".join(f"{round(v * 255):02x}" for v in colour.clamp(0, 1).tolist())


def difference(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 between sRGB colours (..., 3) in [0, 1]; shapes broadcast."""
    first, second = torch.broadcast_tensors(first, second)
    return ciede2000(_lab(first), _lab(second))


def accuracy(delta: Tensor) -> Tensor:
    """0-100 for a CIEDE2000 difference: 100 within a just noticeable one, 61 at 10, 10 at 25."""
    return 100 * torch.exp(-((((delta - JND).clamp_min(0)) / 12) ** 1.3))


def _lab(colours: Tensor) -> Tensor:
    flat = colours.reshape(-1, 3, 1, 1)
    lab: Tensor = kornia.color.rgb_to_lab(flat.double())
    return lab.view(*colours.shape[:-1], 3)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """CIEDE2000 between CIE Lab colours (..., 3) (Sharma, Wu, Dalal 2005, numbers of their equations)."""
    l1, a1, b1 = first.double().unbind(-1)
    l2, a2, b2 = second.double().unbind(-1)
    chroma = (torch.hypot(a1, b1) + torch.hypot(a2, b2)) / 2
    g = 0.5 * (1 - torch.sqrt(chroma**7 / (chroma**7 + 25.0**7)))  # (4)
    a1, a2 = a1 * (1 + g), a2 * (1 + g)
    c1, c2 = torch.hypot(a1, b1), torch.hypot(a2, b2)
    h1, h2 = (torch.rad2deg(torch.atan2(b, a)) % 360 for a, b in ((a1, b1), (a2, b2)))  # (7)
    grey = c1 * c2 == 0
    turn = torch.where(grey, 0.0, (h2 - h1 + 180) % 360 - 180)  # (10)
    hue = 2 * torch.sqrt(c1 * c2) * torch.sin(torch.deg2rad(turn / 2))  # (11)
    mean_l, mean_c = (l1 + l2) / 2, (c1 + c2) / 2
    mean_h = torch.where(grey, h1 + h2, (h1 + ((h2 - h1 + 180) % 360 - 180) / 2) % 360)  # (14)
    t = (
        1 - 0.17 * _cos(mean_h - 30) + 0.24 * _cos(2 * mean_h) + 0.32 * _cos(3 * mean_h + 6)
        - 0.20 * _cos(4 * mean_h - 63)
    )  # (15)  # fmt: skip
    s_l = 1 + 0.015 * (mean_l - 50) ** 2 / torch.sqrt(20 + (mean_l - 50) ** 2)
    s_c, s_h = 1 + 0.045 * mean_c, 1 + 0.015 * mean_c * t
    rotation = 60 * torch.exp(-(((mean_h - 275) / 25) ** 2))
    r = -2 * torch.sqrt(mean_c**7 / (mean_c**7 + 25.0**7)) * torch.sin(torch.deg2rad(rotation))  # (21)
    dl, dc, dh = (l2 - l1) / s_l, (c2 - c1) / s_c, hue / s_h
    return torch.sqrt((dl**2 + dc**2 + dh**2 + r * dc * dh).clamp_min(0))  # (22)


def _cos(degrees: Tensor) -> Tensor:
    return torch.cos(degrees * (math.pi / 180))
