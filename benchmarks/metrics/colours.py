"""How well colours and regions are found on busts whose every colour is known.

Background, hair, crown and two-toned hair, style by style, on pictures of 512 pixels; regions are found blind. A
crown is asked for twice: where one is, and where none is.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.metrics.busts import SOURCES, Bust, Source, busts, two_toned
from benchmarks.metrics.pictures import store
from benchmarks.scores import auc, mean
from demo.attributes import CROWNS, distance
from schema.prompts import Expectation
from schema.runs import PictureMetrics
from tasks.metrics.colour import difference, hex_bytes
from tasks.metrics.suite import measure

RIGHT = 10.0
"""CIEDE2000 within which a found colour counts as right: still called by the same name."""

_BATCH = 16
_WORST = 4


@dataclass(frozen=True)
class Seen:
    """A bust with what was measured on it, and on the same bust with a second tone in its hair."""

    name: str
    bust: Bust
    metrics: PictureMetrics
    toned: PictureMetrics

    @property
    def ground_error(self) -> float:
        """CIEDE2000 of the background found to the real one."""
        return _error(self.metrics.background_colour, self.bust.background)

    @property
    def hair_error(self) -> float:
        """CIEDE2000 of the hair's colour to the nearest of its ramp; infinite where no hair was found."""
        return _error(self.metrics.hair_colour, self.bust.hair)


def look_at_busts(per_source: int, seed: int, quality: int | None = None) -> dict[str, list[Seen]]:
    """Busts of each style, measured as PNG or as JPEG of a quality."""
    rng = random.Random(seed)
    return {source.style: list(_look(source, per_source, seed, quality, rng)) for source in SOURCES}


def table(seen: dict[str, list[Seen]]) -> dict[str, dict[str, float]]:
    """Figures style by style, and their mean."""
    rows = {style: _row(some) for style, some in seen.items()}
    names = next(iter(rows.values()))
    return {**rows, "mean": {name: float(np.nanmean([row[name] for row in rows.values()])) for name in names}}


def lines(title: str, rows: dict[str, dict[str, float]], seen: dict[str, list[Seen]]) -> Iterable[str]:
    """As printed, with the busts that each measure does worst on."""
    yield f"\n{title}"
    yield f"  {'':12s}" + "".join(f"{key:>16s}" for key in rows["mean"])
    for name, row in rows.items():
        yield f"  {name:12s}" + "".join(f"{value:16.3f}" for value in row.values())
    everyone = [one for some in seen.values() for one in some]
    for what, worst in _worst(everyone).items():
        yield f"    worst {what}: {', '.join(worst) or 'none wrong'}"


def _look(source: Source, count: int, seed: int, quality: int | None, rng: random.Random) -> Iterable[Seen]:
    plain = list(busts(count, seed, (source,)))
    toned = [two_toned(bust, rng) for bust in plain]
    asked = [_with_any_crown(bust, rng) for bust in plain]
    found = _measured(plain, asked, quality)
    found_toned = _measured(toned, [b.expectation for b in toned], quality)
    for number, parts in enumerate(zip(plain, found, found_toned, strict=True)):
        yield Seen(f"{source.style} {number}", *parts)


def _row(some: Sequence[Seen]) -> dict[str, float]:
    there = [bool(s.metrics.crown_present) for s in some if s.bust.crown]
    absent = [bool(s.metrics.crown_present) for s in some if not s.bust.crown]
    flagged, mistaken = ([bool(m.hair_two_tone) for m in ms] for ms in ([s.toned for s in some], _plain(some)))
    found = [s for s in some if s.metrics.hair_colour]
    return {
        "background": mean([s.ground_error <= RIGHT for s in some]),
        "background dE": mean([s.ground_error for s in some]),
        "hair": mean([s.hair_error <= RIGHT for s in some]),
        "hair if found": mean([s.hair_error <= RIGHT for s in found]),
        "hair dE": mean([s.hair_error for s in found]),
        "crown": (mean(there) + 1 - mean(absent)) / 2,
        "crown wrong": mean(absent),
        "two-tone": (mean(flagged) + 1 - mean(mistaken)) / 2,
        "two-tone missed": 1 - mean(flagged),
        "two-tone wrong": mean(mistaken),
        "two-tone AUC": auc([_tone(s.toned) for s in some], [_tone(m) for m in _plain(some)]),
    }


def _worst(some: Sequence[Seen]) -> dict[str, list[str]]:
    """Names of busts that each measure is wrong on, the worst ones first."""
    grounds = sorted((s for s in some if s.ground_error > RIGHT), key=lambda s: -s.ground_error)
    hairs = sorted((s for s in some if s.hair_error > RIGHT), key=lambda s: -s.hair_error)
    crowns = [s for s in some if bool(s.metrics.crown_present) != bool(s.bust.crown)]
    missed = sorted((s for s in some if not s.toned.hair_two_tone), key=lambda s: _tone(s.toned))
    mistaken = sorted((s for s in some if s.metrics.hair_two_tone), key=lambda s: -_tone(s.metrics))
    return {
        "background": [f"{s.name} dE {s.ground_error:.0f}" for s in grounds[:_WORST]],
        "hair": [f"{s.name} dE {s.hair_error:.0f}" for s in hairs[:_WORST]],
        "crown": [f"{s.name} {'missed' if s.bust.crown else 'where none is'}" for s in crowns[:_WORST]],
        "two-tone missed": [f"{s.name} {_tone(s.toned):.2f}" for s in missed[:_WORST]],
        "two-tone wrong": [f"{s.name} {_tone(s.metrics):.2f}" for s in mistaken[:_WORST]],
    }


def _plain(some: Sequence[Seen]) -> list[PictureMetrics]:
    return [s.metrics for s in some]


def _tone(metrics: PictureMetrics) -> float:
    return metrics.hair_two_tone_score or 0.0


def _error(code: str | None, expected: Sequence[str]) -> float:
    if code is None:
        return float("inf")
    return float(difference(hex_bytes([code]) / 255, hex_bytes(list(expected)) / 255).min())


def _with_any_crown(bust: Bust, rng: random.Random) -> Expectation:
    """The bust's promise; a crown of some colour that stands out is promised also where there is none."""
    if bust.crown:
        return bust.expectation
    near = (bust.background[0], *bust.hair)
    colours = [c for c in CROWNS.values() if all(distance(c, other) > 110 for other in near)]
    return bust.expectation.changed(crown=(rng.choice(colours or list(CROWNS.values())),))


def _measured(some: list[Bust], promises: list[Expectation], quality: int | None) -> list[PictureMetrics]:
    arrays = [store(bust.enlarged(), quality) for bust in some]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
    starts = range(0, len(some), _BATCH)
    return [m for i in starts for m in measure(images[i : i + _BATCH], promises[i : i + _BATCH])]
