"""Databases that older code put into /var/lib, where the server's user could not enter the home.

A copied home then named the same data folder as its original. Each such folder therefore records its home.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schema.errors import StoreError
from tasks.durable import replace_text
from tasks.identity import folder_of

_SYSTEM = Path("/var/lib")
_OWNER = "owner.json"


def find_outside(root: Path) -> Path | None:
    """Find the data folder that records `root` as its home's database folder."""
    for record in _SYSTEM.glob(f"pixelloop-postgres-*/{_OWNER}"):
        owner = _read(record)
        if owner is not None and tuple(owner["folder"]) == folder_of(root) and (record.parent / "data").exists():
            return record.parent / "data"
    return None


def check_owner(root: Path, data: Path, state: Path, record: bool = True) -> None:
    """Let a data folder outside of its home serve that home alone.

    Args:
        record: write down whose it is, if nobody else's.

    Raises:
        StoreError: it is not there, or it belongs to another home.
    """
    if data.is_relative_to(root.absolute()):
        return
    if not data.exists():
        raise StoreError(
            f"the database of this home lay outside of it, in {data.parent}, which is not on this machine: "
            "back the home up with 'pixelloop backup' where that folder is, and restore it here"
        )
    file = data.parent / _OWNER
    owner, here = _read(file), folder_of(root)
    if owner is not None and tuple(owner["folder"]) == here:
        return
    if owner is not None and folder_of(Path(owner["path"])) == tuple(owner["folder"]):
        raise StoreError(
            f"{root} is a copy, and its database lies in {data.parent}, which belongs to {owner['path']}: "
            "copy the home with 'pixelloop backup' and 'pixelloop restore'"
        )
    if record:
        replace_text(file, json.dumps({"path": str(root.absolute()), "folder": here, "state": str(state)}))


def _read(record: Path) -> dict[str, Any] | None:
    try:
        owner: dict[str, Any] = json.loads(record.read_text())
        return owner if {"path", "folder"} <= owner.keys() else None
    except (OSError, ValueError, AttributeError):
        return None
