"""Pictures and their captions, as kohya lays them out."""

from __future__ import annotations

import glob
import hashlib
import random
import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from schema.errors import BadDataError, ConfigError, shown
from schema.readers import read_text
from tasks.pictures import open_picture

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST, "lanczos": Image.Resampling.LANCZOS, "bicubic": Image.Resampling.BICUBIC,
    "bilinear": Image.Resampling.BILINEAR, "area": Image.Resampling.BOX, "box": Image.Resampling.BOX,
}  # fmt: skip
"""Kohya's names of ways to scale."""

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
MOST_CAPTION_BYTES = 2**20
"""Largest caption file that is read. Captions have some hundred bytes."""


@dataclass(frozen=True)
class Sample:
    """One picture with all lines of its caption, seen `repeats` times an epoch.

    Attributes:
        subset: number of the subset whose settings it has.
    """

    path: Path
    caption: str
    repeats: int
    subset: int = 0


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
    """Every picture with its caption; where a ``<repeats>_<name>`` folder has no captions at all, the name is each's.

    Raises:
        BadDataError: as `find_pictures`, or a caption that is missing or empty.
    """
    found = []
    for place, pictures in _by_folder(find_pictures(folder)).items():
        tokens = class_tokens(place) if place != folder else None
        for path, repeats in pictures:
            found.append((path, repeats * num_repeats, tokens))
    return _captioned(found, caption_extension)


def folder_samples(folder: Path, caption_extension: str, num_repeats: int, tokens: str | None) -> list[Sample]:
    """The pictures that lie in a folder itself, as kohya's dataset_config names it.

    Args:
        tokens: caption of each, if none of them has a caption file.

    Raises:
        BadDataError: no folder, no pictures, or a caption that is missing or empty.
    """
    if not folder.is_dir():
        raise BadDataError(f"the data set {folder} is no folder: check image_dir")
    pictures = [(path, num_repeats, tokens) for path in _pictures(folder)]
    if not pictures:
        raise BadDataError(f"no pictures in {folder}: put {', '.join(sorted(ENDINGS))} files there")
    return _captioned(pictures, caption_extension)


def class_tokens(folder: Path) -> str | None:
    """What a folder is named for, behind the repeats."""
    match = re.match(r"\d+_(.+)", folder.name)
    return match.group(1).strip() if match else None


def num_images(folder: Path) -> int:
    """Number of pictures, repeats not counted."""
    return len(find_pictures(folder))


def dataset_fingerprint(folder: Path) -> str:
    """Name and content hash of a data set: another caption makes another one."""
    digest = hashlib.sha256()
    for path, repeats in find_pictures(folder):
        digest.update(f"{path.relative_to(folder)}:{repeats}\n".encode())
        digest.update(path.read_bytes())
        for caption in sorted(path.parent.glob(glob.escape(path.stem) + ".*")):
            if caption.suffix.lower() not in ENDINGS and caption.is_file():
                digest.update(caption.read_bytes())
    return f"{folder.name}@{digest.hexdigest()[:12]}"


def caption_path(picture: Path, extension: str) -> Path:
    """Where a picture's caption lies: beside it.

    Raises:
        BadDataError: the extension is none.
    """
    try:
        return picture.with_suffix(extension)
    except ValueError:
        raise BadDataError(f"caption_extension = {shown(extension)} is no ending of files: write it as .txt") from None


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

    def elsewhere(self, rng: random.Random) -> Placement:
        """Cut at a random place: kohya's random_crop."""
        left, top = (rng.randint(0, large - small) for large, small in zip(self.scaled, self.target, strict=True))
        return replace(self, left=left, top=top)

    def apply(self, image: Image.Image, resize_interpolation: str | None) -> Image.Image:
        """The picture at its new size.

        Args:
            resize_interpolation: one of `INTERPOLATIONS`; None is kohya's rule: area where the picture shrinks,
                else Lanczos.
        """
        box = (self.left, self.top, self.left + self.target[0], self.top + self.target[1])
        shrinks = self.scaled[0] < self.picture[0] and self.scaled[1] < self.picture[1]
        method = resize_interpolation or ("area" if shrinks else "lanczos")
        return image.resize(self.scaled, INTERPOLATIONS[method]).crop(box)


def load_picture(
    path: Path, placement: Placement, resize_interpolation: str | None, colour: random.Random | None = None
) -> npt.NDArray[np.float32]:
    """A picture as (3, height, width) in [-1, 1].

    Transparency is dropped as in kohya's trainer: what a transparent pixel holds is seen.

    Args:
        resize_interpolation: the nearest pixel keeps pixel art's edges; see `Placement.apply`.
        colour: draws kohya's color_aug.

    Raises:
        BadDataError: the file is no picture.
    """
    picture = placement.apply(open_picture(path).convert("RGB"), resize_interpolation)
    if colour is not None:
        picture = shifted_colours(picture, colour)
    return np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1


def shifted_colours(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Kohya's color_aug: one picture in three is changed, in hue by up to 16 degrees or by a power near 1.

    The power is of values from 0 to 255, as there: brightness changes by up to a third.
    """
    if rng.random() > 0.33:
        return picture
    if rng.random() > 0.5:
        hue, *others = picture.convert("HSV").split()
        shift = round(rng.uniform(-16, 16) * 256 / 360)
        turned = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))
        return Image.merge("HSV", (turned, *others)).convert("RGB")
    power = rng.uniform(0.95, 1.05)
    return picture.point([min(255, int(value**power)) for value in range(256)] * 3)


def load_mask(path: Path, placement: Placement, shrinks_by: int) -> npt.NDArray[np.float32]:
    """A picture's opacity (1, height / shrinks_by, width / shrinks_by) in [0, 1]; 1 where it has no alpha.

    Raises:
        BadDataError: the file is no picture.
    """
    alpha = open_picture(path).convert("RGBA").getchannel("A")
    width, height = placement.target
    small = placement.apply(alpha, "nearest").resize((width // shrinks_by, height // shrinks_by), Image.Resampling.BOX)
    opacity: npt.NDArray[np.float32] = np.asarray(small, np.float32)[None] / np.float32(255)
    return opacity


def _pictures(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in ENDINGS and p.is_file())


def _by_folder(pictures: list[tuple[Path, int]]) -> dict[Path, list[tuple[Path, int]]]:
    found: dict[Path, list[tuple[Path, int]]] = {}
    for path, repeats in pictures:
        found.setdefault(path.parent, []).append((path, repeats))
    return found


def _captioned(pictures: list[tuple[Path, int, str | None]], extension: str) -> list[Sample]:
    """Samples of pictures with repeats and class tokens; the tokens count where a folder has no captions."""
    with_files = {path.parent for path, _, _ in pictures if caption_path(path, extension).exists()}
    return [
        Sample(
            path,
            tokens if tokens and path.parent not in with_files else _caption(caption_path(path, extension)),
            repeats,
        )
        for path, repeats, tokens in pictures
    ]


def _caption(path: Path) -> str:
    if not path.exists():
        raise BadDataError(f"the caption {path} is missing: write it, or set caption_extension")
    try:
        text = read_text(path, MOST_CAPTION_BYTES).strip()
    except ConfigError as error:
        raise BadDataError(f"the caption {error}") from None
    if not text:
        raise BadDataError(f"the caption {path} is empty: write it, or remove the picture")
    return text
