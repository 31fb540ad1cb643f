"""How often a process that dies is started again."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

from schema.errors import PixelloopError

_QUICK = 60.0
"""Seconds; a process that lived longer had started well, so its death begins a new count."""

_PAUSES = (1.0, 2.0, 4.0, 8.0)
"""Seconds before each restart in a row. After one more quick death the cause will not go away by itself."""


class Restarts:
    """Counts the quick deaths of one process and says how long to wait before the next start."""

    def __init__(self, name: str, log: str, report: Callable[[str], object]) -> None:
        """Args: name: in messages; log: where its output is; report: takes each message."""
        self._name, self._log, self._report = name, log, report
        self._deaths, self._began = 0, time.monotonic()

    def started(self) -> None:
        """Note that the process runs."""
        self._began = time.monotonic()

    def died(self, code: int | None) -> float:
        """Report a death and return the seconds until the next start.

        Raises:
            PixelloopError: it died at once several times in a row, so it is not started again.
        """
        self._deaths = self._deaths + 1 if time.monotonic() - self._began < _QUICK else 1
        if self._deaths > len(_PAUSES):
            raise PixelloopError(
                f"{self._name} {how_it_ended(code)}, {self._deaths} times in a row: it is not started again, "
                f"see {self._log}"
            )
        pause = _PAUSES[self._deaths - 1]
        self._report(f"{self._name} {how_it_ended(code)}: next start in {pause:g} s")
        return pause


def how_it_ended(code: int | None) -> str:
    """Say how a process ended by its exit code."""
    if code is None:
        return "ended"
    if code < 0:
        try:
            return f"died of {signal.Signals(-code).name}"
        except ValueError:
            return f"died of signal {-code}"
    return f"ended with code {code}"
