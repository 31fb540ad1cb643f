"""Which Prefect server a test speaks to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

NOBODY = "http://127.0.0.1:9/api"
"""An address where no Prefect server listens."""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Sets the server's address.

    The environment alone is not enough: where an earlier test has imported Prefect it is read no more, and the
    test would speak to the user's own server and leave its blocks there for the next session to find.
    """
    from prefect.settings import (
        PREFECT_API_AUTH_STRING,
        PREFECT_API_URL,
        PREFECT_CLIENT_MAX_RETRIES,
        temporary_settings,
    )

    with ExitStack() as stack:

        def use(url: str) -> None:
            if os.environ.get("PREFECT_API_URL") != url:  # a server of this test's takes its own back
                monkeypatch.setenv("PREFECT_API_URL", url)
            retries = {PREFECT_CLIENT_MAX_RETRIES: 0} if url == NOBODY else {}
            password = {PREFECT_API_AUTH_STRING: os.environ.get("PREFECT_API_AUTH_STRING")}
            stack.enter_context(temporary_settings({PREFECT_API_URL: url, **password, **retries}))

        yield use
