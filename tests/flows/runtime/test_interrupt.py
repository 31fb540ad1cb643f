from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from flows.runtime import interrupt


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    numbers = signal.SIGINT, signal.SIGTERM
    handlers = [signal.getsignal(number) for number in numbers]
    yield
    interrupt.listen()  # forgets
    for number, handler in zip(numbers, handlers, strict=True):
        signal.signal(number, handler)


def test_an_interrupt_that_a_library_turns_into_an_error_is_still_known() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # as in a program that a shell starts in the background
    interrupt.listen()
    interrupt.raise_if_asked()
    with pytest.raises(ValueError, match="not set"):
        press_in_a_library()
    with pytest.raises(KeyboardInterrupt):
        interrupt.raise_if_asked()


def press_in_a_library() -> None:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        raise ValueError("task run is not set") from None
