"""A Prefect server of the program's own, for those who run none.

This file does not import Prefect: the address must be in the environment before Prefect is imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from schema.errors import PixelloopError


def quiet_libraries(folder: Path) -> None:
    """Set the environment so that Prefect keeps to its own folder, and libraries do not talk over the campaign."""
    defaults = {
        "PREFECT_HOME": str(folder),
        # What goes wrong is told by the campaign itself, in a sentence.
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error",  # it asks for torchvision, which nothing here needs
        # The last lines would be sent when the server has already stopped.
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def prefect_server(folder: Path, database_url: Callable[[], str], wait: float = 120) -> Iterator[str]:
    """Use the server of PREFECT_API_URL, or start one on 127.0.0.1 and stop it at the end.

    Args:
        folder: Prefect's home for this server.
        database_url: gives the address of a Postgres database for it alone (SQLite locks under several
            writers); called only when a server must be started.
        wait: seconds until the server must answer.

    Yields:
        The address of the API.

    Raises:
        PixelloopError: the server does not answer; the message names its log.
    """
    quiet_libraries(folder)
    if given := os.environ.get("PREFECT_API_URL"):
        yield given
        return
    port = _free_port()
    url = f"http://127.0.0.1:{port}/api"
    process = _start(folder, database_url(), port)
    try:
        _wait_until_healthy(process, url, wait, folder / "server.log")
        os.environ["PREFECT_API_URL"] = url
        yield url
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        _end(process)


def _start(folder: Path, database_url: str, port: int) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database_url.replace("postgresql://", "postgresql+asyncpg://"),
        # Slots of a killed flow come free again only with leases on disk.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with (folder / "server.log").open("ab") as log:
        # A session of its own: Ctrl-C must reach the campaign first, which still has things to write.
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, wait: float, log: Path) -> None:
    deadline = time.monotonic() + wait
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{url}/health", timeout=2).is_success:
                return
        time.sleep(0.3)
    raise PixelloopError(f"the Prefect server did not start within {wait:.0f} s: see {log}")


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
