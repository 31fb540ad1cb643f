"""Processes that run trials of a campaign beside its own: one for each further GPU.

``python -m flows.workers CAMPAIGN_FILE HOME NUMBER TRIALS`` is such a process. It ends by itself when the budget is
spent, and saves its trial and ends when the campaign does.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from flows import progress
from flows.wiring import Context, unpinned
from schema.errors import PixelloopError
from tasks.child_process import module_command

_GRACE = 60.0
_SHORT, _OFTEN = 60.0, 3
_TOLD = 2
"""Exit code of a process that has said in a sentence why it cannot go on."""


class Workers:
    """Starts processes, starts again one that dies, and ends them all with the block."""

    def __init__(self, context: Context, count: int, trials: int | None) -> None:
        """Args: count: how many; trials: to run instead of the file's budget."""
        self._words = module_command("flows.workers", context.path, context.home.root)
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
            thread.join(_GRACE)
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()

    def _keep(self, number: int) -> None:
        """Follow a process to its end, and start it again unless it dies at once each time."""
        short = 0
        while not self._ended.is_set() and short < _OFTEN:
            began = time.monotonic()
            code = self._run(number)
            if self._ended.is_set() or code in (0, _TOLD):
                return
            short = short + 1 if time.monotonic() - began < _SHORT else 0
            how = f"died of {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
            then = f"given up, see {self._log}" if short == _OFTEN else "started again"
            progress.listener.message(f"[yellow]worker {number}[/] {how} and is {then}")

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


def main() -> None:
    """Run trials until the budget is spent."""
    from flows import interrupt
    from flows.campaign import worker
    from flows.patience import patiently
    from flows.served import end_with_parent
    from schema.campaign import load_campaign

    file, home, number, trials = sys.argv[1:]
    interrupt.listen()
    end_with_parent(_GRACE - 10)
    progress.listener = progress.LineListener()
    name = load_campaign(Path(file)).campaign.name
    try:
        patiently(lambda: worker(name, file, home, int(number), int(trials) or None))
    except PixelloopError as error:
        progress.listener.message(f"[red]worker {number} ended[/]: {error}")
        sys.exit(_TOLD)


if __name__ == "__main__":
    main()
