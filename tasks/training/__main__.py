"""``python -m tasks.training TRIAL.toml``: train one LoRA, or go on with it.

Exit codes: 0 finished or stopped with its state saved, 1 failed (the last event says how), 2 the
configuration is wrong. Events go to events.jsonl beside the configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tasks.training.run import run


def main() -> int:
    """Run the trainer as a command."""
    parser = argparse.ArgumentParser(prog="python -m tasks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    return run(args.config, args.device, args.threads)


if __name__ == "__main__":
    sys.exit(main())
