"""Hold the measures of pictures against labelled pictures and against the clock.

    python -m benchmarks.metrics [--quick] [--data DIR] [--sheets DIR] [--seed 0] [--bandwidth 4800] [--json]

Pictures are built here: busts whose every colour is known, sprites in every rendering, photographs and vector art
that packages ship, planted palettes, dithers, strays and noise. DIR adds pictures by others: a folder with a
manifest.csv (columns file, source, class: pixel or nonpixel), or one that holds such a folder by the name of pictures.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.metrics import colours, speed, style
from schema.errors import ConfigError

_PER_SOURCE = (60, 15)
"""Busts of each style, in full and quick."""


def main() -> None:
    """Command line of the benchmark."""
    args = _arguments()
    torch.set_num_threads(speed.THREADS)
    started = time.perf_counter()
    told = _colours(args.quick, args.seed) | _style(args) | _speed(args)
    print(f"\n{time.perf_counter() - started:.0f} s")
    if args.json:
        print(json.dumps(told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a part of the pictures, fewer repeats")
    parser.add_argument("--data", type=Path, metavar="DIR", help="more pictures, with a manifest.csv")
    parser.add_argument("--sheets", type=Path, metavar="DIR", help="write the best and worst of each measure here")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bandwidth", type=float, metavar="GB/S", help="of a GPU's memory, to tell the share of it")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    try:
        args.data = folder_of(args.data)
    except ConfigError as error:
        parser.error(str(error))
    return args


def folder_of(data: Path | None) -> Path | None:
    """The folder with the manifest: the given one, or the one named pictures in it.

    Raises:
        ConfigError: there is no manifest.
    """
    if data is None:
        return None
    for folder in (data, data / "pictures"):
        if (folder / "manifest.csv").is_file():
            return folder
    raise ConfigError(f"{data} has no manifest.csv, nor has {data / 'pictures'}: give the folder that holds it")


def _colours(quick: bool, seed: int) -> dict[str, Any]:
    told: dict[str, Any] = {}
    details = {}
    for title, quality in (("PNG", None), ("JPEG 90", 90)):
        seen = colours.look_at_busts(_PER_SOURCE[quick], seed, quality)
        rows = colours.table(seen)
        print("\n".join(colours.lines(f"colours on labelled busts, {title}", rows, seen)), flush=True)
        details[title] = rows
    mean = details["PNG"]["mean"]
    for key, column in (("background", "background"), ("hair", "hair"), ("two_tone", "two-tone"), ("crown", "crown")):
        told[f"{key}_accuracy"] = mean[column]
    return {**told, "two_tone_auc": mean["two-tone AUC"], "colours": details}


def _style(args: argparse.Namespace) -> dict[str, Any]:
    sections = style.sections(args.data, args.seed, args.quick, args.sheets)
    for section in sections.values():
        print("\n".join(section.lines()), flush=True)
    purity, photo = sections["purity"].figures, sections["photorealism"].figures
    return {
        "auc_purity": purity["AUC"],
        "purity_accuracy": purity["accuracy at 60"],
        "grid_accuracy": sections["grid"].figures["scale right"],
        "photoreal_wrong": photo["flag on pixel art (wrong)"],
        "style": {title: section.figures for title, section in sections.items()},
    }


def _speed(args: argparse.Namespace) -> dict[str, Any]:
    print("\nspeed at 512 x 512", flush=True)
    return speed.report(args.bandwidth, args.quick)


if __name__ == "__main__":
    main()
