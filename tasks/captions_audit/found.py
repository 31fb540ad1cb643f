"""A data set as the audit reads it, and how a finding is worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from schema.findings import AuditFinding, Level
from tasks.training.dataset import caption_path, class_tokens, find_pictures

_SHOWN = 5


@dataclass(frozen=True)
class Entry:
    """One picture of the data set.

    Attributes:
        caption: None where there is no caption file, or none that can be read.
        picture: RGB; None where the file is no picture.
    """

    path: Path
    caption: str | None
    picture: Image.Image | None

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
            _picture(path),
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
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None


def _picture(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
