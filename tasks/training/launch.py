"""Start the trainer in a process of its own and follow what it does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from schema.runs import Outcome
from tasks.training.events import EpochEvent, Event, FailedEvent, FinishedEvent, StoppedEvent, read_events

_POLL = 0.1
_GRACE = 30.0


class TrainerProcess:
    """A trainer that is started on entering and never outlives the block.

    Out of memory, a segfault or a hang ends this process, not the night.
    """

    def __init__(self, config: Path, folder: Path, device: str, threads: int) -> None:
        """Args: folder: the trial's, with events.jsonl and trainer.log."""
        self._events, self._log = folder / "events.jsonl", folder / "trainer.log"
        self._command = [
            sys.executable, "-m", "tasks.training", str(config), "--device", device, "--threads", str(threads),
        ]  # fmt: skip
        self._environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self._process: subprocess.Popen[bytes] | None = None
        self._earlier = 0

    def __enter__(self) -> TrainerProcess:
        self._earlier = max((offset for _, offset in read_events(self._events)), default=0)
        with self._log.open("ab") as log:
            # Its own session: Ctrl-C reaches the campaign, which then tells the trainer to stop.
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """Process id of the started trainer."""
        assert self._process is not None, "enter the block first"
        return self._process.pid

    def follow(self) -> Iterator[Event]:
        """Events until the trainer has ended, first the epochs of earlier attempts, each epoch once.

        A trainer that dies without a word is reported as a failure, with the last line of its log.
        """
        seen: set[int] = set()
        ended = False
        offset = 0
        while True:
            alive = self._alive()
            for event, end in read_events(self._events, offset):
                offset = end
                if isinstance(event, EpochEvent):
                    if event.epoch not in seen:
                        seen.add(event.epoch)
                        yield event
                elif end > self._earlier:
                    ended = ended or isinstance(event, FailedEvent | FinishedEvent | StoppedEvent)
                    yield event
            if not alive:
                break
            time.sleep(_POLL)
        if not ended:
            yield self._death()

    def stop(self) -> None:
        """Let the trainer save its state and end; kill it if it does not within half a minute."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        try:
            process.wait(_GRACE)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def _alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _death(self) -> FailedEvent:
        code = self._process.returncode if self._process is not None else None
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            hint = ", often for want of memory" if name == "SIGKILL" else ""
            return FailedEvent(outcome=Outcome.CRASHED, sentence=f"the trainer died of {name}{hint}: see {self._log}")
        return FailedEvent(outcome=Outcome.CRASHED, sentence=f"the trainer ended with code {code}: {self._last_line()}")

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it printed nothing"
