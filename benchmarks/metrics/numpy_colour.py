"""Colour spaces and distances by NumPy, for what benchmarks draw and for the peers they time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
Real = npt.NDArray[np.floating[Any]]
Exact = npt.NDArray[np.float64]

_BYTE = np.arange(256) / 255
_LINEAR = np.where(_BYTE > 0.04045, ((_BYTE + 0.055) / 1.055) ** 2.4, _BYTE / 12.92).astype(np.float32)
_LMS = np.array([
    [0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
])  # fmt: skip
_OKLAB = np.array([
    [0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.8086757660],
])  # fmt: skip
_LMS_32, _OKLAB_32 = _LMS.astype(np.float32), _OKLAB.astype(np.float32)
_XYZ = np.array([
    [0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041],
])  # fmt: skip
_WHITE = np.array([0.95047, 1.0, 1.08883])


def oklab(pixels: Bytes) -> Real:
    """sRGB bytes (..., 3) to OKLab by its formula, float64."""
    light = pixels / 255
    linear = np.where(light > 0.04045, ((light + 0.055) / 1.055) ** 2.4, light / 12.92)
    return np.asarray(np.cbrt(linear @ _LMS.T) @ _OKLAB.T)


def oklab_by_table(pixels: Bytes) -> Real:
    """The same with a table for the transfer curve and in float32."""
    return np.asarray(np.cbrt(_LINEAR[pixels] @ _LMS_32.T) @ _OKLAB_32.T)


def length(vectors: Real) -> Real:
    """Euclidean length along the last axis."""
    return np.asarray(np.sqrt((vectors * vectors).sum(-1)))


def cielab(pixels: Bytes) -> Exact:
    """sRGB bytes (..., 3) to CIELAB under D65."""
    xyz = _LINEAR[pixels].astype(np.float64) @ _XYZ.T / _WHITE
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def ciede2000(first: Exact, second: Exact) -> Exact:
    """Colour difference of CIELAB colours (..., 3) (Sharma, Wu and Dalal 2005)."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    chroma = ((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2) ** 7
    g = 1.5 - 0.5 * np.sqrt(chroma / (chroma + 25.0**7))
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = np.degrees(np.arctan2(b1, g * a1)) % 360, np.degrees(np.arctan2(b2, g * a2)) % 360
    turn = np.where(c1 * c2 == 0, 0, (h2 - h1 + 180) % 360 - 180)
    hue = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    light, mean = (l1 + l2) / 2 - 50, (c1 + c2) / 2
    h = np.where(c1 * c2 == 0, h1 + h2, h1 + turn / 2)
    t = (
        1 - 0.17 * np.cos(np.radians(h - 30)) + 0.24 * np.cos(np.radians(2 * h))
        + 0.32 * np.cos(np.radians(3 * h + 6)) - 0.2 * np.cos(np.radians(4 * h - 63))
    )  # fmt: skip
    dl = (l2 - l1) / (1 + 0.015 * light**2 / np.sqrt(20 + light**2))
    dc, dh = (c2 - c1) / (1 + 0.045 * mean), hue / (1 + 0.015 * mean * t)
    blue = np.sin(np.radians(60 * np.exp(-(((h % 360 - 275) / 25) ** 2))))
    r = -2 * np.sqrt(mean**7 / (mean**7 + 25.0**7)) * blue
    return np.asarray(np.sqrt(np.maximum(dl**2 + dc**2 + dh**2 + r * dc * dh, 0)))
