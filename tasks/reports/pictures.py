"""Embed pictures as data URIs, so that a report is one file."""

from __future__ import annotations

import base64
import functools
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from schema.errors import BadDataError
from tasks.pictures import open_picture

_MAX_CACHED = 256
"""Encoded pictures cached in memory: enough for one report, about 100 KB each."""


@dataclass(frozen=True)
class Picture:
    """Hold a PNG as a data URI, with its size in pixels so that the page does not jump while loading."""

    source: str
    width: int
    height: int


def embed(path: Path, longest_side: int) -> Picture | None:
    """Read a picture into a data URI, shrunk so that its longest side fits.

    Returns:
        The picture, or None if the file is missing or incomplete: a report shows what there is.
    """
    try:
        written = path.stat().st_mtime_ns
    except OSError:
        return None
    return _embed(path, longest_side, written)


@functools.lru_cache(maxsize=_MAX_CACHED)
def _embed(path: Path, longest_side: int, written: int) -> Picture | None:
    """Encode a picture once, as the report is written again after every trial; `written` detects replaced files."""
    try:
        picture = open_picture(path).convert("RGB")
    except BadDataError:
        return None
    picture.thumbnail((longest_side, longest_side), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/png;base64,{encoded}", picture.width, picture.height)
