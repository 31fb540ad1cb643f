"""The store on a Supabase project, through its Data API (PostgREST)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
from postgrest import APIError
from postgrest.types import CountMethod
from pydantic import SecretStr
from supabase import Client, ClientOptions, SupabaseException, create_client

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from tasks.store.records import RecordStore
from tasks.store.tables import Row

_PAGE = 1000  # rows asked for at once; a project's Max rows may give fewer, and does not say so
_TRIES = 4  # with growing pauses, about two seconds in all; chosen by hand
_TIMEOUT = 30.0  # seconds of silence; chosen by hand
AWAY = {429, 502, 503, 504, 520}  # too many requests, a gateway without a server behind it; 520 is Cloudflare's
_LOST = (httpx.TransportError,)
_REFERS_TO_NOTHING = "23503"


class _Retrying(httpx.HTTPTransport):
    """Asks again where the service is away for a moment: every write of ours may be repeated."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        for attempt in range(_TRIES):
            last = attempt == _TRIES - 1
            try:
                response = super().handle_request(request)
            except _LOST:
                if last:
                    raise
            else:
                if response.status_code not in AWAY or last:
                    return response
                response.close()
            time.sleep(0.25 * 2**attempt * (0.5 + random.random()))  # not all at once
        raise AssertionError("unreachable")


class SupabaseTables:
    """Implements `tasks.store.tables.Tables` with the project's secret key; see `PostgresTables` for the twin."""

    def __init__(self, url: str, key: SecretStr, timeout: float = _TIMEOUT) -> None:
        """Args: timeout: seconds until a silent service counts as away."""
        self._url, self._key, self._timeout = url, key, timeout
        self._client: Client | None = None

    def close(self) -> None:
        """Let go of connections; the next call opens new ones."""
        if self._client is not None:
            self._client.postgrest.session.close()
            self._client = None

    def upsert(self, table: str, row: Row, key: Sequence[str]) -> None:
        """Insert a row or replace the columns it gives in the one with the same key."""
        query = self._open().table(table).upsert(row, on_conflict=",".join(key), returning="minimal")  # type: ignore[arg-type]
        self._send(query)

    def select(self, table: str, columns: Sequence[str], equal: Mapping[str, Any], order: Sequence[str]) -> list[Row]:
        """Return the rows of a table or view whose columns equal the given values, in order."""

        def query() -> Any:
            asked = self._open().table(table).select(",".join(columns), count=CountMethod.exact)
            for name, value in equal.items():
                asked = asked.eq(name, value)
            for name in order:
                asked = asked.order(name)
            return asked

        return self._pages(query)

    def call(self, function: str, arguments: Mapping[str, Any], columns: Sequence[str] = ()) -> list[Row]:
        """Return what a function of the database answers."""
        if not columns:
            self._send(self._open().rpc(function, dict(arguments)))
            return []

        def query() -> Any:
            asked = self._open().rpc(function, dict(arguments), count=CountMethod.exact).select(",".join(columns))
            # The other functions order their rows themselves, in the same way on every database.
            return asked.order("uid") if "uid" in columns else asked

        return self._pages(query)

    def _pages(self, query: Callable[[], Any]) -> list[Row]:
        """Return all rows of a query. A page may be short for no other reason than the project's Max rows."""
        found: list[Row] = []
        while True:
            page, total = self._send(query().range(len(found), len(found) + _PAGE - 1))
            found += page
            if not page or (total is not None and len(found) >= total):
                return found

    def _send(self, query: Any) -> tuple[list[Row], int | None]:
        """Return a page, and the number of rows of all pages where the service tells it."""
        try:
            answer = query.execute()
        except APIError as error:
            raise _told(error) from None
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise StoreUnavailableError(f"Supabase cannot be reached at {self._url}: {reason}") from None
        return answer.data or [], answer.count

    def _open(self) -> Client:
        if self._client is None:
            self._client = connect(self._url, self._key, self._timeout)
        return self._client


def connect(url: str, key: SecretStr, timeout: float) -> Client:
    """A project's client, which asks again where the service is away for a moment.

    Args:
        timeout: seconds until a silent service counts as away.

    Raises:
        StoreError: address or key are of no use.
    """
    session = httpx.Client(
        transport=_Retrying(http2=False),  # with HTTP/2 idle connections break under threads
        timeout=httpx.Timeout(timeout, connect=5),
        follow_redirects=True,
    )
    options = ClientOptions(
        auto_refresh_token=False, persist_session=False, postgrest_client_retry=False, httpx_client=session
    )
    try:
        return create_client(url, key.get_secret_value(), options)
    except SupabaseException as error:
        raise StoreError(f"SUPABASE_URL or SUPABASE_KEY is of no use: {error}") from None


class SupabaseStore(RecordStore):
    """The store on a Supabase project."""

    def __init__(self, url: str, key: SecretStr, timeout: float = _TIMEOUT) -> None:
        """Args: url: ``https://<project>.supabase.co``; key: the project's secret key, never a publishable one."""
        super().__init__(SupabaseTables(url, key, timeout))


def _told(error: APIError) -> StoreError | NotFoundError:
    sentence = f"{error.message or error} ({error.code})"
    if error.code == _REFERS_TO_NOTHING:
        return NotFoundError(sentence)
    code = str(error.code or "")
    if (code.isdigit() and int(code) in AWAY) or code.startswith(("08", "53", "57", "PGRST00")):
        return StoreUnavailableError(f"Supabase is away: {sentence}")
    if code in ("42P01", "PGRST205", "PGRST202"):
        return StoreError(f"the project lacks pixelloop's tables: run 'pixelloop db migrate' once ({sentence})")
    if code in ("401", "PGRST301", "PGRST303"):
        return StoreError(f"Supabase refuses the key: set SUPABASE_KEY to the project's secret key ({sentence})")
    return StoreError(f"the database refused this: {sentence}")
