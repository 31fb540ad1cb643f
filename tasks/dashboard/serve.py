"""The web server of our own pages and optuna-dashboard: the standard library's, one thread per request.

optuna-dashboard has no login, and whoever reaches it may delete studies. So it listens on 127.0.0.1 only, and the guard
refuses other web pages that the user's browser shows.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, TypeVar
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from schema.errors import ConfigError, StoreUnavailableError
from tasks.web_guard import WebGuard

if TYPE_CHECKING:
    from optuna.storages import BaseStorage, RDBStorage

logger = logging.getLogger(__name__)


class DashboardServer(ThreadingMixIn, WSGIServer):
    """A listening server; `serve_forever` runs it and `server_close` frees its port."""

    daemon_threads = True  # a browser's open connection must not hold up Ctrl-C
    opened: RDBStorage | None = None  # a storage that is the server's own

    def server_close(self) -> None:
        """Free the port, and let go of the database, which may be waiting to be idle."""
        super().server_close()
        if self.opened is not None:
            self.opened.engine.dispose()

    def set_app(self, application: Any) -> None:
        """Serve an application, with the guard in front of it.

        Raises:
            ConfigError: a public address in the environment is none.
        """
        guard = WebGuard.from_environment()

        def guarded(environ: dict[str, Any], start_response: Any) -> Any:
            origin = environ.get("HTTP_ORIGIN")
            refusal = guard.refusal(
                environ["REQUEST_METHOD"],
                [environ.get("HTTP_HOST", "")],
                [] if origin is None else [origin],
                site=environ.get("HTTP_SEC_FETCH_SITE", ""),
                mode=environ.get("HTTP_SEC_FETCH_MODE", ""),
                dest=environ.get("HTTP_SEC_FETCH_DEST", ""),
            )
            if refusal is None:
                return application(environ, start_response)
            start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
            return [refusal.encode()]

        super().set_app(guarded)

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        return f"http://{self.server_address[0]!s}:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no news."""
        logger.debug("request of %s broke off", client_address, exc_info=True)


Server = TypeVar("Server", bound=DashboardServer)


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def serve(
    storage: str | BaseStorage,
    artifact_dir: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    free_port: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Run the dashboard until Ctrl-C.

    Args:
        storage: URL of Optuna's database, or an open storage.
        artifact_dir: folder with the sample sheets.
        host: address to listen on.
        port: port to listen on; 0 takes any free one.
        free_port: take any free port where `port` is in use, instead of an error.
        ready: called with the address once the server listens.

    Raises:
        ConfigError: the port is in use, may not be opened, or the host is none of this machine.
        StoreUnavailableError: the database cannot be opened.
    """
    with (
        suppress(KeyboardInterrupt),
        open_server(storage, artifact_dir, host, port, free_port=free_port) as server,
    ):
        if ready is not None:
            ready(server.url)
        server.serve_forever()


def open_server(
    storage: str | BaseStorage,
    artifact_dir: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    *,
    free_port: bool = False,
) -> DashboardServer:
    """A server that listens but does not answer yet; arguments and errors as `serve`."""
    server = listen(DashboardServer, host, port, free_port)  # first the port: the application takes seconds to import
    try:
        if isinstance(storage, str):
            storage = server.opened = _open_storage(storage)
        server.set_app(_application(storage, artifact_dir))
    except BaseException:
        server.server_close()
        raise
    return server


def listen(kind: type[Server], host: str, port: int, free_port: bool) -> Server:
    """A server of a kind on a host and port; see `serve`.

    Raises:
        ConfigError: the port is in use, may not be opened, or the host is none of this machine.
    """
    try:
        return kind((host, port), _QuietHandler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE and free_port:
            return listen(kind, host, 0, free_port=False)
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is in use: end what runs there or give another --port") from None
        raise ConfigError(f"cannot listen on {host}:{port}: {error.strerror}") from None


def _application(storage: BaseStorage, artifact_dir: Path) -> Any:
    from optuna.artifacts import FileSystemArtifactStore
    from optuna_dashboard import wsgi

    artifact_dir.mkdir(parents=True, exist_ok=True)
    return wsgi(storage, artifact_store=FileSystemArtifactStore(artifact_dir))


def _open_storage(url: str) -> RDBStorage:
    from optuna.storages import RDBStorage
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import SQLAlchemyError

    try:
        # a page may stay open while the database restarts: ask before a connection is used again
        return RDBStorage(url, engine_kwargs={"pool_pre_ping": True})
    except SQLAlchemyError as error:
        shown = make_url(url).render_as_string(hide_password=True)
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        raise StoreUnavailableError(f"the dashboard cannot open {shown}: {reason}") from None
