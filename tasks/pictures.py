"""Open picture files: the one place that decodes pictures of the user's.

Whatever is wrong with a file, the caller gets `BadDataError` with the file's name. Decoders raise errors of a dozen
classes on damaged files, and decode files of a few kilobytes to gigabytes.
"""

from __future__ import annotations

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from schema.errors import BadDataError, shorten

MOST_PIXELS = 89_478_485
"""Largest picture that is decoded: Pillow's own limit for its warning of decompression bombs."""
LARGEST_MEASURED = 1024
"""Longest side, in pixels, at which pictures are measured. Measuring needs about 360 bytes a pixel."""
LEAST_SIDE = 4
"""Shortest side in pixels of a picture that can be measured: a grid needs edges to be found."""
_LONGEST_PATH = 400
"""Characters of a path or reason in a message."""


def picture_size(path: Path) -> tuple[int, int]:
    """Return width and height in pixels, read from the file's header alone.

    Raises:
        BadDataError: not a picture, or too large.
    """
    with _guarded(path), Image.open(path) as image:
        return _checked_size(image)


def open_picture(path: Path) -> Image.Image:
    """Return a decoded picture in the mode of its file.

    Raises:
        BadDataError: not a whole picture, or too large.
    """
    with _guarded(path), Image.open(path) as image:
        _checked_size(image)
        image.load()
        return image.copy()


def reduced(image: Image.Image, longest_side: int = LARGEST_MEASURED) -> tuple[Image.Image, int]:
    """Return a picture that fits into a square, and how many of its old pixels a new one stands for.

    Pixels are left out, not mixed: edges stay hard and no colour is invented.
    """
    step = -(-max(image.size) // longest_side)
    if step <= 1:
        return image, 1
    width, height = (max(1, side // step) for side in image.size)
    whole = (0, 0, min(width * step, image.width), min(height * step, image.height))  # so that the step is exact
    return image.resize((width, height), Image.Resampling.NEAREST, box=whole), step


def _checked_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    if width * height > MOST_PIXELS:
        raise BadDataError(f"has {width} x {height} pixels, more than the {MOST_PIXELS / 1e6:.0f} megapixels allowed")
    return width, height


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise BadDataError("is not a regular file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # `_checked_size` refuses instead
            yield
    except BadDataError as error:
        raise BadDataError(f"{shorten(path, _LONGEST_PATH)} {error}: replace or remove it") from None
    except Exception as error:  # noqa: BLE001 - decoders raise whatever their format's code raises
        reason = shorten(error, _LONGEST_PATH)
        raise BadDataError(
            f"{shorten(path, _LONGEST_PATH)} cannot be read as a picture ({reason}): replace or remove it"
        ) from None
