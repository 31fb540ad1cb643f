"""The password of a home's Prefect server, and one-time links that sign a browser in.

Both are files in the home's prefect folder that only their owner can read. Links hold a random token; its hash names a
file, which the server deletes when the link is opened. So no process has to ask another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from pathlib import Path

from schema.errors import ConfigError

LOGIN_PATH = "/login/"
ADDRESS = "address"
"""File in the home's prefect folder with the address of the server that started last, and the folder's inode."""
VALID_FOR = 600.0
"""Seconds that a one-time link works: time to copy it to a browser, little for whoever finds it later."""


def password(folder: Path) -> str:
    """Return the password of the Prefect servers of a home; the first call makes it.

    Args:
        folder: Prefect's folder in the home.

    Raises:
        ConfigError: the file holds no password.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = _password_file(folder)
    if not file.exists():
        _create(file, f"pixelloop:{secrets.token_urlsafe(32)}")  # Basic authentication wants a user as well
    file.chmod(0o600)  # it may have come from a backup
    text = file.read_text(encoding="utf-8", errors="replace").strip()
    user, _, secret = text.partition(":")
    if not user or not secret or len(text.split()) != 1:
        raise ConfigError(f"{file} holds no password: delete it, and the next start makes a new one")
    return text


def forget_server(folder: Path) -> None:
    """Remove what a copied home brought along of the original's server: its password, address and links."""
    for file in (_password_file(folder), folder / ADDRESS):
        file.unlink(missing_ok=True)
    shutil.rmtree(folder / "links", ignore_errors=True)


def _password_file(folder: Path) -> Path:
    return folder / "password"


def one_time_link(folder: Path, address: str) -> str:
    """Return a link that signs one browser in to the Prefect server at an address, once and within ten minutes."""
    token, place = secrets.token_urlsafe(32), _links(folder)
    for old in place.iterdir():
        if _expired(old):
            old.unlink(missing_ok=True)
    (place / _name(token)).touch(mode=0o600)
    return f"{address.rstrip('/')}{LOGIN_PATH}{token}"


def redeem(folder: Path, token: str) -> bool:
    """Use up a link's token; True for one that was made here, is not used and has not expired."""
    file = _links(folder) / _name(token)
    try:
        expired = _expired(file)
        file.unlink()  # of two requests at a time, one finds it gone
    except FileNotFoundError:
        return False
    return not expired


def _links(folder: Path) -> Path:
    place = folder / "links"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def _name(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _expired(file: Path) -> bool:
    age = time.time() - file.stat().st_mtime
    return not -1 <= age <= VALID_FOR  # one from the future counts as expired: the clock was set back


def _create(file: Path, text: str) -> None:
    """Write a file of the owner's alone in one step; the first of several processes wins."""
    part = file.with_name(f"{file.name}.{secrets.token_hex(8)}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as writer:
            writer.write(text + "\n")
            writer.flush()
            os.fsync(writer.fileno())
        with contextlib.suppress(FileExistsError):
            file.hardlink_to(part)
    finally:
        part.unlink()
