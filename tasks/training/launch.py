"""Start the trainer in a separate process and follow its events."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from schema.runs import Outcome
from tasks.child_process import child_environment, module_command
from tasks.training.events import (
    NO_ROOM,
    EpochEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    StepEvent,
    StoppedEvent,
    WarningEvent,
    read_events,
    write_event,
)
from tasks.training.warm import Fork, WarmTrainer

_POLL_SECONDS = 0.1  # between reads of events.jsonl; steps are reported once a second
_STOP_GRACE = 30.0  # seconds to finish the running step and save the state before SIGKILL
HUNG_AFTER = 900.0
"""Seconds without an event after which a trainer counts as hung. Encoding a large data set is silent for minutes."""


class TrainerProcess:
    """Run a trainer as a context manager: started on entry, ended on exit.

    Out of memory, a segfault or a hang ends the trainer's process, not the campaign.
    """

    def __init__(
        self,
        config: Path,
        folder: Path,
        device: str,
        threads: int,
        warm: WarmTrainer | None = None,
        hung_after: float = HUNG_AFTER,
    ) -> None:
        """Set up without starting.

        Args:
            config: the trial's configuration file.
            folder: the trial's folder, which gets events.jsonl and trainer.log.
            device: torch's name of the device.
            threads: CPU threads.
            warm: forks trainers from a loaded process, which saves loading libraries and model; None starts cold.
            hung_after: seconds without an event after which the trainer is ended.
        """
        self._trial, self._device, self._threads = config, device, threads
        self._events, self._log = folder / "events.jsonl", folder / "trainer.log"
        self._environment = child_environment({"OMP_NUM_THREADS": str(threads)})
        self._warm, self._hung_after = warm, hung_after
        self._process: subprocess.Popen[bytes] | Fork | None = None
        self._earlier = 0
        self._stop_requested = False
        self._epochs_at_death = -1

    def __enter__(self) -> TrainerProcess:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Return the process id of the running or last trainer."""
        assert self._process is not None, "enter the block first"
        return self._process.pid

    def follow(self) -> Iterator[Event]:
        """Yield events until the trainer has ended: first the epochs of earlier attempts, each epoch once.

        A trainer that dies without a final event yields a failure with the last line of its log. Two kinds of death
        lead to a restart instead. A warm trainer that dies with its server, or before its first event, is started
        again cold. A trainer ended by a signal, which may have hit the whole machine, is started again as long as it
        completes at least one more epoch each time.
        """
        seen: set[int] = set()
        last: tuple[int, Event] | None = None
        offset = 0
        heard = time.monotonic()
        while True:
            alive, before = self._alive(), offset
            for event, end in read_events(self._events, offset):
                offset = end
                if isinstance(event, EpochEvent):
                    if event.epoch not in seen:
                        seen.add(event.epoch)
                        yield event
                elif end > self._earlier:
                    last = (end, event) if not isinstance(event, StepEvent) else last
                    yield event
            if offset > before:
                heard = time.monotonic()
            elif alive and time.monotonic() - heard > self._hung_after:
                self.stop()
                yield self._hang()
                return
            if not alive and not self._alive():  # another thread may have resumed it meanwhile
                final = last[1] if last is not None and last[0] > self._earlier else None
                if self._may_start_cold(final):
                    self._begin()
                elif self._may_restart(final, len(seen)):
                    sentence = f"{self._death().sentence}; it goes on from its last state"
                    self._begin()
                    write_event(self._events, WarningEvent(sentence=sentence))
                else:
                    break
            time.sleep(_POLL_SECONDS)
        if not isinstance(final, FailedEvent | FinishedEvent | StoppedEvent):
            yield self._death()

    def stop(self) -> None:
        """Ask the trainer to save its state and end; kill it after 30 seconds."""
        self._stop_requested = True
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_STOP_GRACE)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def resume(self) -> None:
        """Restart after `stop` from the saved state; do nothing if training has finished or failed."""
        own_events = [event for event, _ in read_events(self._events, self._earlier)]
        if any(isinstance(event, FinishedEvent | FailedEvent) for event in own_events):
            return
        self._begin()

    def _begin(self) -> None:
        self._earlier = max((offset for _, offset in read_events(self._events)), default=0)
        self._stop_requested = False
        self._start()

    def _start(self) -> None:
        self._process = None
        if self._warm is not None:
            self._process = self._warm.start(self._trial, self._device, self._log)
        if self._process is None:
            self._process = self._cold()

    def _cold(self) -> subprocess.Popen[bytes]:
        words = [str(self._trial), "--device", self._device, "--threads", str(self._threads)]
        with self._log.open("ab") as log:
            # A session of its own: Ctrl-C must reach only the campaign, which then stops the trainer.
            return subprocess.Popen(
                module_command("tasks.training", *words), env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def _may_start_cold(self, final: Event | None) -> bool:
        """Return whether a warm trainer's end is no fault of the trial; if so, all further starts are cold."""
        if self._stop_requested or not isinstance(self._process, Fork):
            return False
        if isinstance(final, FailedEvent | FinishedEvent):
            return False
        if final is None or isinstance(final, StoppedEvent) or self._process.orphaned:
            self._warm = None
            return True
        return False

    def _may_restart(self, final: Event | None, epochs: int) -> bool:
        """Return whether a trainer that a signal ended may be restarted: only if it got further than last time."""
        code = self._process.returncode if self._process is not None else None
        from_outside = isinstance(final, StoppedEvent) or (code is not None and code < 0)
        if self._stop_requested or isinstance(final, FailedEvent | FinishedEvent) or not from_outside:
            return False
        again, self._epochs_at_death = epochs == self._epochs_at_death, epochs
        return not again

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _hang(self) -> FailedEvent:
        event = FailedEvent(
            outcome=Outcome.HUNG,
            sentence=f"the trainer was silent for {self._hung_after:g} s and was ended: see {self._log}",
        )
        write_event(self._events, event)
        return event

    def _death(self) -> FailedEvent:
        code = self._process.returncode if self._process is not None else None
        if code == NO_ROOM:
            sentence = f"the disk is full, {self._events} could not be written: make room and start again"
            return FailedEvent(outcome=Outcome.DISK_FULL, sentence=sentence)
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", often for want of memory" if name == "SIGKILL" else ""
            return FailedEvent(outcome=Outcome.CRASHED, sentence=f"the trainer died of {name}{hint}: see {self._log}")
        return FailedEvent(outcome=Outcome.CRASHED, sentence=f"the trainer ended with code {code}: {self._last_line()}")

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"
