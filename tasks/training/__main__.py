"""``python -m tasks.training TRIAL.toml``: train one LoRA, or go on with it.

Or in kohya's way: ``--config_file X.toml``, ``--dataset_config Y.toml`` and any of sd-scripts' options; then events
and state go to ``<output_name>-training`` in output_dir. Exit codes: 0 finished or stopped with its state saved, 1
failed (the last event says how), 2 the configuration is wrong. Events go to events.jsonl beside the configuration.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tasks.training.run import run, run_kohya


def main() -> int:
    """Run the trainer as a command."""
    parser = argparse.ArgumentParser(prog="python -m tasks.training", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("config", type=Path, nargs="?", help="left out with --config_file")
    parser.add_argument("--device", help="a GPU where there is one for kohya's options, else the CPU")
    parser.add_argument("--threads", type=int, default=1)
    args, options = parser.parse_known_args()
    if args.config is None and options:
        return run_kohya(options, args.device, args.threads)
    if args.config is None or options:
        parser.error("give either a configuration or kohya's options, such as --config_file")
    return run(args.config, args.device or "cpu", args.threads)


if __name__ == "__main__":
    sys.exit(main())
