"""A trainer that need not be started anew: its process waits with the base model loaded (see `forkserver`)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own

from tasks.child_process import child_environment, module_command

_POLL = 0.02


class Fork:
    """A trainer forked for one trial; behaves like a `subprocess.Popen`."""

    def __init__(self, pid: int, codes: dict[int, int], server: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._codes, self._server = codes, server

    def poll(self) -> int | None:
        """Exit code, or None while it runs; -9 where nobody is left to tell."""
        if self.returncode is None and self.pid in self._codes:
            self.returncode = self._codes.pop(self.pid)
        if self.returncode is None and self.orphaned and not psutil.pid_exists(self.pid):
            self.returncode = -signal.SIGKILL
        return self.returncode

    @property
    def orphaned(self) -> bool:
        """True where the process it was forked from is gone."""
        return self._server.poll() is not None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it runs on.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("trainer", timeout or 0.0)
            time.sleep(_POLL)
        return code

    def terminate(self) -> None:
        """Ask it to save its state and end."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and its code is on its way
                os.kill(self.pid, signal.SIGTERM)


class WarmTrainer:
    """Starts trainers from one process that has loaded everything; safe to share between threads."""

    def __init__(self, log: Path, threads: int) -> None:
        """Args: log: where the process writes what it has to say; threads: of the trainers."""
        self._log, self._threads = log, threads
        self._lock, self._answered = threading.Lock(), threading.Condition()
        self._server: subprocess.Popen[bytes] | None = None
        self._started: list[int] = []
        self._codes: dict[int, int] = {}

    def start(self, config: Path, device: str, log: Path) -> Fork | None:
        """A trainer for a configuration; None where the process died over it: a cold one has to do then."""
        order = {"config": str(config), "device": device, "threads": self._threads, "log": str(log)}
        with self._lock:
            server = self._ready()
            assert server.stdin is not None
            try:
                server.stdin.write(json.dumps(order).encode() + b"\n")
                server.stdin.flush()
            except OSError:
                return None
            with self._answered:
                self._answered.wait_for(lambda: self._started or server.poll() is not None)
                return Fork(self._started.pop(), self._codes, server) if self._started else None

    def close(self) -> None:
        """End the process; trainers that still run save their state and end too."""
        if self._server is not None and self._server.stdin is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server = None

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                # Its own session: Ctrl-C reaches the campaign, which then tells the trainer to stop.
                self._server = subprocess.Popen(
                    module_command("tasks.training.forkserver"),
                    env=child_environment({
                        "OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false",
                        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the usual way to look for a GPU spoils it for forks
                    }),
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, start_new_session=True,
                )  # fmt: skip
            threading.Thread(target=self._listen, args=(self._server,), daemon=True).start()
        return self._server

    def _listen(self, server: subprocess.Popen[bytes]) -> None:
        assert server.stdout is not None
        for line in server.stdout:
            answer = json.loads(line)
            with self._answered:
                if "code" in answer:
                    self._codes[answer["pid"]] = answer["code"]
                else:
                    self._started.append(answer["pid"])
                self._answered.notify_all()
        server.wait()
        with self._answered:
            self._answered.notify_all()
