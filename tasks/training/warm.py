"""Start trainers by forking a process that already has the libraries and the base model loaded (see `forkserver`)."""

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

_POLL_SECONDS = 0.02  # for `Fork.wait`: a forked trainer is not our child, so the kernel cannot wait for it


class Fork:
    """Follow a trainer forked for one trial, with the interface of `subprocess.Popen`."""

    def __init__(self, pid: int, codes: dict[int, int], server: subprocess.Popen[bytes]) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._codes, self._server = codes, server

    def poll(self) -> int | None:
        """Return the exit code, or None while it runs; -9 if it ended after its fork server, which knew the code."""
        if self.returncode is None and self.pid in self._codes:
            self.returncode = self._codes.pop(self.pid)
        if self.returncode is None and self.orphaned and not psutil.pid_exists(self.pid):
            self.returncode = -signal.SIGKILL
        return self.returncode

    @property
    def orphaned(self) -> bool:
        """Return whether the fork server has ended."""
        return self._server.poll() is not None

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code.

        Raises:
            subprocess.TimeoutExpired: it still runs after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("trainer", timeout or 0.0)
            time.sleep(_POLL_SECONDS)
        return code

    def terminate(self) -> None:
        """Ask it to save its state and end."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended and the server has yet to report its code
                os.kill(self.pid, signal.SIGTERM)


class WarmTrainer:
    """Start trainers from one fork server, which is started on first use; safe to share between threads."""

    def __init__(self, log: Path, threads: int) -> None:
        """Set up without starting the server.

        Args:
            log: file for the server's output.
            threads: CPU threads of each trainer.
        """
        self._log, self._threads = log, threads
        self._lock, self._answered = threading.Lock(), threading.Condition()
        self._server: subprocess.Popen[bytes] | None = None
        self._started: list[int] = []
        self._codes: dict[int, int] = {}

    def start(self, config: Path, device: str, log: Path) -> Fork | None:
        """Start a trainer for a configuration; None if the server died, so that the caller starts a cold one."""
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
        """End the server; trainers that still run save their state and end too."""
        if self._server is not None and self._server.stdin is not None:
            self._server.stdin.close()
            self._server.wait()
            self._server = None

    def _ready(self) -> subprocess.Popen[bytes]:
        if self._server is None or self._server.poll() is not None:
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("ab") as log:
                # A session of its own: Ctrl-C must reach only the campaign, which then stops the trainer.
                self._server = subprocess.Popen(
                    module_command("tasks.training.forkserver"),
                    env=child_environment({
                        "OMP_NUM_THREADS": str(self._threads), "TOKENIZERS_PARALLELISM": "false",
                        "PYTORCH_NVML_BASED_CUDA_CHECK": "1",  # the default check initialises CUDA: fatal in a fork
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
