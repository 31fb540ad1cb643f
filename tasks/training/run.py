"""One training from its configuration to its exit code; every failure becomes an event with one sentence."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from schema.errors import BadDataError, DivergedError, PixelloopError
from schema.runs import Outcome
from tasks.training.config import load_config
from tasks.training.events import FailedEvent, write_event

if TYPE_CHECKING:
    from tasks.training.models import BaseModel


def run(config: Path, device: str, threads: int, model: BaseModel | None = None) -> int:
    """Train, or go on with it; events go to events.jsonl beside the configuration.

    Args:
        model: the base model of the configuration where it is loaded already.

    Returns:
        0 finished or stopped with its state saved, 1 failed (the last event says how), 2 the configuration is wrong.
    """
    import torch  # seconds: a wrong call is answered before

    events = config.parent / "events.jsonl"
    torch.set_num_threads(threads)
    try:
        settings = load_config(config)
        from tasks.training.trainer import Trainer

        Trainer(settings, config.parent, torch.device(device), model).run()
    except DivergedError as error:
        return _fail(events, Outcome.DIVERGED, str(error))
    except BadDataError as error:
        return _fail(events, Outcome.BAD_DATA, str(error))
    except torch.OutOfMemoryError as error:
        sentence = f"out of memory on {device}: lower train_batch_size or set gradient_checkpointing ({error})"
        return _fail(events, Outcome.OUT_OF_MEMORY, sentence.splitlines()[0])
    except OSError as error:
        return _fail(events, Outcome.CRASHED, f"{error.strerror or error}: {error.filename or config.parent}")
    except PixelloopError as error:
        _fail(events, Outcome.CRASHED, str(error))
        return 2
    return 0


def _fail(events: Path, outcome: Outcome, sentence: str) -> int:
    print(f"pixelloop: {sentence}", file=sys.stderr)
    write_event(events, FailedEvent(outcome=outcome, sentence=sentence))
    return 1
