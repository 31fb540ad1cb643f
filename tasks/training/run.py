"""Run one training from configuration to exit code; every failure becomes an event with a one-sentence message."""

from __future__ import annotations

import contextlib
import errno
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from schema.errors import BadDataError, DivergedError, PixelloopError, TrialError
from schema.runs import Outcome
from tasks.claims import Claim
from tasks.training.config import TrainingConfig, load_config
from tasks.training.events import NO_ROOM, FailedEvent, WarningEvent, write_event
from tasks.training.kohya import options_of, read_kohya

if TYPE_CHECKING:
    from tasks.training.models import BaseModel

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)  # the disk is full, or the user's quota is
_EARLIER_TRAINER_SECONDS = 60.0  # time for an earlier trainer to save its state, twice what `launch` allows one


def run(config: Path, device: str, threads: int, model: BaseModel | None = None) -> int:
    """Train, or resume; events go to events.jsonl beside the configuration.

    Args:
        config: the configuration file.
        device: torch's name of the device.
        threads: CPU threads.
        model: the configuration's base model, if it is loaded already.

    Returns:
        The exit code: 0 finished, or stopped with its state saved; 1 failed, and the last event says why; 2 the
        configuration is wrong; `NO_ROOM` the disk is full and no event could be written.
    """
    return _run(lambda: load_config(config), config.parent, device, threads, model)


def run_kohya(options: Sequence[str], device: str | None, threads: int) -> int:
    """Train with kohya's files and options; events and state go to ``<output_name>-training`` in output_dir.

    Args:
        options: words of the command line.
        device: torch's name of the device; None chooses a GPU if there is one.
        threads: CPU threads.

    Returns:
        The exit code, as `run`.
    """
    try:
        config, notes = read_kohya(options_of(options))
        folder = config.output_dir / f"{config.output_name}-training"
        folder.mkdir(parents=True, exist_ok=True)
    except PixelloopError as error:
        print(f"pixelloop: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"pixelloop: {error.filename} cannot be written: {error.strerror}", file=sys.stderr)
        return 2
    for note in notes:
        print(f"pixelloop: {note}", file=sys.stderr)
        write_event(folder / "events.jsonl", WarningEvent(sentence=note))
    if device is None:
        import torch

        device = "cuda" if torch.cuda.is_available() else "cpu"
    return _run(lambda: config, folder, device, threads, None)


def _run(read: Callable[[], TrainingConfig], folder: Path, device: str, threads: int, model: BaseModel | None) -> int:
    import torch  # takes seconds, so wrong options are reported first

    events = folder / "events.jsonl"
    torch.set_num_threads(threads)
    try:
        settings = read()
        from tasks.training.trainer import Trainer

        with _alone(folder):
            Trainer(settings, folder, torch.device(device), model).run()
    except DivergedError as error:
        return _fail(events, Outcome.DIVERGED, str(error))
    except BadDataError as error:
        return _fail(events, Outcome.BAD_DATA, str(error))
    except PixelloopError as error:
        return max(_fail(events, Outcome.CRASHED, str(error)), 2)
    except (OSError, MemoryError, RuntimeError) as error:
        outcome, sentence = _judge(error, device, folder)
        if outcome is Outcome.CRASHED and not isinstance(error, OSError):
            raise  # an unknown error: the traceback goes to the log
        return _fail(events, outcome, sentence)
    return 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Claim the folder, waiting for an earlier trainer whose parent died and which still saves its state.

    Raises:
        TrialError: the earlier trainer does not end within 60 seconds.
    """
    until = time.monotonic() + _EARLIER_TRAINER_SECONDS
    while (claim := Claim.take(folder / "trainer.claim")) is None:
        if time.monotonic() > until:
            raise TrialError(f"another trainer works in {folder}: end it, then start again")
        time.sleep(0.1)
    with claim:
        yield


def _judge(error: Exception, device: str, folder: Path) -> tuple[Outcome, str]:
    """Return the outcome for an error of the machine, with a one-sentence message."""
    if isinstance(error, OSError):
        place = error.filename or folder
        if error.errno in _NO_SPACE:
            return Outcome.DISK_FULL, f"the disk is full, {place} could not be written: make room and start again"
        return Outcome.CRASHED, f"{error.strerror or error}: {place}"
    first = (str(error).splitlines() or [""])[0]
    # torch.OutOfMemoryError is raised for GPUs only; the CPU allocator raises RuntimeError with this text.
    if isinstance(error, MemoryError) or "out of memory" in first.lower() or "can't allocate memory" in first:
        remedy = "lower train_batch_size or set gradient_checkpointing"
        return Outcome.OUT_OF_MEMORY, f"out of memory on {device}: {remedy} ({first or 'no more to be had'})"
    return Outcome.CRASHED, first


def _fail(events: Path, outcome: Outcome, sentence: str) -> int:
    try:
        print(f"pixelloop: {sentence}", file=sys.stderr)
        write_event(events, FailedEvent(outcome=outcome, sentence=sentence))
    except OSError as error:  # a full disk has no room for the event, and may be the cause
        return NO_ROOM if error.errno in _NO_SPACE else 1
    return 1
