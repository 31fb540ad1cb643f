"""A data set as the audit reads it, and how a finding is worded."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from schema.errors import BadDataError, ConfigError
from schema.findings import AuditFinding, Level
from schema.readers import read_text
from tasks.pictures import open_picture, reduced
from tasks.training.dataset import MOST_CAPTION_BYTES, caption_path, class_tokens, find_pictures

_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One picture of the data set.

    Attributes:
        caption: None where there is no caption file, or none that can be read.
        picture: RGB, reduced to at most 1024 pixels a side; None where the file is not a picture.
        size: width and height of the file, in pixels; (0, 0) where it is not a picture.
        step: pixels of the file that a pixel of `picture` stands for.
        digest: of the file's pixels; equal pictures have equal ones.
    """

    path: Path
    caption: str | None
    picture: Image.Image | None
    size: tuple[int, int] = (0, 0)
    step: int = 1
    digest: str = ""

    @property
    def tags(self) -> list[str]:
        """The caption's parts between commas."""
        return [tag.strip() for tag in (self.caption or "").split(",") if tag.strip()]


def read_entries(folder: Path, caption_extension: str) -> list[Entry]:
    """All pictures of a data set with their captions, whatever is wrong with them.

    Raises:
        BadDataError: no folder or no pictures.
    """
    paths = [path for path, _ in find_pictures(folder)]
    captioned = {path.parent for path in paths if caption_path(path, caption_extension).exists()}
    return [
        Entry(
            path,
            (class_tokens(path.parent) if path.parent not in captioned and path.parent != folder else None)
            or _caption(caption_path(path, caption_extension)),
            *_picture(path),
        )
        for path in paths
    ]


def finding(
    check: str, level: Level, bad: Sequence[Entry], among: Sequence[Entry], sentence: str, mend: str
) -> list[AuditFinding]:
    """A finding about some entries among all of them; none where there is nothing bad.

    Args:
        sentence: what is wrong with them, behind "3 of 48 pictures".
    """
    if not bad:
        return []
    names = tuple(entry.path.name for entry in bad[:_SHOWN])
    shown = ", ".join(names) + (", ..." if len(bad) > _SHOWN else "")
    return [
        AuditFinding(
            check=check, level=level, sentence=f"{len(bad)} of {len(among)} pictures {sentence} ({shown})", mend=mend,
            count=len(bad), share=len(bad) / len(among), files=names,
        )
    ]  # fmt: skip


def _caption(path: Path) -> str | None:
    try:
        return read_text(path, MOST_CAPTION_BYTES).strip()
    except ConfigError:
        return None


def _picture(path: Path) -> tuple[Image.Image | None, tuple[int, int], int, str]:
    try:
        image = open_picture(path).convert("RGB")
    except BadDataError:
        return None, (0, 0), 1, ""
    digest = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
    small, step = reduced(image)
    return small, image.size, step, digest
