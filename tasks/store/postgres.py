"""The store on Postgres, through psycopg."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from tasks.store.address import postgres_address
from tasks.store.libpq import connect, reason
from tasks.store.records import RecordStore
from tasks.store.tables import Row

Answer = TypeVar("Answer")
Query = sql.SQL | sql.Composed
Connection = psycopg.Connection[dict[str, Any]]

_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)


class PostgresTables:
    """Implements `tasks.store.tables.Tables`. One short transaction a call; reconnects once by itself."""

    def __init__(self, url: str | Callable[[], str], revive: Callable[[], object] | None = None) -> None:
        """Open nothing yet.

        Args:
            url: the address, or what gives it: a server of ours may come back at another port.
            revive: called where the server does not answer, before it is asked once more.

        Raises:
            ConfigError: it is no address of a Postgres.
        """
        address = postgres_address(url) if isinstance(url, str) else ""
        self._url: Callable[[], str] = (lambda: address) if isinstance(url, str) else url
        self._revive = revive
        self._connection: Connection | None = None
        self._lock = threading.RLock()  # one thread must not close what another has just opened again

    def close(self) -> None:
        """Let go of the connection; the next call opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def upsert(self, table: str, row: Row, key: Sequence[str]) -> None:
        """Insert a row or replace the columns it gives in the one with the same key."""
        name = sql.Identifier("public", table)
        columns = sql.SQL(", ").join(map(sql.Identifier, row))
        changed = sql.SQL(", ").join(
            sql.SQL("{0} = excluded.{0}").format(sql.Identifier(c)) for c in row if c not in key
        )
        # The table's own types read the JSON, as the Data API has it.
        statement = sql.SQL(
            "insert into {} ({}) select {} from jsonb_populate_record(null::{}, %s) on conflict ({}) do update set {}"
        ).format(name, columns, columns, name, sql.SQL(", ").join(map(sql.Identifier, key)), changed)
        self._attempt(lambda connection: connection.execute(statement, [Jsonb(row)]))

    def select(self, table: str, columns: Sequence[str], equal: Mapping[str, Any], order: Sequence[str]) -> list[Row]:
        """Rows of a table or view whose columns equal the given values, in order."""
        where = [sql.SQL("{} = %s").format(sql.Identifier(name)) for name in equal]
        query = sql.SQL("select {} from {} where {} order by {}").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.Identifier("public", table),
            sql.SQL(" and ").join(where) if where else sql.SQL("true"),
            sql.SQL(", ").join(map(sql.Identifier, order)),
        )
        return self._attempt(lambda connection: connection.execute(query, list(equal.values())).fetchall())

    def call(self, function: str, arguments: Mapping[str, Any], columns: Sequence[str] = ()) -> list[Row]:
        """What a function of the database answers."""
        given = [sql.SQL("{} => %s").format(sql.Identifier(name)) for name in arguments]
        query = sql.SQL("select {} from {}({})").format(
            sql.SQL(", ").join(map(sql.Identifier, columns)) if columns else sql.SQL("*"),
            sql.Identifier("public", function),
            sql.SQL(", ").join(given),
        )
        values = [_argument(value) for value in arguments.values()]
        rows = self._attempt(lambda connection: connection.execute(query, values).fetchall())
        return rows if columns else []

    def _attempt(self, work: Callable[[Connection], Answer]) -> Answer:
        """Do work that may be repeated as a whole, once more if the server has restarted meanwhile."""
        try:
            with self._lock:
                try:
                    return work(self._open())
                except _AWAY:
                    self.close()
                    if self._revive is not None:
                        self._revive()
                    return work(self._open())
        except _AWAY as error:
            raise StoreUnavailableError(f"the database cannot be reached: {reason(error)}") from error
        except psycopg.errors.ForeignKeyViolation as error:
            raise NotFoundError(reason(error)) from error
        except psycopg.Error as error:
            raise StoreError(f"the database refused this: {reason(error)}") from error

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._url(), autocommit=True, row_factory=dict_row)
        return self._connection


def patient_connect(url: Callable[[], str], revive: Callable[[], object]) -> Callable[[], psycopg.Connection[Any]]:
    """Return a function that connects to a server. Where the server does not answer, it first revives or awaits it.

    The function raises StoreUnavailableError where that is in vain.
    """

    def patient() -> psycopg.Connection[Any]:
        with contextlib.suppress(psycopg.OperationalError):
            return connect(url())
        revive()
        try:
            return connect(url())
        except psycopg.OperationalError as error:
            raise StoreUnavailableError(f"the database cannot be reached: {reason(error)}") from error

    return patient


@contextlib.contextmanager
def alone(connect: Callable[[], psycopg.Connection[Any]], what: str) -> Iterator[None]:
    """Wait for whoever else is in here for the same thing, on any machine, and keep others out.

    A server frees what a dead process held.

    Raises:
        StoreUnavailableError: there is no server, and none comes.
    """
    with contextlib.closing(connect()) as connection:
        connection.autocommit = True
        connection.execute("select pg_advisory_lock(hashtextextended(%s, 0))", [f"pixelloop/{what}"])
        yield


def wait_for_server(url: str, patience: float = 600.0) -> None:
    """Wait until a server answers that somebody else has to start, or `patience` seconds."""
    until = time.monotonic() + patience
    while time.monotonic() < until:
        try:
            connect(url).close()
        except psycopg.OperationalError:
            time.sleep(1.0)
        else:
            return


class PostgresStore(RecordStore):
    """The store on a Postgres server."""

    def __init__(self, url: str | Callable[[], str], revive: Callable[[], object] | None = None) -> None:
        """Args: url: ``postgresql://user:password@host:port/database``; revive: starts the server where it is ours."""
        super().__init__(PostgresTables(url, revive))


def _argument(value: Any) -> Any:
    """A list of texts is an array, everything else that is nested is JSON."""
    is_array = isinstance(value, list) and all(isinstance(item, str) for item in value) and value
    return Jsonb(value) if isinstance(value, dict | list) and not is_array else value
