"""Check the rows of an export before they are written: a row that no command can read must not replace a good one.

Rows are parsed by the models that reading uses, and what pydantic converts, such as ``true`` for a number, is refused:
the database would refuse it too, but only when the rows before it are already written. Pydantic's own strict mode does
not fit, as it takes no list for a tuple behind a validator that runs before the fields.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from schema.base import Frozen
from schema.errors import ConfigError, shown
from schema.findings import Analysis, DataAudit, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, TrainingRun
from tasks.store.base import CampaignRecord
from tasks.store.tables import Row


class _CampaignOptions(BaseModel):
    model_config = ConfigDict(extra="allow")

    failed_quality: float = 0


class _CampaignFile(BaseModel):
    model_config = ConfigDict(extra="allow")

    campaign: _CampaignOptions = _CampaignOptions()


class _Settings(BaseModel):
    """The parts of a campaign's settings that commands read."""

    model_config = ConfigDict(extra="allow")

    campaign: _CampaignFile = _CampaignFile()
    base: EpochResult = Field(default=cast(EpochResult, None))  # absent until the base model is measured
    audit: DataAudit | None = None


class _StoredCampaign(CampaignRecord):
    settings: _Settings  # type: ignore[assignment]  # the same JSON, looked at more closely


class _StoredRun(TrainingRun):
    parameter_analysis: tuple[ParameterEffect, ...] = ()


class _TestPrompt(Frozen):
    campaign: str
    position: int
    name: str
    prompt: str
    expectation: Any


class _CaptionVersion(Frozen):
    dataset: str
    label: str | None = None
    num_images: int | None = None
    audit: Any = None
    created_at: datetime


_MODELS: dict[str, type[BaseModel]] = {
    "campaigns": _StoredCampaign, "training_runs": _StoredRun, "epoch_results": EpochResult,
    "refused_proposals": RefusedProposal, "hypotheses": Hypothesis, "analyses": Analysis,
    "human_ratings": HumanRating, "picture_votes": PictureVote, "test_prompts": _TestPrompt,
    "caption_versions": _CaptionVersion, "principles": Principle, "artifacts": Artifact,
}  # fmt: skip

_IDENTITY = {
    "campaigns": ("name",), "analyses": ("campaign", "created_at"), "test_prompts": ("campaign", "position"),
    "caption_versions": ("dataset",),
}  # fmt: skip
"""Columns that a row replaces another one by; ``uid`` in all other tables."""

_NOT_NULL = {
    "training_runs": ("epochs_done",), "epoch_results": ("quantitative_metrics",), "hypotheses": ("state",),
    "analyses": ("effects",), "principles": ("evidence", "state"),
}  # fmt: skip
"""Columns that the model has a default for, but the database takes no null in, or hides a row without them."""

_NOT_COLUMNS = {"analyses": {"hypotheses"}}
_BIG = {"bytes"}  # columns of 8 bytes; other whole numbers have 4
_FURTHEST_OFFSET = timedelta(hours=15)  # of a time zone: Postgres refuses offsets of 16 hours and more


def check_rows(rows: Sequence[tuple[str, str, Row]]) -> None:
    """Check that every row can be read again.

    Args:
        rows: for each where it stands, its table and its values.

    Raises:
        ConfigError: one sentence for the first row that cannot.
    """
    runs = {str(row.get("uid")) for _, table, row in rows if table == "training_runs" and not _is_users(row)}
    seen: set[tuple[str, ...]] = set()
    for where, table, row in rows:
        problem = next(_problems(table, row, runs), None)
        if problem is not None:
            raise ConfigError(f"{where}: {table}{_name(row)}: {problem}; nothing was imported")
        identity = (table, *(str(row.get(column)) for column in _IDENTITY.get(table, ("uid",))))
        if identity in seen:
            raise ConfigError(f"{where}: {table}{_name(row)}: the file holds this row twice; nothing was imported")
        seen.add(identity)


def _problems(table: str, row: Row, runs: Collection[str]) -> Iterator[str]:
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except (UnicodeEncodeError, RecursionError):
        yield "it holds text that no database takes"
        return
    if _IDENTITY.get(table, ("uid",)) == ("uid",):
        yield from _uuid_problems(row)
    if table == "training_runs" and _is_users(row):
        if "epochs_done" in row and type(row["epochs_done"]) is not int:
            yield f"epochs_done cannot be {shown(row['epochs_done'])}"
        return
    if table == "epoch_results" and row.get("quantitative_metrics") is None and str(row.get("run_uid")) not in runs:
        return  # of a run of the user's own table
    model = _MODELS[table]
    yield from _model_problems(model, {k: v for k, v in row.items() if k not in _NOT_COLUMNS.get(table, ())})
    yield from (f"{column} is missing" for column in _NOT_NULL.get(table, ()) if row.get(column) is None)
    for name, value in row.items():
        if name in model.model_fields:
            yield from _column_problems(name, value, model.model_fields[name].annotation)


def _is_users(row: Row) -> bool:
    """Return whether a run's row was in the user's own table before it was ours."""
    return row.get("campaign") is None and row.get("number") is None


def _uuid_problems(row: Row) -> Iterator[str]:
    text = str(row.get("uid"))
    try:
        canonical = str(uuid.UUID(text)) == text
    except ValueError:
        canonical = False
    if not canonical:
        yield f"uid cannot be {shown(row.get('uid'))}: it is no UUID in small letters"


def _model_problems(model: type[BaseModel], row: Row) -> Iterator[str]:
    known = {name: value for name, value in row.items() if name in model.model_fields and value is not None}
    try:
        record = model.model_validate(known)
    except ValidationError as error:
        yield _sentence(error, known)
        return
    for place, value in _converted(known, record.model_dump(mode="json")):
        yield f"{place} cannot be {shown(value)}: it has another type in the database"


def _converted(given: Any, read: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Find the values that were changed to another type when they were read."""
    if isinstance(given, dict) and isinstance(read, dict):
        for name in given.keys() & read.keys():
            yield from _converted(given[name], read[name], f"{place}.{name}" if place else name)
    elif isinstance(given, list) and isinstance(read, list):
        for position, (one, other) in enumerate(zip(given, read, strict=False)):
            yield from _converted(one, other, f"{place}.{position}")
    elif None not in (given, read) and (kinds := (type(given), type(read))) != (int, float) and kinds[0] != kinds[1]:
        yield place, given  # but a whole number is a float as well


def _sentence(error: ValidationError, row: Row) -> str:
    errors = error.errors(include_url=False)
    first = errors[0]
    if first["type"] == "missing":
        return f"{'.'.join(map(str, first['loc']))} is missing"
    (field, value), *others = (_found(row, e["loc"]) for e in errors)
    several = any(other == field for other, _ in others)  # one for each type that the value might have had
    reason = "" if several else f": {first['msg'].removeprefix('Value error, ')}"
    return f"{field or 'the row'} cannot be {shown(value)}{reason}"


def _found(row: Row, place: Iterable[int | str]) -> tuple[str, Any]:
    """Return the part of a row that an error is about; its place also names branches of types."""
    value: Any = row
    names: list[str] = []
    for part in place:
        try:
            value = value[part]
        except (LookupError, TypeError):
            break
        names.append(str(part))
    return ".".join(names), value


def _column_problems(name: str, value: Any, kind: object) -> Iterator[str]:
    """Find what the model takes and the column does not, or what the column takes and would not give back."""
    kinds = {kind, *getattr(kind, "__args__", ())}
    if isinstance(value, int) and int in kinds and not -(limit := 2 ** (63 if name in _BIG else 31)) <= value < limit:
        yield f"{name} cannot be {value:.6g}: it is too large"
    if isinstance(value, str) and datetime in kinds and not _is_time(value):
        yield f"{name} cannot be {shown(value)}: it is no time that the database can keep"


def _is_time(text: str) -> bool:
    if not re.match(r"\d{4}-\d\d-\d\d", text):
        return False
    try:
        moment = datetime.fromisoformat(text)
        moment.astimezone(UTC)
    except (ValueError, OverflowError):
        return False
    return abs(moment.utcoffset() or timedelta()) <= _FURTHEST_OFFSET


def _name(row: Row) -> str:
    name = row.get("run_name") or row.get("name") or row.get("uid") or row.get("campaign")
    return f" {name:.100}" if isinstance(name, str) else ""
