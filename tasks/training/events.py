"""Define the trainer's events and write and read them: one JSON line an event in events.jsonl."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from schema.base import Frozen
from schema.parameters import Parameters
from schema.runs import Outcome

NO_ROOM = 74
"""Exit code of a trainer whose disk is too full even for an event: EX_IOERR of sysexits.h."""


class StartedEvent(Frozen):
    """Report that training begins, or resumes after `step` steps."""

    kind: Literal["started"] = "started"
    at: float = Field(default_factory=time.time, description="seconds since 1970")
    step: int
    total_steps: int
    derived: Parameters = Field(description="steps_per_epoch, total_steps, num_images")
    trainable: int = Field(description="parameters of the LoRA")


class StepEvent(Frozen):
    """Report progress, about once a second."""

    kind: Literal["step"] = "step"
    at: float = Field(default_factory=time.time)
    step: int
    epoch: float = Field(description="epochs done, with the part of the running one")
    loss: float = Field(description="mean since the last step event")
    learning_rates: tuple[float, ...]
    time_trained: float = Field(description="seconds in steps so far, over all resumes")


class EpochEvent(Frozen):
    """Report that an epoch is done and its checkpoint is on disk."""

    kind: Literal["epoch"] = "epoch"
    at: float = Field(default_factory=time.time)
    step: int
    epoch: int
    loss: float = Field(description="mean over the epoch")
    validation_loss: float | None = Field(None, description="mean over the pictures held back, if there are any")
    checkpoint: str
    seconds: float
    time_trained: float
    peak_memory_mb: float


class WarningEvent(Frozen):
    """Report that training goes on, but not exactly as configured."""

    kind: Literal["warning"] = "warning"
    at: float = Field(default_factory=time.time)
    sentence: str


class FailedEvent(Frozen):
    """Report that training cannot go on."""

    kind: Literal["failed"] = "failed"
    at: float = Field(default_factory=time.time)
    outcome: Outcome
    sentence: str


class StoppedEvent(Frozen):
    """Report that training was asked to stop and has saved its state."""

    kind: Literal["stopped"] = "stopped"
    at: float = Field(default_factory=time.time)
    step: int


class FinishedEvent(Frozen):
    """Report that all epochs are done."""

    kind: Literal["finished"] = "finished"
    at: float = Field(default_factory=time.time)
    step: int
    time_trained: float
    peak_memory_mb: float


Event = StartedEvent | StepEvent | EpochEvent | WarningEvent | FailedEvent | StoppedEvent | FinishedEvent

_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="kind")])


def write_event(path: Path, event: Event) -> None:
    """Append one event as a line, in one write."""
    with path.open("a", encoding="utf-8") as file:
        file.write(event.model_dump_json() + "\n")


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield complete events from a byte offset on, each with the offset after it; none if the file is missing."""
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):  # still being written
                return
            offset += len(line)
            try:
                yield _EVENT.validate_python(json.loads(line)), offset
            except json.JSONDecodeError:  # cut off by a kill, then continued by the next process
                continue
