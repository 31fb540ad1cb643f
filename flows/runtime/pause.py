"""A night that waits, or that ends when its time is over.

`pixelloop pause` leaves a file in the home. While it lies there nothing trains: trainers save their state and end, so
that the GPU is free. When a campaign's time of day has come they do the same, and the campaign ends.
"""

from __future__ import annotations

import time
from datetime import datetime
from datetime import time as time_of_day

from flows.runtime import interrupt, progress
from optimizer.control.budget import deadline
from tasks.home import Home
from tasks.training.launch import TrainerProcess

_LOOK = 1.0  # seconds between looks: quick for a person, nothing for a CPU
_ends_at: datetime | None = None
_waited = 0.0


def time_at_work() -> float:
    """Seconds by a clock that neither jumps nor runs while the home is paused; its zero is any."""
    return time.monotonic() - _waited


def end_at(until: time_of_day | None) -> None:
    """Set the time of day at which the work of this process ends, None for no such time."""
    global _ends_at
    _ends_at = None if until is None else deadline(until, datetime.now().astimezone())


def time_is_up() -> str | None:
    """Why the work ends now, None while there is time."""
    if _ends_at is None or datetime.now().astimezone() < _ends_at:
        return None
    return f"it is {_ends_at:%H:%M}"


def wait(home: Home) -> None:
    """Wait while the home is paused, and tell it."""
    global _waited
    if not home.paused.exists():
        return
    begun = time.monotonic()
    progress.listener.message("paused; go on with [bold]pixelloop resume[/]")
    while home.paused.exists() and time_is_up() is None:
        interrupt.raise_if_asked()
        time.sleep(_LOOK)
    _waited += time.monotonic() - begun
    progress.listener.message("the pause is over")


def may_go_on(home: Home, trainer: TrainerProcess) -> bool:
    """Stop a trainer where the home is paused or time is up, and let it go on after the pause.

    Returns:
        False where time is up: its state is saved, and it waits for another night.
    """
    if home.paused.exists():
        trainer.stop()
        wait(home)
        if time_is_up() is None:
            trainer.resume()
    if time_is_up() is None:
        return True
    trainer.stop()
    return False
