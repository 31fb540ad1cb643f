"""``python -m tasks.training.forkserver``: libraries and base model, loaded once; each trial is forked from there.

A fork starts with everything in memory and shares it until it writes: training begins at once, and whatever
happens to it - a segfault, out of memory, weights changed by mistake - happens to its own copy. CUDA cannot be
forked once it is in use, so this process never touches a GPU: its forks move the model there themselves.

Orders come as JSON lines on stdin: ``{"config", "device", "threads", "log"}``. Answers go as lines to stdout:
``{"pid"}`` for a started trainer, ``{"pid", "code"}`` for one that has ended. It ends when stdin does; a trainer
whose parent is gone saves its state and ends too.
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
    """Holds the base model of the last order, and forks."""

    def __init__(self) -> None:
        # Whatever a library prints must not mix with the answers.
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self._key: object = None
        self._model: BaseModel | None = None

    def serve(self) -> None:
        """Take orders until there are none to come."""
        wake, bell = os.pipe()
        os.set_blocking(bell, False)
        signal.set_wakeup_fd(bell)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        rest = b""
        while True:
            ready, _, _ = select.select([0, wake], [], [])
            if wake in ready:
                os.read(wake, 4096)
                self._tell_ended()
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
            self._answers.close()
            _train(order, model)
        self._answer(pid=pid)

    def _loaded(self, config: Path) -> BaseModel | None:
        """The configuration's base model; None where it cannot be loaded: the trainer itself will say why."""
        import torch

        from tasks.training.config import load_config
        from tasks.training.models import load_base_model
        from tasks.training.trainer import Trainer

        try:
            settings = load_config(config)
            key = settings.pretrained_model_name_or_path, Trainer.frozen_dtype(settings)
            if key != self._key:
                self._key, self._model = None, None  # two do not fit everywhere
                self._model = load_base_model(key[0], torch.device("cpu"), key[1])
                self._key = key
        except PixelloopError:
            return None
        return self._model

    def _tell_ended(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                self._answer(pid=ended[0], code=os.waitstatus_to_exitcode(ended[1]))

    def _answer(self, **fields: int) -> None:
        print(json.dumps(fields), file=self._answers, flush=True)


def _train(order: dict[str, Any], model: BaseModel | None) -> None:
    """The fork's life: a session and a log of its own, then training."""
    code = 70
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
        os._exit(code)  # what the parent would do at its end is not for its fork to do


def main() -> None:
    """Serve orders from stdin."""
    server = ForkServer()
    import torch

    torch.set_num_threads(1)  # the locks of others would stay closed in a fork
    server.serve()


if __name__ == "__main__":
    main()
