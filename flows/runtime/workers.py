"""Keep the processes that run trials of a campaign beside its own: one for each further GPU."""

from __future__ import annotations

import contextlib
import subprocess
import threading

from rich.markup import escape

from flows.runtime import progress
from flows.runtime.restarts import Restarts
from flows.runtime.wiring import Context, unpinned
from schema.errors import PixelloopError
from tasks.child_process import module_command

WORKER_GRACE = 60.0
"""Seconds for a worker to save its trial."""
EXPLAINED = 2
"""Exit code of a process that has said in a sentence why it cannot go on."""


class Workers:
    """Starts processes, starts again one that dies, and ends them all with the block."""

    def __init__(self, context: Context, count: int, trials: int | None) -> None:
        """Args: count: how many; trials: to run instead of the file's budget."""
        self._words = module_command("flows.worker", context.path, context.home.root)
        self._trials, self._log = str(trials or 0), context.home.workers_log
        self._threads = [threading.Thread(target=self._keep, args=(n + 1,), daemon=True) for n in range(count)]
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._ended = threading.Event()

    def __enter__(self) -> Workers:
        return self

    def start(self) -> None:
        """Start them all."""
        for thread in self._threads:
            thread.start()

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for process in self._processes.values():
            assert process.stdin is not None
            with contextlib.suppress(OSError):
                process.stdin.close()
        for thread in filter(threading.Thread.is_alive, self._threads):
            thread.join(WORKER_GRACE)
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()

    def _keep(self, number: int) -> None:
        """Follow a process to its end and restart it, unless it keeps dying at once."""
        restarts = Restarts(f"worker {number}", str(self._log), _warn)
        while not self._ended.is_set():
            restarts.started()
            code = self._run(number)
            if self._ended.is_set() or code in (0, EXPLAINED):
                return
            try:
                pause = restarts.died(code)
            except PixelloopError as error:  # the campaign goes on with the others
                _warn(str(error))
                return
            self._ended.wait(pause)

    def _run(self, number: int) -> int:
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [*self._words, str(number), self._trials], env=unpinned(), stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
            )  # fmt: skip
        self._processes[number] = process
        assert process.stdout is not None
        for line in process.stdout:
            progress.listener.message(line.rstrip())
        return process.wait()


def _warn(message: str) -> None:
    progress.listener.message(f"[yellow]{escape(message)}[/]")
