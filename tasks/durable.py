"""Write files that survive a power cut: whole or not at all, on the disk before they count."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterable
from pathlib import Path


def replace_text(path: Path, text: str | Iterable[str], mode: int | None = None) -> Path:
    """Write a text file, at once or piece by piece, so that no reader and no power cut sees half of it.

    Args:
        mode: permissions from the first byte on; those of the umask if left out.
    """
    part = part_of(path)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode or 0o666), "w", encoding="utf-8") as file:
            file.writelines([text] if isinstance(text, str) else text)
            file.flush()
            os.fsync(file.fileno())
        return commit(part, path)
    finally:
        part.unlink(missing_ok=True)


def commit(part: Path, path: Path) -> Path:
    """Give a file or folder that is already on the disk its final name, and make the name durable as well."""
    done = part.replace(path)
    sync_folder(path.parent)
    return done


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk: fsync of a file saves its content only."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def part_of(path: Path) -> Path:
    """Name a file that is being written. It is unique: processes of two containers may share one number."""
    return path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
