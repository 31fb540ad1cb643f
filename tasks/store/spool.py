"""The files of the outbox: rows that wait for the database, and rows that were set aside with a reason.

Each row is one line of JSON. A line that cannot be read never stops the others: it is set aside as well.
"""

from __future__ import annotations

import fcntl
import json
import os
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from schema.errors import StoreError, shorten
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, TrainingRun
from tasks.durable import commit
from tasks.store.base import Store

Save = Callable[[Store], None]
Record = TypeVar("Record", bound=BaseModel)
_SHORT = 300  # characters of a reason: a message may repeat the whole value that is wrong
_START = b'{"kind": '  # how each line of ours starts


@dataclass(frozen=True)
class RefusedRow:
    """A row that was set aside.

    Attributes:
        kind: what it was to be: ``run``, ``epoch``, ``rating`` ...; ``unreadable`` where its line says nothing.
        reason: why it could not be stored.
        line: the row as it was to be saved, a line of JSON unless it is unreadable.
    """

    kind: str
    reason: str
    line: str

    @property
    def data(self) -> Mapping[str, Any]:
        """The row's values; nothing where it is unreadable."""
        try:
            return dict(json.loads(self.line)["data"])
        except (ValueError, TypeError, KeyError, RecursionError):
            return {}

    @property
    def sentence(self) -> str:
        """Say in one line what was refused and why."""
        name = next((str(self.data[key]) for key in ("run_name", "name", "uid", "campaign") if key in self.data), "")
        return f"{self.kind} {name}".strip() + f": {shorten(self.reason, _SHORT)}"


class Spool:
    """The outbox's folder. Several processes may share it; whoever changes ``waiting.jsonl`` holds `lock`."""

    def __init__(self, folder: Path) -> None:
        """Name the files; nothing is made yet."""
        self.folder = folder
        self.waiting, self.refused = folder / "waiting.jsonl", folder / "refused.jsonl"
        self.dropped = folder / "dropped.jsonl"
        self._locked = 0

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out; may be nested. Threads need a lock of their own."""
        self._locked += 1
        try:
            if self._locked > 1:
                yield
                return
            with (self.folder / "lock").open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                yield
        finally:
            self._locked -= 1

    def lines(self) -> list[bytes]:
        """Return the rows that wait; one that a kill has torn at the end was never promised to be kept."""
        return _lines(self.waiting)

    def replace(self, lines: Sequence[bytes]) -> None:
        """Let these rows wait in place of all others."""
        part = self.waiting.with_suffix(".part")
        with part.open("wb") as file:
            file.writelines(line + b"\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())
        commit(part, self.waiting)

    def append(self, row: Mapping[str, Any]) -> None:
        """Let a row wait behind the others."""
        _append(self.waiting, row)

    def set_aside(self, line: bytes | Mapping[str, Any], reason: str) -> None:
        """Keep a row that cannot be stored, with the reason."""
        if isinstance(line, bytes):
            text = line.decode("utf-8", "backslashreplace")
            _append(self.refused, {"kind": "unreadable", "line": text, "reason": reason})
        else:
            _append(self.refused, {**line, "reason": reason})

    def take_refused(self) -> list[RefusedRow]:
        """Let the rows that were set aside wait again, before all others; those that no one can read stay.

        Returns:
            The rows that wait again. The caller holds `lock`.
        """
        rows = refused_rows(self.folder)
        again = [row for row in rows if row.kind != "unreadable"]
        self.replace([*(row.line.encode() for row in again), *self.lines()])
        part = self.refused.with_suffix(".part")
        part.unlink(missing_ok=True)
        for row in rows:
            if row.kind == "unreadable":
                _append(part, {"kind": row.kind, "line": row.line, "reason": row.reason})
        if part.exists():
            commit(part, self.refused)
        else:
            self.refused.unlink(missing_ok=True)
        return again

    def drop_refused(self) -> int:
        """Move the rows that were set aside to ``dropped.jsonl``, where nobody counts them; how many there were."""
        lines = _lines(self.refused)
        with self.dropped.open("ab") as file:
            file.writelines(line + b"\n" for line in lines)
        self.refused.unlink(missing_ok=True)
        return len(lines)


def refused_rows(folder: Path) -> list[RefusedRow]:
    """Return the rows that an outbox has set aside, oldest first. Needs no database."""
    return [_refused(line) for line in _lines(folder / "refused.jsonl")]


def readable(line: bytes) -> tuple[list[bytes], list[bytes]]:
    """Split a line into the row that can be read and what cannot.

    A version before this one appended to a line that a kill had torn: the whole row at its end still counts.

    Returns:
        The row, if there is one, and the part that cannot be read, if there is one.
    """
    if _is_json(line):
        return [line], []
    start = line.rfind(_START)
    if start > 0 and _is_json(line[start:]):
        return [line[start:]], [line[:start]]
    return [], [line]


def parse_row(line: bytes) -> tuple[dict[str, Any], Save]:
    """Read a line.

    Returns:
        The row, and the function that saves it in a store.

    Raises:
        StoreError: it is no row that this version knows.
    """
    try:
        row = json.loads(line)
        return row, saving(row)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"this row cannot be read: {why(error)}") from None


def saving(row: Mapping[str, Any]) -> Save:
    """Return what saves a row in a store; raises what a row of a wrong kind or shape raises."""
    if row["kind"] not in _SAVING:
        raise ValueError(f"{row['kind']!r} is no kind of row that this version knows")
    return _SAVING[row["kind"]](row["data"])


def why(error: Exception) -> str:
    """Say in one short line what is wrong."""
    if isinstance(error, KeyError):
        return f"{error} is missing"
    if isinstance(error, RecursionError):
        return "it is nested too deep"
    return shorten(" ".join(str(error).split()) or type(error).__name__, _SHORT)


def _campaign(data: dict[str, Any]) -> Save:
    name, settings, status, reason = (data[key] for key in ("name", "settings", "status", "end_reason"))
    if not (isinstance(name, str) and isinstance(settings, dict) and isinstance(status, str)):
        raise TypeError("name and status of a campaign must be texts, and its settings a table")
    if reason is not None and not isinstance(reason, str):
        raise TypeError("the end_reason of a campaign must be a text")
    return lambda store: store.save_campaign(name, settings, status, reason)


def _record(model: type[Record], save: Callable[[Store, Record], None]) -> Callable[[dict[str, Any]], Save]:
    """Return what reads a record of one model, to be saved by one function."""

    def read(data: dict[str, Any]) -> Save:
        record = model.model_validate(data)
        return lambda store: save(store, record)

    return read


def _hypotheses(data: dict[str, Any]) -> Save:
    hypotheses = [Hypothesis.model_validate(one) for one in data["hypotheses"]]
    return lambda store: store.save_hypotheses(hypotheses)


def _effects(data: dict[str, Any]) -> Save:
    run_uid, effects = uuid.UUID(data["run_uid"]), [ParameterEffect.model_validate(e) for e in data["effects"]]
    return lambda store: store.save_parameter_analysis(run_uid, effects)


_SAVING: dict[str, Callable[[dict[str, Any]], Save]] = {
    "campaign": _campaign,
    "run": _record(TrainingRun, lambda store, run: store.save_run(run)),
    "epoch": _record(EpochResult, lambda store, epoch: store.save_epoch(epoch)),
    "refusal": _record(RefusedProposal, lambda store, refusal: store.save_refusal(refusal)),
    "hypotheses": _hypotheses,
    "analysis": _record(Analysis, lambda store, analysis: store.save_analysis(analysis)),
    "principle": _record(Principle, lambda store, principle: store.save_principle(principle)),
    "effects": _effects,
    "vote": _record(PictureVote, lambda store, vote: store.save_vote(vote)),
    "rating": _record(HumanRating, lambda store, rating: store.save_rating(rating)),
    "artifact": _record(Artifact, lambda store, artifact: store.save_artifact(artifact)),
}


def _refused(line: bytes) -> RefusedRow:
    try:
        row = json.loads(line)
        reason = str(row.pop("reason"))
        if row["kind"] == "unreadable":
            return RefusedRow("unreadable", reason, str(row["line"]))
        return RefusedRow(str(row["kind"]), reason, json.dumps(row))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return RefusedRow("unreadable", "this line cannot be read", line.decode("utf-8", "backslashreplace"))


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _lines(path: Path) -> list[bytes]:
    """Return the whole lines of a file."""
    if not path.exists():
        return []
    return [line for line in path.read_bytes().split(b"\n")[:-1] if line.strip()]


def _append(path: Path, row: Mapping[str, Any]) -> None:
    """Add a line, on the disk before it counts; a torn line at the end is cut off, as it was never promised."""
    with path.open("a+b") as file:
        data = _tail(file)
        if data and not data.endswith(b"\n"):
            file.truncate(file.tell() - len(data) + data.rfind(b"\n") + 1)
        file.write(json.dumps(row).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _tail(file: Any) -> bytes:
    """Return the end of a file from its last whole line on; the position is at the end."""
    end = file.seek(0, os.SEEK_END)
    size = 1
    while True:
        file.seek(max(0, end - size))
        data: bytes = file.read()
        if data.endswith(b"\n") or b"\n" in data or size >= end:
            return data
        size *= 1024
