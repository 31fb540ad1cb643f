"""Records as column values, and rows as records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from schema.base import Frozen
from schema.errors import StoreError
from tasks.store.tables import Row, clean

Record = TypeVar("Record", bound=Frozen)


def row_of(record: Frozen, names: Iterable[str]) -> Row:
    """A record as column values."""
    data = clean(record.model_dump(mode="json"))
    return {name: data[name] for name in names}


def records(model: type[Record], rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Rows as records; a column that is null takes the field's default.

    Raises:
        StoreError: a row was changed to what we cannot read.
    """
    return [_record(model, {k: v for k, v in row.items() if v is not None}) for row in rows]


def _record(model: type[Record], row: Mapping[str, Any]) -> Record:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        which = row.get("run_name") or row.get("uid") or row.get("name") or row.get("campaign")
        column = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{model.__name__} {which} cannot be read: {column}: {first['msg']}; mend that row in the database"
        ) from error
