"""What property tests of bad input share: an answer, or one sentence of ours."""

from __future__ import annotations

from collections.abc import Callable

from schema.errors import PixelloopError

LONGEST_MESSAGE = 1200
"""Characters of a refusal, the path of a temporary folder included."""


def refusal_of(action: Callable[[], object]) -> str:
    """Return the sentence by which an action refuses its input, "" where it takes it; other errors are raised."""
    message = ""
    try:
        action()
    except PixelloopError as error:
        message = str(error)
        assert message
    assert len(message) < LONGEST_MESSAGE
    assert "\0" not in message
    return message
