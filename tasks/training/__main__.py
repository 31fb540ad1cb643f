"""``python -m tasks.training TRIAL.toml``: train one LoRA, or go on with it.

Exit codes: 0 finished or stopped with its state saved, 1 failed (the last event says how), 2 the
configuration is wrong. Events go to events.jsonl beside the configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from schema.errors import BadDataError, DivergedError, PixelloopError
from schema.runs import Outcome
from tasks.training.config import load_config
from tasks.training.events import FailedEvent, write_event


def main() -> int:
    """Run the trainer; every failure becomes an event with one sentence."""
    parser = argparse.ArgumentParser(prog="python -m tasks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    events = args.config.parent / "events.jsonl"

    import torch  # after the arguments: a wrong call is answered at once

    torch.set_num_threads(args.threads)
    try:
        config = load_config(args.config)
        from tasks.training.trainer import Trainer

        Trainer(config, args.config.parent, torch.device(args.device)).run()
    except DivergedError as error:
        return _fail(events, Outcome.DIVERGED, str(error))
    except BadDataError as error:
        return _fail(events, Outcome.BAD_DATA, str(error))
    except torch.OutOfMemoryError as error:
        sentence = f"out of memory on {args.device}: lower train_batch_size or set gradient_checkpointing ({error})"
        return _fail(events, Outcome.OUT_OF_MEMORY, sentence.splitlines()[0])
    except OSError as error:
        return _fail(events, Outcome.CRASHED, f"{error.strerror or error}: {error.filename or args.config.parent}")
    except PixelloopError as error:
        print(f"pixelloop: {error}", file=sys.stderr)
        write_event(events, FailedEvent(outcome=Outcome.CRASHED, sentence=str(error)))
        return 2
    return 0


def _fail(events: Path, outcome: Outcome, sentence: str) -> int:
    print(f"pixelloop: {sentence}", file=sys.stderr)
    write_event(events, FailedEvent(outcome=outcome, sentence=sentence))
    return 1


if __name__ == "__main__":
    sys.exit(main())
