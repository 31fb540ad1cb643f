"""What a database must offer to keep our records: the small vocabulary that psycopg and the Data API share."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Row = dict[str, Any]
"""Column values as JSON knows them; a database may answer with its own types for times and ids."""


class Tables(Protocol):
    """Tables, views and functions of one database.

    Safe from several threads. Raises StoreUnavailableError where a later try may work, StoreError where it will
    not, NotFoundError where a row refers to one that is not there.
    """

    def upsert(self, table: str, row: Row, key: Sequence[str]) -> None:
        """Insert a row or replace the columns it gives in the one with the same key."""

    def select(self, table: str, columns: Sequence[str], equal: Mapping[str, Any], order: Sequence[str]) -> list[Row]:
        """Rows of a table or view whose columns equal the given values.

        Args:
            order: columns that together name one row only, so that pages do not overlap.
        """

    def call(self, function: str, arguments: Mapping[str, Any], columns: Sequence[str] = ()) -> list[Row]:
        """What a function of the database answers; nothing for one that gives no rows."""

    def close(self) -> None:
        """Let go of connections; the next call opens new ones."""


def clean(value: Any) -> Any:
    """A value as every database takes it: JSON knows no NaN and no infinity, Postgres no NUL in a text."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.replace("\x00", "\N{SYMBOL FOR NULL}")
    if isinstance(value, Mapping):
        return {clean(key): clean(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [clean(v) for v in value]
    return value
