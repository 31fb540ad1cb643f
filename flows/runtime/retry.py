"""Prefect's server may go away and come back; whatever was asked of it then is asked again.

Prefect's clients ask again by themselves, but not where a new one cannot even connect. All our flows may be called
twice: they leave out what is done.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import TypeVar

import httpx
from prefect.settings import PREFECT_API_URL

from flows.runtime import interrupt, progress

Answer = TypeVar("Answer")
_PATIENCE = 600.0  # seconds that a server may be away
_LOOK = 1.0  # seconds between looks: quick for a person, nothing for a CPU


def patiently(call: Callable[[], Answer]) -> Answer:
    """Call a flow, and again when the server is back if it went away meanwhile.

    Raises:
        httpx.TransportError: it has been away for ten minutes.
    """
    while True:
        try:
            return call()
        except httpx.TransportError:
            interrupt.raise_if_asked()
            progress.listener.message("the Prefect server does not answer: waiting for it")
            if not _is_back():
                raise


def _is_back() -> bool:
    until = time.monotonic() + _PATIENCE
    while time.monotonic() < until:
        time.sleep(_LOOK)
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{PREFECT_API_URL.value()}/health", timeout=5).is_success:
                return True
    return False
