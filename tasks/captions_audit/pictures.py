"""Check the pictures of a data set, and whether captions match them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from schema.findings import AuditFinding, Level
from schema.parameters import Parameters
from schema.prompts import expectation_of
from schema.runs import PictureMetrics
from tasks.captions_audit.captions import shares_code
from tasks.captions_audit.found import Entry, finding
from tasks.metrics.sets import near_duplicates
from tasks.metrics.suite import measure
from tasks.pictures import LEAST_SIDE

_PICTURES_PER_BATCH = 32  # of one size, stacked for `measure`, which splits large pictures further itself
_WRONG_COLOUR_SCORE = 40.0  # a lower colour score means another colour, not another shade
_SOFT_EDGE_SHARE = 0.3  # of edges that take more than one pixel. Chosen by hand
_SCALE_TOLERANCE = 0.02  # pixels: a measured grid is a whole number within this
_MIN_PICTURES = 15  # fewer pictures are memorised rather than learnt. Chosen by hand
_MIN_MISMATCH_SHARE = 0.05  # of the pictures: fewer wrong colours may be errors of the measurement


def picture_findings(entries: Sequence[Entry], parameters: Parameters) -> list[AuditFinding]:
    """Run all checks that look at the pictures.

    Args:
        entries: the data set.
        parameters: parameters of the training, by kohya's names.
    """
    opened = [entry for entry in entries if entry.picture is not None]
    readable = [entry for entry in opened if entry.picture is not None and min(entry.picture.size) >= LEAST_SIDE]
    figures = measured(readable)
    return [
        *_unreadable(entries),
        *_tiny(opened),
        *_few(readable),
        *_sizes(readable, parameters),
        *_duplicates(readable),
        *_grids(readable, figures),
        *_soft(readable, figures),
        *_mismatched(readable, figures),
    ]


def measured(entries: Sequence[Entry]) -> list[PictureMetrics]:
    """Measure readable pictures against their own captions; the results are in the order of `entries`."""
    found: dict[int, PictureMetrics] = {}
    by_size: dict[tuple[int, ...], list[int]] = {}
    pixels = [_pixels(entry) for entry in entries]
    for index, picture in enumerate(pixels):
        by_size.setdefault(tuple(picture.shape), []).append(index)
    size = _PICTURES_PER_BATCH
    for some in (same[i : i + size] for same in by_size.values() for i in range(0, len(same), size)):
        promised = [expectation_of(entries[i].caption or "") for i in some]
        found.update(zip(some, measure(torch.stack([pixels[i] for i in some]), promised), strict=True))
    return [found[i] for i in range(len(entries))]


def _pixels(entry: Entry) -> Tensor:
    return torch.from_numpy(np.array(entry.picture)).permute(2, 0, 1)


def _unreadable(entries: Sequence[Entry]) -> list[AuditFinding]:
    bad = [e for e in entries if e.picture is None]
    return finding("unreadable", Level.ERROR, bad, entries, "cannot be read", "replace or remove them")


def _tiny(entries: Sequence[Entry]) -> list[AuditFinding]:
    bad = [e for e in entries if e.picture is not None and min(e.picture.size) < LEAST_SIDE]
    return finding(
        "tiny_picture", Level.WARNING, bad, entries, "have too few pixels, or are too narrow, to be measured",
        "replace or remove them",
    )  # fmt: skip


def _few(entries: Sequence[Entry]) -> list[AuditFinding]:
    if len({e.digest for e in entries}) >= _MIN_PICTURES:
        return []
    return finding(
        "few_pictures", Level.WARNING, entries, entries,
        f"are all there are, and fewer than {_MIN_PICTURES} are learnt by heart",
        "add different pictures; repeats are no substitute",
    )  # fmt: skip


def _sizes(entries: Sequence[Entry], parameters: Parameters) -> list[AuditFinding]:
    found: list[AuditFinding] = []
    sizes = [e.size for e in entries]
    usual = Counter(sizes).most_common(1)[0][0] if sizes else (0, 0)
    other = [e for e, size in zip(entries, sizes, strict=True) if size != usual]
    if not parameters.get("enable_bucket"):
        found += finding(
            "mixed_sizes", Level.WARNING, other, entries, f"are not of the usual {usual[0]} x {usual[1]} pixels",
            "bring all to one size, or set enable_bucket = true",
        )  # fmt: skip
    wanted = parameters.get("resolution")
    if isinstance(wanted, int):
        small = [e for e, size in zip(entries, sizes, strict=True) if min(size) < wanted]
        found += finding(
            "too_small", Level.WARNING, small, entries, f"are smaller than resolution = {wanted} and are enlarged",
            "enlarge them by a whole number with the nearest pixel, or lower resolution",
        )  # fmt: skip
    return found


def _duplicates(entries: Sequence[Entry]) -> list[AuditFinding]:
    contents = [e.digest for e in entries]
    counts = Counter(contents)
    equal = [e for e, content in zip(entries, contents, strict=True) if counts[content] > 1]
    # One picture of each content: exact copies would make the usual distance 0.
    first = [i for i, content in enumerate(contents) if content not in contents[:i]]
    near = near_duplicates([_pixels(entries[i]) for i in first])
    alike = [entries[i] for i, is_near in zip(first, near, strict=True) if is_near]
    return [
        *finding("duplicates", Level.WARNING, equal, entries, "are equal to another one, pixel for pixel",
                 "remove the copies, or set num_repeats on purpose"),
        *finding("near_twins", Level.NOTE, alike, entries, "are nearly equal to another one",
                 "keep one of each pair, unless the small difference is what shall be learnt"),
    ]  # fmt: skip


def _grids(entries: Sequence[Entry], figures: Sequence[PictureMetrics]) -> list[AuditFinding]:
    scales = [(e, m.grid_scale * e.step) for e, m in zip(entries, figures, strict=True) if m.grid_scale is not None]
    bad = [e for e, scale in scales if abs(scale - round(scale)) > _SCALE_TOLERANCE]
    if not bad:
        return []
    scale = next(s for e, s in scales if e is bad[0])
    cells = max(1, round(bad[0].size[0] / scale))
    return finding(
        "fractional_upscaling", Level.WARNING, bad, entries,
        f"have art pixels of {scale:.2f} picture pixels, so cells are of unequal width",
        f"enlarge the {cells} art pixels to {cells * round(scale)} pixels and pad, or train at a multiple of {cells}",
    )  # fmt: skip


def _soft(entries: Sequence[Entry], figures: Sequence[PictureMetrics]) -> list[AuditFinding]:
    bad = [e for e, m in zip(entries, figures, strict=True) if (m.antialiasing or 0.0) > _SOFT_EDGE_SHARE]
    return finding(
        "soft_edges", Level.WARNING, bad, entries, "have soft edges: they were blurred, or enlarged by interpolation",
        "enlarge the originals with the nearest pixel",
    )  # fmt: skip


def _mismatched(entries: Sequence[Entry], figures: Sequence[PictureMetrics]) -> list[AuditFinding]:
    wrong = [e for e, m in zip(entries, figures, strict=True) if min(_scores(m), default=100.0) < _WRONG_COLOUR_SCORE]
    bad = [e for e in wrong if not shares_code(e)]  # shared codes explain wrong colours and have a finding of their own
    if len(bad) < _MIN_MISMATCH_SHARE * len(entries):
        return []
    return finding(
        "caption_mismatch", Level.WARNING, bad, entries, "show other colours of background or hair than their captions",
        "check that each caption belongs to its picture, and correct the colours",
    )  # fmt: skip


def _scores(metrics: PictureMetrics) -> list[float]:
    return [v for v in (metrics.background_accuracy, metrics.hair_accuracy) if v is not None]
