"""Locks that end with their holder: the kernel frees them, whatever ends the process."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


class Claim:
    """Something that one process has for itself, until it lets go or dies."""

    def __init__(self, file: int) -> None:
        self._file = file

    @classmethod
    def take(cls, path: Path, *, shared: bool = False) -> Claim | None:
        """The claim that a file stands for, None where another has it. The file is made and stays.

        Args:
            shared: with others who share it, while nobody has it alone.

        Raises:
            OSError: it cannot be made.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(file)
            return None
        return cls(file)

    @staticmethod
    def is_free(path: Path) -> bool:
        """Return whether no process holds a claim. Nothing is made; where that cannot be seen, one may hold it."""
        try:
            if not path.exists():
                return True
            held = Claim.take(path)
        except OSError:  # a home that is read only
            return False
        if held is not None:
            held.release()
        return held is not None

    def is_alone(self) -> bool:
        """Return whether nobody else shares it. Others must be kept from taking it alone meanwhile."""
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._file, fcntl.LOCK_SH)  # a failed change loses the shared lock
        return True

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Let go; harmless a second time."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
