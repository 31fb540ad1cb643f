"""Convert colours and measure distances between them: OKLab in whole numbers, and CIEDE2000."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import kornia.color
import torch
from torch import Tensor

JND = 2.3
"""Just noticeable difference in CIEDE2000: below it two colours look the same."""

UNIT = 4096
"""Fixed point of OKLab: 4096 stands for 1.0. A just noticeable difference is about 80."""

_LMS = ((6754, 8787, 843), (3472, 11152, 1760), (1447, 4615, 10322))  # in 1 / 16384; each row sums to 16384
_LAB = ((1724, 6501, -33), (16204, -19895, 3691), (212, 6412, -6624))  # rows a and b sum to 0, so grey stays grey


def oklab(pixels: Tensor) -> Tensor:
    """Convert sRGB bytes to OKLab (Ottosson 2020) in whole numbers, identical on every device and in every batch.

    Args:
        pixels: (B, 3, ...) uint8.

    Returns:
        (B, 3, ...) int32 in units of 1 / `UNIT`, within 0.002 of the real value; L in [0, 4096].
    """
    linear, cube_root = _tables(pixels.device)
    light = _look_up(linear, pixels.int()).unbind(1)
    cones = [_look_up(cube_root, _combine(light, row).__irshift__(14)) for row in _LMS]  # 16 + 14 bits fit
    return torch.stack([_combine(cones, row).add_(1 << 15).__irshift__(16) for row in _LAB], dim=1)


def distance(colours: Tensor, other: Tensor, shade: float = 1.0) -> Tensor:
    """Return the OKLab distance in float64, 1.0 from black to white; shapes broadcast.

    The squares are whole numbers, so only the root is rounded and all devices agree.

    Args:
        colours, other: (B, 3, ...) int32 as `oklab` returns them.
        shade: weight of lightness, rounded to tenths; below 1, shading counts less than hue.
    """
    light, a, b = (colours - other).unbind(1)
    light, hue = light * light, a * a + b * b  # below 2 ** 25
    square = light.double().mul_(round(10 * shade) ** 2).add_(hue, alpha=100)
    return square.sqrt_().div_(10 * UNIT)


def _combine(planes: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """Return the weighted sum of planes of whole numbers, in one buffer: memory traffic dominates the cost."""
    total = planes[0] * weights[0]
    for plane, weight in zip(planes[1:], weights[1:], strict=True):
        total.add_(plane, alpha=weight)
    return total


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    return table.index_select(0, index.flatten()).view(index.shape)


@functools.lru_cache(maxsize=8)
def _tables(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return two tables: linear light of a byte as 0..65535, and cube roots of that as 0..32767."""
    byte = torch.arange(256, dtype=torch.float64) / 255
    linear = torch.where(byte > 0.04045, ((byte + 0.055) / 1.055) ** 2.4, byte / 12.92)
    root = (torch.arange(65536, dtype=torch.float64) / 65535) ** (1 / 3)
    return tuple((t * top).round().int().to(device) for t, top in ((linear, 65535), (root, 32767)))  # type: ignore[return-value]


def hex_bytes(codes: list[str]) -> Tensor:
    """Convert hex codes such as `#ff0000` to sRGB bytes (N, 3)."""
    return torch.tensor(list(bytes.fromhex("".join(code[1:] for code in codes))), dtype=torch.uint8).view(-1, 3)


def hex_code(colour: Tensor) -> str:
    """Convert an sRGB colour (3,) of bytes to a hex code."""
    return "#" + "".join(f"{value:02x}" for value in colour.tolist())


def difference(first: Tensor, second: Tensor) -> Tensor:
    """Return CIEDE2000 between sRGB colours (..., 3) in [0, 1]; shapes broadcast."""
    first, second = torch.broadcast_tensors(first, second)
    return ciede2000(_lab(first), _lab(second))


def accuracy(delta: Tensor) -> Tensor:
    """Score a CIEDE2000 difference as 0-100: 100 up to a just noticeable one, 61 at 10, 10 at 25."""
    return 100 * torch.exp(-((((delta - JND).clamp_min(0)) / 12) ** 1.3))


def _lab(colours: Tensor) -> Tensor:
    flat = colours.reshape(-1, 3, 1, 1)
    lab: Tensor = kornia.color.rgb_to_lab(flat.double())
    return lab.view(*colours.shape[:-1], 3)


def ciede2000(first: Tensor, second: Tensor) -> Tensor:
    """Return CIEDE2000 between CIE Lab colours (..., 3), float64 (Sharma, Wu, Dalal 2005; comments cite equations)."""
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
