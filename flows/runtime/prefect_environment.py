"""Which variables and files of the user's Prefect count, and what ours are set to.

This file does not import Prefect: Prefect reads all of it once, when it is imported.
"""

from __future__ import annotations

import base64
import contextlib
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from schema.errors import ConfigError
from tasks.child_process import child_environment, keep_local_calls_off_proxies

API_URL, PASSWORD = "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"
_DOCUMENTED = {
    API_URL, PASSWORD, "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL", "PREFECT_SERVER_UI_API_URL",
}  # fmt: skip
"""Variables that docs/operations.md has in its table; with a server of ours no other one of Prefect's counts."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_ANSWER_WITHIN = 4.0
"""Seconds for the user's own server to answer: what is wrong must be said within five."""


def quiet_libraries(folder: Path) -> None:
    """Set the environment so that Prefect keeps to its own folder, and libraries do not write over the campaign."""
    keep_local_calls_off_proxies()
    defaults = {
        "PREFECT_HOME": str(folder),
        # The campaign itself says what goes wrong, in a sentence.
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


def isolate() -> None:
    """Drop what is set for another Prefect, unless PREFECT_API_URL names a server of the user's own.

    Raises:
        ConfigError: a settings file that Prefect would read is not valid TOML, or a log level is unknown.
    """
    for name in ("PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL"):
        if (level := os.environ.get(name, "INFO")).upper() not in _LEVELS:
            raise ConfigError(f"{name}={level[:50]}: use one of {', '.join(_LEVELS)}")
    files = [Path("prefect.toml"), Path("pyproject.toml")]  # Prefect looks for settings in both
    if os.environ.get(API_URL):
        files.append(_profiles())
    else:
        for name in [n for n in os.environ if n.startswith("PREFECT_") and n not in _DOCUMENTED]:
            del os.environ[name]
        os.environ.pop(API_URL, None)  # an empty one is none
        os.environ.pop(PASSWORD, None)  # each server of ours has its own
        os.environ["PREFECT_PROFILES_PATH"] = os.devnull  # an empty file: the defaults, whatever ~/.prefect holds
    for file in files:
        _check_toml(file)


def check_own_server(url: str) -> None:
    """Ask the user's own server whether it is there and takes our password.

    Raises:
        ConfigError: it does not answer, or refuses; the message names variable and address.
    """
    shown = _without_secrets(url)
    headers = {}
    if key := os.environ.get("PREFECT_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    if password := os.environ.get(PASSWORD):
        headers["Authorization"] = f"Basic {base64.b64encode(password.encode()).decode()}"
    try:
        answer = httpx.get(f"{url.rstrip('/')}/version", headers=headers, timeout=_ANSWER_WITHIN)
    except (httpx.HTTPError, httpx.InvalidURL, ValueError, ImportError) as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ConfigError(
            f"{API_URL} names {shown}, where no Prefect server answers ({reason}): start it, or unset {API_URL}"
        ) from None
    if answer.status_code in (401, 403):
        raise ConfigError(
            f"the Prefect server at {shown} ({API_URL}) refuses the password: set {PASSWORD} to the server's, "
            "or PREFECT_API_KEY for Prefect Cloud"
        )


def server_environment(folder: Path, database: str, port: int, password: str) -> dict[str, str]:
    """Return the environment of a Prefect server of ours; nothing that is set for another server or database counts.

    Args:
        folder: Prefect's home for this server.
        database: SQLAlchemy's address of its database.
        port: on 127.0.0.1.
        password: that it demands.
    """
    kept = {"PREFECT_SERVER_LOGGING_LEVEL", "PREFECT_SERVER_UI_API_URL"}
    environment = {
        name: value
        for name, value in child_environment().items()
        if name in kept or not name.startswith(("PREFECT_", "PG"))  # libpq's variables would redirect its connections
    }
    return environment | {
        "PREFECT_HOME": str(folder),
        "PREFECT_PROFILES_PATH": os.devnull,
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": database,
        # Slots of a killed flow come free again only with leases on disk.
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_API_AUTH_STRING": password,
        "PREFECT_API_AUTH_STRING": password,  # for its own services, which are clients too
        "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        # Prefect allows every origin by default. The UI is of the same origin and needs none.
        "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": f"http://127.0.0.1:{port}",
        # Relative, so that the UI works at every port and name it is opened at.
        "PREFECT_SERVER_UI_API_URL": os.environ.get("PREFECT_SERVER_UI_API_URL") or "/api",
        # Prefect copies the UI's files at start, by default into its package, which all servers of a machine share.
        "PREFECT_SERVER_UI_STATIC_DIRECTORY": str(folder / "ui"),
    }


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for a block."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _profiles() -> Path:
    if path := os.environ.get("PREFECT_PROFILES_PATH"):
        return Path(path)
    folder = os.environ.get("PREFECT_HOME")
    return (Path(folder) if folder else Path.home() / ".prefect") / "profiles.toml"


def _check_toml(file: Path) -> None:
    try:
        tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError:
        return  # it is missing, or Prefect cannot read it either
    except ValueError as error:  # of TOML or of UTF-8
        raise ConfigError(f"{file} is not valid TOML, and Prefect reads it: correct it ({error})") from None


def _without_secrets(url: str) -> str:
    try:
        parts = urlsplit(url)
    except ValueError:
        return "an address that cannot be read"
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="").geturl()[:200]
