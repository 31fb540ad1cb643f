"""A Prefect server of the program's own, for those who run none.

This file does not import Prefect: the address must be in the environment before Prefect is imported.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from schema.errors import PixelloopError, StoreError
from tasks.store.libpq import without_libpq

_LOOK = 1.0


def quiet_libraries(folder: Path) -> None:
    """Set the environment so that Prefect keeps to its own folder, and libraries do not talk over the campaign."""
    defaults = {
        "PREFECT_HOME": str(folder),
        # What goes wrong is told by the campaign itself, in a sentence.
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_INTERNAL_LOGGING_LEVEL": "CRITICAL",
        "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "TRANSFORMERS_VERBOSITY": "error",  # it asks for torchvision, which nothing here needs
        # A server or a database that dies is back within a minute; until then nothing may fail for want of it.
        "PREFECT_CLIENT_MAX_RETRIES": "6",
        "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500",
        # The last lines would be sent when the server has already stopped.
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
    }
    for name, value in defaults.items():
        os.environ.setdefault(name, value)


@contextlib.contextmanager
def prefect_server(
    folder: Path,
    database_url: Callable[[], str],
    wait: float = 120,
    revive: Callable[[], object] = lambda: None,
    port: int | None = None,
) -> Iterator[str]:
    """Use the server of PREFECT_API_URL, or start one on 127.0.0.1, start it again if it dies, stop it at the end.

    Args:
        folder: Prefect's home for this server.
        database_url: gives the address of a Postgres database for it alone (SQLite locks under several
            writers); called only when a server must be started.
        wait: seconds until the server must answer.
        revive: starts the database where it is ours and has died; called again and again.
        port: on 127.0.0.1; any free one if left out.

    Yields:
        The address of the API.

    Raises:
        PixelloopError: the server does not answer; the message names its log.
    """
    quiet_libraries(folder)
    if given := os.environ.get("PREFECT_API_URL"):
        yield given
        return
    server = _Server(folder, database_url, revive, port or _free_port())
    try:
        server.start()
        server.wait_until_healthy(wait)
        os.environ["PREFECT_API_URL"] = server.url
        with server.watched():
            yield server.url
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        server.end()


class _Server:
    """A server's process at one port for as long as it is wanted."""

    def __init__(self, folder: Path, database_url: Callable[[], str], revive: Callable[[], object], port: int) -> None:
        self._folder, self._database_url, self._revive = folder, database_url, revive
        self._port, self._log = port, folder / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        address = self._database_url().replace("postgresql://", "postgresql+asyncpg://")
        environment = {
            **without_libpq(os.environ),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": address,
            # Slots of a killed flow come free again only with leases on disk.
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        }
        # Left to itself the server lets any web page that the same machine's browser shows start flows.
        own = ",".join(f"http://{name}:{self._port}" for name in ("127.0.0.1", "localhost"))
        environment.setdefault("PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS", own)
        words = ["server", "start", "--host", "127.0.0.1", "--port", str(self._port)]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C must reach the campaign first, which still has things to write.
            self._process = subprocess.Popen(
                [sys.executable, "-m", "flows.served", *words], env=environment, stdin=subprocess.PIPE, stdout=log,
                stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait_until_healthy(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and self._alive():
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            time.sleep(0.3)
        told = f"did not start within {wait:.0f} s" if self._alive() else "ended while it started"
        raise PixelloopError(f"the Prefect server {told}: see {self._log}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Start server and database again whenever they die; Prefect's clients ask again for two minutes."""
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_LOOK):
            with contextlib.suppress(StoreError, OSError):  # it is tried again soon
                self._revive()
                if not self._alive():
                    self.start()

    def end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
