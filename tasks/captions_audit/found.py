"""Read a data set for the audit, and build findings."""

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

_MAX_NAMES = 5  # files named in a finding: enough to find the problem, few enough for one line


@dataclass(frozen=True)
class Entry:
    """Hold one picture of the data set with its caption.

    Attributes:
        path: the file.
        caption: None if there is no readable caption file.
        picture: RGB, reduced to at most 1024 pixels a side; None if the file is not a picture.
        size: width and height of the file, in pixels; (0, 0) if it is not a picture.
        step: pixels of the file per pixel of `picture`, along a side.
        digest: hash of the file's pixels; equal pictures have equal hashes.
    """

    path: Path
    caption: str | None
    picture: Image.Image | None
    size: tuple[int, int] = (0, 0)
    step: int = 1
    digest: str = ""

    @property
    def tags(self) -> list[str]:
        """Return the caption's parts between commas."""
        return [tag.strip() for tag in (self.caption or "").split(",") if tag.strip()]


def read_entries(folder: Path, caption_extension: str) -> list[Entry]:
    """Return all pictures of a data set with their captions, including those that cannot be read.

    Raises:
        BadDataError: there is no such folder, or it has no pictures.
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
    """Return a finding about the bad entries; an empty list if there are none.

    Args:
        check: identifier of the check.
        level: severity.
        bad: the entries with the problem.
        among: all entries that were checked.
        sentence: the problem, as the rest of a sentence that begins "3 of 48 pictures".
        mend: how to fix it.
    """
    if not bad:
        return []
    names = tuple(entry.path.name for entry in bad[:_MAX_NAMES])
    shown = ", ".join(names) + (", ..." if len(bad) > _MAX_NAMES else "")
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
