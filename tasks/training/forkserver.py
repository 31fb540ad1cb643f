"""``python -m tasks.training.forkserver``: load libraries and base model once, then fork one trainer per trial.

A fork starts with everything in memory and shares it until it writes, so training begins at once. A crash, out of
memory or an accidental write to the weights affects only the fork. CUDA cannot be forked once it is in use, so the
server never touches a GPU: the forks move the model there themselves.

Orders are JSON lines on stdin: ``{"config", "device", "threads", "log"}``. Replies are JSON lines on stdout:
``{"pid"}`` for a started trainer, ``{"pid", "code"}`` for one that has ended. The server ends at the end of stdin. A
trainer whose parent is gone saves its state and ends too.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from schema.errors import PixelloopError
from tasks.training.run import run

if TYPE_CHECKING:
    from tasks.training.models import BaseModel


class ForkServer:
    """Fork trainers, and keep the base model of the last order in memory."""

    def __init__(self) -> None:
        # Replies go to a copy of stdout; stdout itself becomes stderr, so that library output cannot mix with them.
        self._replies = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._key: object = None
        self._model: BaseModel | None = None

    def serve(self) -> None:
        """Execute orders until stdin ends."""
        # SIGCHLD writes to this pipe, so that `select` wakes when a trainer ends.
        wake, bell = os.pipe()
        os.set_blocking(bell, False)
        signal.set_wakeup_fd(bell)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        rest = b""
        while True:
            ready, _, _ = select.select([0, wake], [], [])
            if wake in ready:
                os.read(wake, 4096)
                self._report_ended()
            if 0 in ready:
                data = os.read(0, 65536)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._start(json.loads(line))

    def _start(self, order: dict[str, Any]) -> None:
        model = self._loaded(Path(order["config"]))
        pid = os.fork()
        if pid == 0:
            self._replies.close()
            _train(order, model)
        self._reply(pid=pid)

    def _loaded(self, config: Path) -> BaseModel | None:
        """Return the configuration's base model; None if it cannot be loaded, which the trainer itself reports."""
        import torch

        from tasks.training.config import load_config
        from tasks.training.models import load_base_model
        from tasks.training.trainer import Trainer

        try:
            settings = load_config(config)
            key = settings.pretrained_model_name_or_path, Trainer.frozen_dtype(settings)
            if key != self._key:
                self._key, self._model = None, None  # free the old model first: memory may not hold two
                self._model = load_base_model(key[0], torch.device("cpu"), key[1])
                self._key = key
        except PixelloopError:
            return None
        return self._model

    def _report_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._reply(pid=ended[0], code=os.waitstatus_to_exitcode(ended[1]))

    def _reply(self, **fields: int) -> None:
        print(json.dumps(fields), file=self._replies, flush=True)


def _train(order: dict[str, Any], model: BaseModel | None) -> None:
    """Run the fork: give it its own session and log, train, exit."""
    code = 70  # EX_SOFTWARE of sysexits.h, unless `run` returns
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        code = run(Path(order["config"]), order["device"], order["threads"], model)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise
    finally:
        os._exit(code)  # skip the exit handlers inherited from the server


def main() -> None:
    """Serve orders from stdin."""
    server = ForkServer()
    import torch

    torch.set_num_threads(1)  # a fork copies only the calling thread; locks held by others would stay locked
    server.serve()


if __name__ == "__main__":
    main()
