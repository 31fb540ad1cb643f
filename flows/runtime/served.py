"""``python -m flows.runtime.served WORDS...``: Prefect's own command, ending when the process that started it does.

Its stdin is a pipe from there: the system closes it however that process ends, so no server is left behind by a kill.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time


def end_with_parent(grace: float) -> None:
    """Ask this process to end when stdin does, in a thread of its own; `grace` seconds later it is ended."""
    threading.Thread(target=_wait_for_end, args=(grace,), daemon=True).start()


def _wait_for_end(grace: float) -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace)
    os._exit(1)


if __name__ == "__main__":
    end_with_parent(10.0)
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)
