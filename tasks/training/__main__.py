"""``python -m tasks.training TRIAL.toml``: train one LoRA, or go on with it.

Events go to events.jsonl beside the configuration. Kohya's options work too: ``--config_file X.toml``,
``--dataset_config Y.toml`` and any of sd-scripts' options. Events and state then go to ``<output_name>-training`` in
output_dir.

Exit codes: 0 finished, or stopped with its state saved; 1 failed, and the last event says why; 2 the configuration is
wrong; 74 the disk is full.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tasks.training.run import run, run_kohya


def main() -> int:
    """Run the trainer as a command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.training", description=(__doc__ or "").splitlines()[0], allow_abbrev=False,
        usage="%(prog)s TRIAL.toml | --config_file FILE [--dataset_config FILE] [OPTION ...]",
    )  # fmt: skip
    parser.add_argument("--device", help="a GPU where there is one for kohya's options, else the CPU")
    parser.add_argument("--threads", type=int, default=1)
    args, rest = parser.parse_known_args()  # sd-scripts has too many options to declare; `run_kohya` checks them
    if rest and rest[0].startswith("--"):
        return run_kohya(rest, args.device, args.threads)
    if len(rest) != 1:
        parser.error("give either one configuration or kohya's options, such as --config_file")
    return run(Path(rest[0]), args.device or "cpu", args.threads)


if __name__ == "__main__":
    sys.exit(main())
