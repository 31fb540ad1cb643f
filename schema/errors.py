"""Define every error that pixelloop raises on purpose.

A message is one sentence that says what is wrong, where, and how to fix it. The classes take a
plain message and nothing else, so that they survive pickling between processes.
"""

import reprlib

_LONGEST_SHOWN = 80
"""Characters of a value that a message repeats. A wrong value can be megabytes long."""
_reprs = reprlib.Repr()
_reprs.maxstring = _reprs.maxother = _LONGEST_SHOWN


def shorten(text: object, longest: int = _LONGEST_SHOWN) -> str:
    """Return `text`, with its middle replaced by dots if it is longer than `longest` characters."""
    whole = str(text)
    if len(whole) <= longest:
        return whole
    half = (longest - 3) // 2
    return f"{whole[:half]}...{whole[-half:]}"


def shown(value: object) -> str:
    """Return the `repr` of a value, short enough for a message."""
    return shorten(_reprs.repr(value))


class PixelloopError(Exception):
    """Report a problem to the user in one sentence. The command line prints it and exits with code 2."""


class ConfigError(PixelloopError, ValueError):
    """Report a wrong file or option: unknown key, bad value, missing file."""


class StoreError(PixelloopError):
    """Report a database failure that a retry does not fix."""


class StoreUnavailableError(StoreError, ConnectionError):
    """Report that the database cannot be reached now. The same call may succeed later."""


class RowRefusedError(StoreError):
    """Report a row that the database refused. The outbox has set it aside with the reason."""


class NumberTakenError(StoreError):
    """Report that a run of another home already has this number in the campaign."""


class NotFoundError(PixelloopError, LookupError):
    """Report that no campaign, run or epoch has the given name."""


class TrialError(PixelloopError):
    """Report a trial that could not continue. Its outcome says how it ended."""


class DivergedError(TrialError, ArithmeticError):
    """Report a loss or weights that are no longer finite."""


class BadDataError(TrialError, ValueError):
    """Report a data set that cannot be trained on: no pictures, a broken picture, an empty caption."""
