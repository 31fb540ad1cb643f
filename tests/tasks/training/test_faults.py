"""Faults of the machine as the trainer meets them: memory, disk, clock. Each is real."""

from __future__ import annotations

import contextlib
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from schema.runs import Outcome
from tasks.training.events import EpochEvent, FailedEvent, FinishedEvent, StartedEvent, StepEvent
from tasks.training.launch import TrainerProcess

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")


def test_memory_that_is_refused_is_an_outcome(trial: Callable[..., Path]) -> None:
    config = trial(num_repeats=500, train_batch_size=1000)
    with TrainerProcess(config, config.parent, device="cpu", threads=1) as trainer:
        for event in trainer.follow():
            if isinstance(event, StartedEvent):
                room = psutil.Process(trainer.pid).memory_info().vms
                resource.prlimit(trainer.pid, resource.RLIMIT_AS, (room, room))
    assert isinstance(event, FailedEvent)
    assert event.outcome is Outcome.OUT_OF_MEMORY
    assert "lower train_batch_size" in event.sentence


def test_a_disk_too_full_for_words_is_an_outcome(trial: Callable[..., Path], small_disk: Path) -> None:
    folder = small_disk / "trial"
    shutil.copytree(trial().parent, folder)
    with TrainerProcess(folder / "trial.toml", folder, device="cpu", threads=1) as trainer:
        fill(small_disk)
        event = list(trainer.follow())[-1]
    assert isinstance(event, FailedEvent)
    assert event.outcome is Outcome.DISK_FULL
    assert "make room" in event.sentence


def fill(disk: Path) -> None:
    with (disk / "rest").open("wb", buffering=0) as rest, contextlib.suppress(OSError):
        while True:
            rest.write(bytes(4096))


@pytest.mark.skipif(not FAKETIME.exists(), reason="libfaketime is not installed: the clock cannot jump for one process")
@pytest.mark.parametrize("jump", ["+400d", "-400d"])
def test_a_clock_that_jumps_changes_no_duration(
    trial: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: str
) -> None:
    clock = tmp_path / "clock"
    clock.write_text("+0")
    for name, value in (
        ("LD_PRELOAD", str(FAKETIME)), ("FAKETIME_TIMESTAMP_FILE", str(clock)), ("FAKETIME_NO_CACHE", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ):  # fmt: skip
        monkeypatch.setenv(name, value)
    config = trial(num_repeats=20)
    events = []
    with TrainerProcess(config, config.parent, device="cpu", threads=1, hung_after=60.0) as trainer:
        for event in trainer.follow():
            events.append(event)
            if isinstance(event, StepEvent):
                clock.write_text(jump)
    assert isinstance(events[-1], FinishedEvent)
    assert abs(events[-1].at - time.time()) > 300 * 86400
    assert all(0 < event.seconds < 600 for event in events if isinstance(event, EpochEvent))
