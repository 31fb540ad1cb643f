"""Things worn are found where they belong, and only there."""

from __future__ import annotations

import numpy as np
import torch

from demo.portraits import portraits
from schema.prompts import Expectation
from schema.runs import PictureMetrics
from tasks.metrics.suite import measure

BARE = [p for p in portraits(40, seed=5) if p.attributes.crown is None and p.attributes.skin.word != "dark"][:12]
VIOLET = (200, 40, 220)


def painted(rows: slice, *columns: slice) -> list[PictureMetrics]:
    """The bare portraits with a violet thing painted at these cells, asked for nothing, then for each thing."""
    kinds = ("hat", "sunglasses", "earrings", "necklace")
    pictures, promises = [], []
    for portrait in BARE:
        cells = portrait.pixels.copy()
        for column in columns:
            cells[rows, column] = VIOLET
        pictures += [np.kron(cells, np.ones((8, 8, 1), np.uint8))] * len(kinds)
        promises += [Expectation(**{kind: ("#c828dc",)}) for kind in kinds]
    return measure(torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2), promises)


def share(found: list[PictureMetrics], kind: str) -> float:
    scores = [m.accessories[kind] for m in found if kind in m.accessories]
    return sum(score > 50 for score in scores) / len(scores)


def test_what_is_not_there_is_missed() -> None:
    found = painted(slice(0, 0), slice(0, 0))
    assert all(share(found, kind) == 0 for kind in ("hat", "sunglasses", "earrings", "necklace"))


def test_a_hat_is_on_the_head_alone() -> None:
    found = painted(slice(1, 5), slice(3, 13))
    assert share(found, "hat") >= 0.9
    assert share(found, "necklace") == 0


def test_sunglasses_are_before_the_eyes_alone() -> None:
    found = painted(slice(7, 9), slice(4, 7), slice(8, 11))
    assert share(found, "sunglasses") >= 0.9
    assert share(found, "hat") == 0


def test_a_necklace_is_below_the_face_alone() -> None:
    found = painted(slice(14, 15), slice(5, 11))
    assert share(found, "necklace") >= 0.9
    assert share(found, "sunglasses") == 0


def test_the_colour_counts_half() -> None:
    found = painted(slice(1, 5), slice(3, 13))
    assert all(m.accessories["hat"] > 90 for m in found if m.accessories.get("hat", 0) > 50)
