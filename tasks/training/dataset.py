"""Find pictures and captions in kohya's folder layout, and load pictures at their training size."""

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
"""Kohya's names of resampling filters."""

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
"""Endings of picture files, in lower case."""

MOST_CAPTION_BYTES = 2**20
"""Largest caption file that is read. Captions have some hundred bytes."""


@dataclass(frozen=True)
class Sample:
    """Hold one picture with all lines of its caption, seen `repeats` times an epoch.

    Attributes:
        subset: number of the subset whose settings apply.
    """

    path: Path
    caption: str
    repeats: int
    subset: int = 0


def find_pictures(folder: Path) -> list[tuple[Path, int]]:
    """Return the pictures of a data set with their repeats, in a fixed order.

    A folder may hold pictures itself and kohya's ``<repeats>_<name>`` folders.

    Raises:
        BadDataError: there is no such folder, or it has no pictures.
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
    """Return every picture with its caption.

    If a ``<repeats>_<name>`` folder has no caption files at all, its name is the caption of each picture.

    Raises:
        BadDataError: as `find_pictures`, or a caption is missing or empty.
    """
    found = []
    for place, pictures in _by_folder(find_pictures(folder)).items():
        tokens = class_tokens(place) if place != folder else None
        for path, repeats in pictures:
            found.append((path, repeats * num_repeats, tokens))
    return _captioned(found, caption_extension)


def folder_samples(folder: Path, caption_extension: str, num_repeats: int, tokens: str | None) -> list[Sample]:
    """Return the pictures directly in a folder, for a subset of kohya's dataset_config.

    Args:
        folder: image_dir of the subset.
        caption_extension: ending of caption files.
        num_repeats: how often an epoch sees each picture.
        tokens: caption of every picture, used if none has a caption file.

    Raises:
        BadDataError: there is no such folder, it has no pictures, or a caption is missing or empty.
    """
    if not folder.is_dir():
        raise BadDataError(f"the data set {folder} is no folder: check image_dir")
    pictures = [(path, num_repeats, tokens) for path in _pictures(folder)]
    if not pictures:
        raise BadDataError(f"no pictures in {folder}: put {', '.join(sorted(ENDINGS))} files there")
    return _captioned(pictures, caption_extension)


def class_tokens(folder: Path) -> str | None:
    """Return the name after the repeats in ``<repeats>_<name>``; None for other folders."""
    match = re.match(r"\d+_(.+)", folder.name)
    return match.group(1).strip() if match else None


def num_images(folder: Path) -> int:
    """Count the pictures of a data set, without repeats."""
    return len(find_pictures(folder))


def dataset_fingerprint(folder: Path) -> str:
    """Return ``<name>@<hash>`` of a data set; the hash covers pictures, repeats and captions."""
    digest = hashlib.sha256()
    for path, repeats in find_pictures(folder):
        digest.update(f"{path.relative_to(folder)}:{repeats}\n".encode())
        digest.update(path.read_bytes())
        # Captions of any extension count: the fingerprint must not depend on caption_extension.
        for caption in sorted(path.parent.glob(glob.escape(path.stem) + ".*")):
            if caption.suffix.lower() not in ENDINGS and caption.is_file():
                digest.update(caption.read_bytes())
    return f"{folder.name}@{digest.hexdigest()[:12]}"


def caption_path(picture: Path, extension: str) -> Path:
    """Return the path of a picture's caption, beside the picture.

    Raises:
        BadDataError: the extension is not a file ending.
    """
    try:
        return picture.with_suffix(extension)
    except ValueError:
        raise BadDataError(f"caption_extension = {shown(extension)} is no ending of files: write it as .txt") from None


@dataclass(frozen=True)
class Placement:
    """Describe how a picture is resized: scaled to cover the target size, then cropped. Sizes are (width, height).

    Attributes:
        picture: size of the file.
        target: size in training.
        scaled: size before cropping.
        left, top: pixels cropped there.
    """

    picture: tuple[int, int]
    target: tuple[int, int]
    scaled: tuple[int, int]
    left: int
    top: int

    @classmethod
    def of(cls, picture: tuple[int, int], target: tuple[int, int]) -> Placement:
        """Scale to cover the target and crop in the middle; sizes are (width, height) in pixels."""
        scale = max(target[0] / picture[0], target[1] / picture[1])
        scaled = max(target[0], round(picture[0] * scale)), max(target[1], round(picture[1] * scale))
        return cls(picture, target, scaled, (scaled[0] - target[0]) // 2, (scaled[1] - target[1]) // 2)

    def elsewhere(self, rng: random.Random) -> Placement:
        """Return the placement with a random crop: kohya's random_crop."""
        left, top = (rng.randint(0, large - small) for large, small in zip(self.scaled, self.target, strict=True))
        return replace(self, left=left, top=top)

    def apply(self, image: Image.Image, resize_interpolation: str | None) -> Image.Image:
        """Return the resized picture.

        Args:
            image: the picture at the size of the file.
            resize_interpolation: one of `INTERPOLATIONS`. None follows kohya's rule: area if the picture shrinks,
                else Lanczos.
        """
        box = (self.left, self.top, self.left + self.target[0], self.top + self.target[1])
        shrinks = self.scaled[0] < self.picture[0] and self.scaled[1] < self.picture[1]
        method = resize_interpolation or ("area" if shrinks else "lanczos")
        return image.resize(self.scaled, INTERPOLATIONS[method]).crop(box)


def load_picture(
    path: Path, placement: Placement, resize_interpolation: str | None, colour: random.Random | None = None
) -> npt.NDArray[np.float32]:
    """Load a picture as (3, height, width) float32 in [-1, 1].

    Transparency is dropped, as in kohya's trainer: the hidden colour of a transparent pixel becomes visible.

    Args:
        path: the picture file.
        placement: how it is resized.
        resize_interpolation: see `Placement.apply`; "nearest" keeps the edges of pixel art.
        colour: random numbers for kohya's color_aug; None leaves the colours as they are.

    Raises:
        BadDataError: the file is not a picture.
    """
    picture = placement.apply(open_picture(path).convert("RGB"), resize_interpolation)
    if colour is not None:
        picture = shifted_colours(picture, colour)
    return np.asarray(picture, np.float32).transpose(2, 0, 1) / 127.5 - 1


def shifted_colours(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Apply kohya's color_aug: change one picture in three, in hue by up to 16 degrees, or in brightness.

    Brightness is changed by a power between 0.95 and 1.05. As in kohya's trainer, it is applied to values from 0 to
    255 rather than 0 to 1, so brightness changes by up to a third.
    """
    if rng.random() > 0.33:
        return picture
    if rng.random() > 0.5:
        hue, *others = picture.convert("HSV").split()
        shift = round(rng.uniform(-16, 16) * 256 / 360)
        turned = Image.fromarray(np.asarray(hue) + np.uint8(shift % 256))  # uint8 wraps around, as hue does
        return Image.merge("HSV", (turned, *others)).convert("RGB")
    power = rng.uniform(0.95, 1.05)
    return picture.point([min(255, int(value**power)) for value in range(256)] * 3)


def load_mask(path: Path, placement: Placement, shrinks_by: int) -> npt.NDArray[np.float32]:
    """Load a picture's opacity (1, height / shrinks_by, width / shrinks_by) in [0, 1]; 1 if it has no alpha channel.

    Raises:
        BadDataError: the file is not a picture.
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
    """Build samples from (path, repeats, class tokens); the tokens are used where a folder has no caption files."""
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
