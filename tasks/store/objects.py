"""Where pictures and LoRA files are kept: the home's own folder, or a bucket of Supabase Storage beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import httpx
from pydantic import SecretStr

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
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


class SupabaseObjects:
    """Implements `ObjectStore` in a private bucket, through the project's storage API with its secret key."""

    def __init__(self, url: str, key: SecretStr, bucket: str, timeout: float = 120.0) -> None:
        self.name = bucket
        self._url = f"{url.rstrip('/')}/storage/v1/object"
        self._key, self._timeout = key, timeout

    def put(self, key: str, file: Path) -> None:
        """Upload a file, over what was there."""
        headers = {"x-upsert": "true", "content-type": "application/octet-stream"}
        with file.open("rb") as data:
            self._ask("POST", f"{self.name}/{key.lstrip('/')}", headers=headers, content=data.read())

    def get(self, key: str, file: Path) -> None:
        """Download to a file."""
        data = self._ask("GET", f"authenticated/{self.name}/{key.lstrip('/')}").content
        part = file.with_name(file.name + ".part")
        part.write_bytes(data)
        part.replace(file)

    def delete(self, key: str) -> None:
        """Remove from the bucket."""
        self._ask("DELETE", self.name, json={"prefixes": [key.lstrip("/")]})

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, **more: object) -> httpx.Response:
        secret = self._key.get_secret_value()
        sent = {"apikey": secret, "authorization": f"Bearer {secret}", **(headers or {})}
        try:
            answer = httpx.request(method, f"{self._url}/{path}", headers=sent, timeout=self._timeout, **more)  # type: ignore[arg-type]
        except httpx.TransportError as error:
            raise StoreUnavailableError(
                f"Supabase Storage cannot be reached at {self._url}: {type(error).__name__}"
            ) from None
        if answer.is_success:
            return answer
        told = f"{path}: {answer.status_code} {answer.text[:200]}"
        if answer.status_code == 404 or '"404"' in answer.text:
            raise NotFoundError(f"Supabase Storage has nothing there: {told}")
        if answer.status_code >= 500 or answer.status_code == 429:
            raise StoreUnavailableError(f"Supabase Storage is away: {told}")
        raise StoreError(f"Supabase Storage refused this: {told}")
