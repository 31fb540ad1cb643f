"""Save pictures as single files and on a sheet."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

from schema.prompts import PromptSuite, file_name

if TYPE_CHECKING:
    from torch import Tensor

_TILE_SIDE = 192  # pixels: a multiple of 24, 32, 48 and 64, so such sprites are enlarged to fill the tile
_LABEL_HEIGHT = 18  # pixels: one line of the 12-pixel font
_GAP = 6  # pixels between tiles


def save_pictures(pictures: Tensor, suite: PromptSuite, folder: Path) -> list[Path]:
    """Write ``<prompt>-s<seed>.png`` for each picture, atomically, and return the paths.

    Args:
        pictures: (prompts * seeds, 3, H, W) in [0, 1], in the order in which they were drawn.
        suite: the prompt suite they were drawn from.
        folder: created if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in picture_names(suite)]
    for picture, path in zip(pictures, paths, strict=True):
        _save(_image(picture), path)
    return paths


def picture_names(suite: PromptSuite) -> list[str]:
    """Return the file names of a suite's pictures, in the order in which they are drawn and measured."""
    return [f"{file_name(prompt.name)}-s{seed}.png" for prompt in suite.prompts for seed in suite.seeds]


def save_sheet(pictures: Tensor, suite: PromptSuite, path: Path, columns: int = 4) -> Path:
    """Write all pictures on one sheet, each with its prompt's name below, and return the path."""
    names = [prompt.name for prompt in suite.prompts for _ in suite.seeds]
    tiles = [_tile(_image(picture)) for picture in pictures]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    width, height = _TILE_SIDE + _GAP, _TILE_SIDE + _LABEL_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * width + _GAP, rows * height + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for index, (name, tile) in enumerate(zip(names, tiles, strict=True)):
        left, top = _GAP + index % columns * width, _GAP + index // columns * height
        sheet.paste(tile, (left, top))
        draw.text((left + 2, top + _TILE_SIDE + 1), name[:30], fill="black", font=font)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(sheet, path)
    return path


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture.permute(1, 2, 0) * 255).round().byte().cpu().numpy())


def _tile(image: Image.Image) -> Image.Image:
    """Fit a picture into a tile: enlarge it by a whole number with sharp pixels, or shrink it."""
    side = max(image.size)
    if side > _TILE_SIDE:
        image.thumbnail((_TILE_SIDE, _TILE_SIDE))
        return image
    factor = _TILE_SIDE // side
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _save(image: Image.Image, path: Path) -> None:
    part = path.with_suffix(".part")
    image.save(part, format="PNG", optimize=True)
    part.replace(path)
