"""Where pictures and LoRA files are kept: the home's own folder, or a bucket beside it (`tasks.store.bucket`)."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from schema.errors import NotFoundError, StoreError
from tasks.home import copy_atomically


class ObjectStore(Protocol):
    """Files by key. Putting one twice changes nothing, nor does deleting one that is not there.

    Raises StoreUnavailableError where a later try may work, StoreError where it will not.
    """

    @property
    def name(self) -> str:
        """What rows of `artifacts` call this storage."""

    def put(self, key: str, file: Path) -> None:
        """Keep a file under a key."""

    def get(self, key: str, file: Path) -> None:
        """Write what is kept under a key to a file.

        Raises:
            NotFoundError: nothing is.
        """

    def delete(self, key: str) -> None:
        """Forget a key."""


class LocalObjects:
    """Implements `ObjectStore` in a folder; a file that lies at its place already is not copied."""

    name = "local"

    def __init__(self, root: Path) -> None:
        self._root = root

    def put(self, key: str, file: Path) -> None:
        """Keep a file under a key, which is its path in the folder."""
        place = self._root / key
        if place.resolve() == file.resolve():
            return
        try:
            copy_atomically(file, place)
        except OSError as error:
            raise StoreError(f"{place} cannot be written: {error.strerror}") from None

    def get(self, key: str, file: Path) -> None:
        """Copy what is kept under a key to a file."""
        place = self._root / key
        if not place.exists():
            raise NotFoundError(f"{place} is not there any more")
        copy_atomically(place, file)

    def delete(self, key: str) -> None:
        """Remove a file."""
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{self._root / key} cannot be removed: {error.strerror}") from None
