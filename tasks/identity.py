"""Tell a home from its copy, and a moved home from a new one.

``home.json`` names the home's identity, the folder that it was made for, and its path, which rows in the database
repeat. A copy holds the same file in another folder, and finds the original still at its path.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from schema.readers import check_plain, read_json
from tasks.durable import replace_text

FILE = "home.json"


@dataclass(frozen=True)
class Identity:
    """Who a home is.

    Attributes:
        uid: part of the identity of each run.
        earlier: identities of the homes that this one was copied from; their runs are its own as well.
        path: path of the home that its rows name.
        folder: device and inode of that folder.
    """

    uid: uuid.UUID
    earlier: tuple[uuid.UUID, ...] = ()
    path: str | None = None
    folder: tuple[int, int] | None = None


def folder_of(path: Path) -> tuple[int, int] | None:
    """Return what tells a folder from its copies, whatever path leads to it; None where there is no folder."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def of(file: Path) -> Identity:
    """Read a home's identity, or make one.

    Raises:
        ConfigError: the file is broken.
    """
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        with _locked(file.parent):
            if not file.exists():
                root = file.parent.resolve()
                write(file, Identity(uuid.uuid4(), (), str(root), folder_of(root)))
    return read(file)


def read(file: Path) -> Identity:
    """Read a home's identity.

    Raises:
        ConfigError: the file is broken.
    """
    try:
        data: dict[str, Any] = read_json(file)
        check_plain(data, str(file))
        folder, path = data.get("folder"), data.get("path")
        if path is not None and not isinstance(path, str):
            raise TypeError("the path must be a text")
        return Identity(
            uuid.UUID(data["uid"]),
            tuple(uuid.UUID(uid) for uid in data.get("earlier", ())),
            path,
            None if folder is None else (int(folder[0]), int(folder[1])),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise ConfigError(
            f"{file} does not hold the identity of a home: restore the file, or choose another --home"
        ) from None


def write(file: Path, known: Identity) -> None:
    """Save a home's identity."""
    data = asdict(known) | {"uid": str(known.uid), "earlier": [str(uid) for uid in known.earlier]}
    replace_text(file, json.dumps(data))


def settle(root: Path, shared: bool, follow: Callable[[str], bool]) -> str | None:
    """Notice that a home was moved or copied since it was last open, and give a copy an identity of its own.

    Args:
        root: the home's folder.
        shared: its rows lie in a database that the original may use too. Runs of the original are then not the copy's.
        follow: changes the given former path to `root` wherever it is saved; False if that has to wait.

    Returns:
        A sentence for the user, None where nothing has changed.

    Raises:
        ConfigError: the file is broken.
    """
    file = root / FILE
    known, here = of(file), folder_of(root)
    if (known.path, known.folder) == (str(root), here):
        return None
    with _locked(root):
        known = read(file)
        if known.path is None:  # written by older code
            write(file, replace(known, path=str(root), folder=here))
            return None
        former = Path(known.path)
        at_former = folder_of(former)
        if former != root and at_former == here:  # one folder, reached by two paths
            return None
        copied = former != root and at_former == known.folder and _uid(former) == known.uid
        if former != root and not follow(known.path):
            return None
        mine = replace(known, path=str(root), folder=here)
        if copied:
            mine = replace(mine, uid=uuid.uuid4(), earlier=() if shared else (known.uid, *known.earlier))
        write(file, mine)
    if former == root:  # another file system, or restored in place
        return None
    return f"this home is {'a copy of' if copied else 'moved from'} {former}: its paths now lead to {root}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    file = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)


def _uid(root: Path) -> uuid.UUID | None:
    try:
        return read(root / FILE).uid
    except (ConfigError, OSError):
        return None
