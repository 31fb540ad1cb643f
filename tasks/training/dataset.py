"""Pictures and their captions, as kohya lays them out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from schema.errors import BadDataError

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR, "area": Image.Resampling.BOX, "box": Image.Resampling.BOX,
}  # fmt: skip
"""Kohya's names of ways to scale."""

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Sample:
    """One picture with all lines of its caption, seen `repeats` times an epoch."""

    path: Path
    caption: str
    repeats: int


def find_pictures(folder: Path) -> list[tuple[Path, int]]:
    """Pictures with their repeats, in a fixed order.

    A folder holds pictures itself, or kohya's ``<repeats>_<name>`` folders.

    Raises:
        BadDataError: no folder or no pictures.
    """
    if not folder.is_dir():
        raise BadDataError(f"the data set {folder} is no folder: check the path")
    found = [(path, 1) for path in _pictures(folder)]
    for sub in sorted(p for p in folder.iterdir() if p.is_dir()):
        if match := re.match(r"(\d+)_", sub.name):
            found += [(path, int(match.group(1))) for path in _pictures(sub)]
    if not found:
        raise BadDataError(f"no pictures in {folder}: put {', '.join(sorted(ENDINGS))} files there")
    return found


def find_samples(folder: Path, caption_extension: str, num_repeats: int) -> list[Sample]:
    """Every picture with its caption.

    Raises:
        BadDataError: as `find_pictures`, or a caption that is missing or empty.
    """
    return [
        Sample(path, _caption(path.with_suffix(caption_extension)), repeats * num_repeats)
        for path, repeats in find_pictures(folder)
    ]


def num_images(folder: Path) -> int:
    """Number of pictures, repeats not counted."""
    return len(find_pictures(folder))


def dataset_fingerprint(folder: Path) -> str:
    """Name and content hash of a data set: another caption makes another one."""
    digest = hashlib.sha256()
    for path, repeats in find_pictures(folder):
        digest.update(f"{path.relative_to(folder)}:{repeats}\n".encode())
        digest.update(path.read_bytes())
        for caption in sorted(path.parent.glob(path.stem + ".*")):
            if caption.suffix.lower() not in ENDINGS:
                digest.update(caption.read_bytes())
    return f"{folder.name}@{digest.hexdigest()[:12]}"


@dataclass(frozen=True)
class Placement:
    """How a picture of one size is brought to another: scaled to cover it, then cut in the middle.

    Attributes:
        scaled: width and height before cutting.
        left, top: what is cut off there.
    """

    picture: tuple[int, int]
    target: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int

    @classmethod
    def of(cls, picture: tuple[int, int], target: tuple[int, int]) -> Placement:
        """The placement for sizes (width, height) in pixels."""
        scale = max(target[0] / picture[0], target[1] / picture[1])
        scaled = max(target[0], round(picture[0] * scale)), max(target[1], round(picture[1] * scale))
        return cls(picture, target, scaled, (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2)

    def apply(self, image: Image.Image, method: Image.Resampling) -> Image.Image:
        """The picture at its new size."""
        box = (self.left, self.top, self.left + self.target[0], self.top + self.target[1])
        return image.resize(self.scaled, method).crop(box)


def picture_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels, read from the file's head.

    Raises:
        BadDataError: the file is no picture.
    """
    with _opened(path) as image:
        return image.size


def load_picture(path: Path, width: int, height: int, resize_interpolation: str = "nearest") -> npt.NDArray[np.float32]:
    """A picture as (3, height, width) in [-1, 1], scaled to cover the size and cut in the middle.

    Transparency is dropped as in kohya's trainer: what a transparent pixel holds is seen.

    Args:
        resize_interpolation: one of `INTERPOLATIONS`; the nearest pixel keeps pixel art's edges.

    Raises:
        BadDataError: the file is no picture.
    """
    with _opened(path) as image:
        picture = image.convert("RGB")
    placed = Placement.of(picture.size, (width, height)).apply(picture, INTERPOLATIONS[resize_interpolation])
    return np.asarray(placed, np.float32).transpose(2, 0, 1) / 127.5 - 1


def load_mask(path: Path, width: int, height: int, shrinks_by: int) -> npt.NDArray[np.float32]:
    """A picture's opacity (1, height / shrinks_by, width / shrinks_by) in [0, 1]; 1 where it has no alpha.

    Raises:
        BadDataError: the file is no picture.
    """
    with _opened(path) as image:
        alpha = image.convert("RGBA").getchannel("A")
    placed = Placement.of(alpha.size, (width, height)).apply(alpha, Image.Resampling.NEAREST)
    small = placed.resize((width // shrinks_by, height // shrinks_by), Image.Resampling.BOX)
    opacity: npt.NDArray[np.float32] = np.asarray(small, np.float32)[None] / np.float32(255)
    return opacity


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (UnidentifiedImageError, OSError) as error:
        raise BadDataError(f"{path} cannot be read as a picture ({error}): replace or remove it") from None


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())


def _caption(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        raise BadDataError(f"the caption {path} is missing: write it, or set caption_extension") from None
    except UnicodeDecodeError:
        raise BadDataError(f"the caption {path} is no UTF-8 text: save it as UTF-8") from None
    if not text:
        raise BadDataError(f"the caption {path} is empty: write it, or remove the picture")
    return text
