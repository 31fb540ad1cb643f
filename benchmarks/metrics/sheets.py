"""Contact sheets: the pictures that a measure holds best and worst, for a person to look at."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from benchmarks.metrics.pictures import Picture

_SIDE, _TEXT, _ACROSS = 192, 30, 5


def write_sheets(folder: Path, pictures: Sequence[Picture], columns: dict[str, list[float]], count: int = 20) -> None:
    """Write `best_NAME.png` and `worst_NAME.png` for every column of figures, higher being better.

    Pictures of one figure come in random order, the same each time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = list(range(len(pictures)))
    random.Random(0).shuffle(places)
    for name, figures in columns.items():
        ranked = sorted(places, key=figures.__getitem__)
        for which, chosen in (("worst", ranked[:count]), ("best", ranked[::-1][:count])):
            sheet = contact_sheet([(pictures[i], figures[i]) for i in chosen])
            sheet.save(folder / f"{which}_{name}.png")


def contact_sheet(some: Sequence[tuple[Picture, float]]) -> Image.Image:
    """Pictures in rows of five, each with its figure and name underneath."""
    rows = -(-len(some) // _ACROSS)
    sheet = Image.new("RGB", (_ACROSS * (_SIDE + 4), rows * (_SIDE + _TEXT + 4)), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (picture, figure) in enumerate(some):
        left, top = place % _ACROSS * (_SIDE + 4), place // _ACROSS * (_SIDE + _TEXT + 4)
        small = Image.fromarray(picture.pixels)
        small.thumbnail((_SIDE, _SIDE))
        sheet.paste(small, (left, top))
        pen.text((left + 2, top + _SIDE + 2), f"{abs(figure):.3f}\n{picture.name[:32]}", fill="black", font_size=10)
    return sheet
