"""Every error pixelloop raises on purpose.

Messages are one sentence that says what is wrong, where, and the mend. The classes take a
plain message and nothing else, so that they survive pickling between processes.
"""

import reprlib

_LONGEST_SHOWN = 80
"""Characters of a value that a message repeats. A wrong value can have megabytes."""
_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _LONGEST_SHOWN


def shorten(text: object, longest: int = _LONGEST_SHOWN) -> str:
    """Return a text or path, cut in the middle where it is longer than `longest` characters."""
    whole = str(text)
    if len(whole) <= longest:
        return whole
    half = (longest - 3) // 2
    return f"{whole[:half]}...{whole[-half:]}"


def shown(value: object) -> str:
    """Return a value as Python writes it, short enough for a message."""
    return shorten(_reprs.repr(value))


class PixelloopError(Exception):
    """Base of all errors with a sentence for the user; the command line prints it and exits 2."""


class ConfigError(PixelloopError, ValueError):
    """A file or an option is wrong: unknown key, bad value, missing file."""


class StoreError(PixelloopError):
    """The database refused or lost something that a retry does not mend."""


class StoreUnavailableError(StoreError, ConnectionError):
    """The database cannot be reached now; the same call may work later."""


class RowRefusedError(StoreError):
    """The database refuses a row; the outbox has set it aside with the reason."""


class NumberTakenError(StoreError):
    """A run of another home has this number in the campaign already."""


class NotFoundError(PixelloopError, LookupError):
    """A campaign, run or epoch that was asked for by name does not exist."""


class TrialError(PixelloopError):
    """A trial could not go on; its outcome says how it ended."""


class DivergedError(TrialError, ArithmeticError):
    """The loss or the weights left the finite range."""


class BadDataError(TrialError, ValueError):
    """The data set cannot be trained on: no pictures, a broken picture, an empty caption."""
