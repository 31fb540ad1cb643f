"""Pictures and their captions, as kohya lays them out."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from schema.errors import BadDataError

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class Sample:
    """One picture with its caption, seen `repeats` times an epoch."""

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


def load_picture(path: Path, width: int, height: int) -> npt.NDArray[np.float32]:
    """A picture as (3, height, width) in [-1, 1], scaled to cover the size and cut in the middle.

    Scaling takes the nearest pixel: pixel art keeps its edges.

    Raises:
        BadDataError: the file is no picture.
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (UnidentifiedImageError, OSError) as error:
        raise BadDataError(f"{path} cannot be read as a picture ({error}): replace or remove it") from None
    scale = max(width / picture.width, height / picture.height)
    size = max(width, round(picture.width * scale)), max(height, round(picture.height * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    picture = picture.resize(size, Image.Resampling.NEAREST).crop((left, top, left + width, top + height))
    return np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1


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
    return text.splitlines()[0]
