"""Ctrl-C, or SIGTERM, at any moment.

An interrupt that hits Prefect while it starts a task or a flow comes out of it as an ordinary error. So it is written
down where it arrives, and whoever would take an error for a failure of the trial asks here first.
"""

from __future__ import annotations

import signal
from types import FrameType

_asked = False


def listen() -> None:
    """Take Ctrl-C's signal, also where a shell that starts programs in the background has switched it off.

    SIGTERM is taken in the same way, but while a flow runs it is Prefect that takes it, for a `TerminationSignal`.
    """
    global _asked
    _asked = False
    signal.signal(signal.SIGINT, _on_signal)
    signal.signal(signal.SIGTERM, _on_signal)


def end_in_order() -> None:
    """Take SIGTERM and a closed terminal (SIGHUP) as Ctrl-C, so that a command still stops what it has started.

    A signal that the caller ignores, as `nohup` does, stays ignored.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _on_signal)


def raise_if_asked() -> None:
    """Raise KeyboardInterrupt if the signal has come, whatever became of it."""
    if _asked:
        raise KeyboardInterrupt


def _on_signal(number: int, frame: FrameType | None) -> None:
    global _asked
    _asked = True
    signal.default_int_handler(number, frame)
