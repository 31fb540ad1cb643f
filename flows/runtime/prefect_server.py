"""The Prefect server of a home: started, watched and stopped by the process that needs it.

This file does not import Prefect: address and password must be in the environment before Prefect is imported.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx

from flows.runtime.prefect_environment import (
    API_URL,
    PASSWORD,
    check_own_server,
    quiet_libraries,
    server_environment,
    variables,
)
from flows.runtime.prefect_login import ADDRESS, password
from flows.runtime.restarts import Restarts
from schema.errors import PixelloopError, StoreError
from tasks.child_process import module_command
from tasks.home import replace_text
from tasks.web_guard import WebGuard

_LOOK = 1.0  # seconds between looks: quick for a person, nothing for a CPU


@contextlib.contextmanager
def prefect_server(
    folder: Path,
    database_url: Callable[[], str],
    wait: float = 120,
    revive: Callable[[], object] = lambda: None,
    port: int | None = None,
    joined: str | None = None,
    report: Callable[[str], object] = print,
) -> Iterator[str]:
    """Use the server of PREFECT_API_URL, join one that runs, or start one on 127.0.0.1 and stop it at the end.

    Args:
        folder: Prefect's folder in the home.
        database_url: returns the address of a Postgres database for it alone (SQLite locks under several
            writers); called only when a server must be started.
        wait: seconds until the server must answer.
        revive: starts the database again if it is ours and has died; called again and again.
        port: on 127.0.0.1; any free one if left out.
        joined: address of a server of this home that runs already.
        report: takes a message when the server has died and is started again.

    Yields:
        The address of the API. Prefect's clients in this process and its children use it with the right password.

    Raises:
        ConfigError: the server of PREFECT_API_URL does not answer, or refuses our password.
        PixelloopError: our server does not answer, or died again and again; the message names its log.
    """
    quiet_libraries(folder)
    check_start()
    if given := os.environ.get(API_URL):
        yield given
        return
    ours = {PASSWORD: password(folder), "PREFECT_HOME": str(folder), "PREFECT_PROFILES_PATH": os.devnull}
    if joined is not None:
        with variables({API_URL: joined, **ours}):
            yield joined
        return
    server = _Server(folder, database_url, revive, port or _free_port(), report)
    try:
        server.start()
        server.wait_until_healthy(wait)
        replace_text(folder / ADDRESS, f"{server.url} {folder.stat().st_ino}")
        with variables({API_URL: server.url, **ours}), server.watched():
            yield server.url
    finally:
        server.end()


def check_start() -> None:
    """Check what the environment says of Prefect; takes seconds at most, so call it before anything is started.

    Raises:
        ConfigError: the server of PREFECT_API_URL does not answer or refuses our password; a public address is none.
    """
    if given := os.environ.get(API_URL):
        check_own_server(given)
    WebGuard.from_environment("PREFECT_SERVER_UI_API_URL")


def running_server(folder: Path) -> str | None:
    """Return the address of the UI of the Prefect server that a home started last.

    Returns:
        None where it does not answer, or where the address came with a copy of the home: that server is the original's.
    """
    with contextlib.suppress(OSError, ValueError, httpx.HTTPError, httpx.InvalidURL):
        url, written_in = (folder / ADDRESS).read_text().split()
        if int(written_in) == folder.stat().st_ino and httpx.get(f"{url}/health", timeout=2).is_success:
            return url.removesuffix("/api")
    return None


class _Server:
    """A server's process at one port for as long as it is wanted."""

    def __init__(
        self,
        folder: Path,
        database_url: Callable[[], str],
        revive: Callable[[], object],
        port: int,
        report: Callable[[str], object],
    ) -> None:
        self._folder, self._database_url, self._revive = folder, database_url, revive
        self._port, self._log = port, folder / "server.log"
        self._restarts = Restarts("the Prefect server", str(self._log), report)
        self._process: subprocess.Popen[bytes] | None = None
        self._failure: PixelloopError | None = None
        self.url = f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        (self._folder / "ui").mkdir(parents=True, exist_ok=True)
        address = self._database_url().replace("postgresql://", "postgresql+asyncpg://")
        environment = server_environment(self._folder, address, self._port, password(self._folder))
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C must reach the campaign first, which still has things to write. A folder of
            # its own: Prefect reads .env, prefect.toml and pyproject.toml of the current one.
            self._process = subprocess.Popen(
                module_command("flows.runtime.prefect_app", self._port), env=environment, cwd=self._folder,
                stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._restarts.started()

    def wait_until_healthy(self, wait: float) -> None:
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline and self._alive():
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).is_success:
                    return
            time.sleep(0.3)
        reason = f"did not start within {wait:.0f} s" if self._alive() else "ended while it started"
        raise PixelloopError(f"the Prefect server {reason}: see {self._log}")

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Start server and database again when they die; Prefect's clients retry for two minutes.

        Raises:
            PixelloopError: the server died at once several times in a row; this process was asked to end.
        """
        ended = threading.Event()
        watcher = threading.Thread(target=self._watch, args=(ended,), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()
            if self._failure is not None:  # in place of the interrupt by which it ended this process's work
                raise self._failure from None

    def _watch(self, ended: threading.Event) -> None:
        while not ended.wait(_LOOK):
            with contextlib.suppress(StoreError, OSError):  # it is tried again soon
                self._revive()
                if self._process is not None and (code := self._process.poll()) is not None:
                    try:
                        pause = self._restarts.died(code)
                    except PixelloopError as failure:
                        self._failure = failure
                        os.kill(os.getpid(), signal.SIGTERM)  # trainers save their state, and all of it ends
                        return
                    self.end()
                    if ended.wait(pause):
                        return
                if self._process is None:
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
        self._process = None

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
