"""Copies of pictures and LoRA files in a private bucket of Supabase Storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import httpx
from pydantic import SecretStr
from storage3._sync.file_api import SyncBucketProxy
from storage3.exceptions import StorageApiError
from storage3.types import FileOptions

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from tasks.store.supabase import AWAY, connect

Answer = TypeVar("Answer")


class BucketObjects:
    """Implements `tasks.store.objects.ObjectStore` with the project's secret key. The bucket must exist."""

    def __init__(self, url: str, key: SecretStr, bucket: str, timeout: float = 120.0) -> None:
        """Args: timeout: seconds until a silent service counts as away."""
        self.name = bucket
        self._url, self._key, self._timeout = url, key, timeout
        self._bucket: SyncBucketProxy | None = None

    def put(self, key: str, file: Path) -> None:
        """Upload a file, over what was there."""
        options: FileOptions = {"upsert": "true", "content-type": "application/octet-stream"}
        self._ask(key, lambda bucket, place: bucket.upload(place, file, options))

    def get(self, key: str, file: Path) -> None:
        """Download to a file.

        Raises:
            NotFoundError: nothing is kept under this key.
        """
        data = self._ask(key, lambda bucket, place: bucket.download(place))
        part = file.with_name(file.name + ".part")
        part.write_bytes(data)
        part.replace(file)

    def delete(self, key: str) -> None:
        """Remove from the bucket."""
        self._ask(key, lambda bucket, place: bucket.remove([place]))

    def _ask(self, key: str, work: Callable[[SyncBucketProxy, str], Answer]) -> Answer:
        if ".." in key.split("/"):
            raise StoreError(f"{key} leads out of the bucket {self.name}: mend the row that names it")
        try:
            if self._bucket is None:
                self._bucket = connect(self._url, self._key, self._timeout).storage.from_(self.name)
            return work(self._bucket, key.lstrip("/"))
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailableError(f"Supabase Storage cannot be reached at {self._url}: {reason}") from None
        except StorageApiError as error:
            raise self._told(key, error) from None

    def _told(self, key: str, error: StorageApiError) -> StoreError | NotFoundError:
        told = f"{self.name}/{key.lstrip('/')}: {error.message} ({error.status})"
        status = int(error.status) if str(error.status).isdigit() else 500
        if "bucket not found" in str(error.message).lower():
            return StoreError(f"the project has no bucket {self.name}: make it, private, or mend PIXELLOOP_BUCKET")
        if status == 404:
            return NotFoundError(f"Supabase Storage has nothing there: {told}")
        if status in AWAY or status >= 500:
            return StoreUnavailableError(f"Supabase Storage is away: {told}")
        return StoreError(f"Supabase Storage refused this: {told}")
