"""How well colours and regions are found on busts whose every colour is known.

    python -m benchmarks.metrics_colour [--per-source 60] [--quality JPEG] [--json]

Background, hair, crown and two-toned hair, style by style, on pictures of 512 pixels; regions are found blind. A
crown is asked for twice: where one is, and where none is.
"""

from __future__ import annotations

import argparse
import io
import json
import random
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from benchmarks.busts import SOURCES, Bust, busts, two_toned
from demo.attributes import CROWNS, distance
from schema.prompts import Expectation
from schema.runs import PictureMetrics
from tasks.metrics.colour import difference, hex_bytes
from tasks.metrics.suite import measure

RIGHT = 10.0
"""CIEDE2000 within which a found colour counts as right: still called by the same name."""


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--per-source", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quality", type=int, help="JPEG quality; PNG if left out")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    rng, table = random.Random(args.seed), {}
    for source in SOURCES:
        plain = list(busts(args.per_source, args.seed, (source,)))
        toned = [two_toned(bust, rng) for bust in plain]
        asked = [_with_any_crown(bust, rng) for bust in plain]
        found = _measured(plain, asked, args.quality)
        table[source.style] = _row(plain, found, _measured(toned, [b.expectation for b in toned], args.quality))
    table["mean"] = {key: float(np.nanmean([row[key] for row in table.values()])) for key in table["pixel-art"]}
    print(f"{'':12s}" + "".join(f"{key:>12s}" for key in table["mean"]))
    for name, row in table.items():
        print(f"{name:12s}" + "".join(f"{value:12.3f}" for value in row.values()))
    if args.json:
        print(json.dumps(table))


def auc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties half."""
    higher = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return float((higher > 0).mean() + (higher == 0).mean() / 2)


def _row(plain: list[Bust], found: list[PictureMetrics], toned: list[PictureMetrics]) -> dict[str, float]:
    grounds = [_is_right(m.background_colour, b.background) for m, b in zip(found, plain, strict=True)]
    hairs = [_is_right(m.hair_colour, b.hair) for m, b in zip(found, plain, strict=True) if m.hair_colour]
    there = [bool(m.crown_present) for m, b in zip(found, plain, strict=True) if b.crown]
    absent = [bool(m.crown_present) for m, b in zip(found, plain, strict=True) if not b.crown]
    scores, plain_scores = ([m.hair_two_tone_score or 0.0 for m in some] for some in (toned, found))
    return {
        "background": float(np.mean(grounds)),
        "hair found": float(np.mean([m.hair_colour is not None for m in found])),
        "hair right": float(np.mean(hairs)),
        "crown": (float(np.mean(there)) + 1 - float(np.mean(absent))) / 2,
        "crown FPR": float(np.mean(absent)),
        "two-tone AUC": auc(scores, plain_scores),
        "TPR": float(np.mean([bool(m.hair_two_tone) for m in toned])),
        "FPR": float(np.mean([bool(m.hair_two_tone) for m in found])),
        "hair shown": float(np.mean([m.hair_colour is not None for m in toned])),
    }


def _with_any_crown(bust: Bust, rng: random.Random) -> Expectation:
    """The bust's promise; a crown of some colour that stands out is promised also where there is none."""
    if bust.crown:
        return bust.expectation
    near = (bust.background[0], *bust.hair)
    colours = [c for c in CROWNS.values() if all(distance(c, other) > 110 for other in near)]
    return bust.expectation.changed(crown=(rng.choice(colours or list(CROWNS.values())),))


def _is_right(code: str | None, expected: Sequence[str]) -> bool:
    return code is not None and bool(
        (difference(hex_bytes([code]) / 255, hex_bytes(list(expected)) / 255) <= RIGHT).any().item()
    )


def _measured(some: list[Bust], promises: list[Expectation], quality: int | None) -> list[PictureMetrics]:
    arrays = [_stored(bust.enlarged(), quality) for bust in some]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    return [m for i in range(0, len(some), 16) for m in measure(images[i : i + 16], promises[i : i + 16])]


def _stored(pixels: np.ndarray, quality: int | None) -> np.ndarray:
    if quality is None:
        return pixels
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


if __name__ == "__main__":
    main()
