"""Compare two checkpoints on the same prompts and seeds, by measures or by a person's blind votes."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binom

from schema.runs import PictureMetrics, PictureVote

Checkpoint = tuple[uuid.UUID, int]
"""Identity of a run, and the number of an epoch."""

_LEVEL = 0.05
"""Largest p-value that counts as a difference; intervals hold 95 %. The usual level."""
_OTHER = {"first": "second", "second": "first", "tie": "tie"}
_MEASURES = ("overall", "colour", "style", "background_accuracy", "hair_accuracy", "crown_accuracy", "pixel_art_purity")


@dataclass(frozen=True)
class PairedMeasure:
    """Hold how much better the second of two checkpoints is by one measure, compared picture by picture.

    Attributes:
        measure: Name of the measure.
        n: Pictures for which both checkpoints have the measure.
        effect: Median of the pairwise means of the differences (Hodges and Lehmann 1963), in points.
        low, high: Exact 95 % interval of the effect by signed ranks; infinite below six pictures.
        p_value: Exact two-sided Wilcoxon signed-rank test. Ties get mean ranks, rounded to the conservative side.
        wins, losses: Pictures on which the second checkpoint is better, and worse.
    """

    measure: str
    n: int
    effect: float
    low: float
    high: float
    p_value: float
    wins: int
    losses: int

    @property
    def better(self) -> str | None:
        """Return the significantly better checkpoint: ``first``, ``second`` or None."""
        if self.p_value > _LEVEL:
            return None
        return "second" if self.effect > 0 else "first"


def compare_measures(first: Sequence[PictureMetrics], second: Sequence[PictureMetrics]) -> list[PairedMeasure]:
    """Compare each main measure over the pictures. `overall` comes first and decides; the others explain it.

    Args:
        first: Measurements of the first checkpoint.
        second: Measurements of the second one, of the same prompts and seeds in the same order.
    """
    found = []
    for name in _MEASURES:
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(first, second, strict=True)]
        known = np.array([b - a for a, b in pairs if a is not None and b is not None], dtype=float)
        if len(known):
            found.append(_signed_ranks(name, known))
    return found


def _signed_ranks(name: str, differences: NDArray[np.float64]) -> PairedMeasure:
    n = len(differences)
    upper = np.triu_indices(n)
    walsh = np.sort((differences[upper[0]] + differences[upper[1]]) / 2)
    chances = _rank_sums(n)
    # The number of positive Walsh averages is the signed-rank sum. Zeros count for the side with the weaker claim.
    positive, negative = int((walsh > 0).sum()), int((walsh < 0).sum())
    p = min(1.0, 2 * float(chances[: len(walsh) - max(positive, negative) + 1].sum()))
    below = int(
        np.searchsorted(np.cumsum(chances), _LEVEL / 2, side="right")
    )  # smallest sums with a probability of at most 2.5 % together
    low, high = (walsh[below - 1], walsh[-below]) if below else (-math.inf, math.inf)
    return PairedMeasure(
        name, n, float(np.median(walsh)), float(low), float(high), p, int((differences > 0).sum()),
        int((differences < 0).sum()),
    )  # fmt: skip


def _rank_sums(n: int) -> NDArray[np.float64]:
    """Return the probability of each signed-rank sum of the ranks 1..n, shape (n (n + 1) / 2 + 1,).

    Each rank is in the sum with a probability of one half, so the distribution is built rank by rank.
    """
    chances = np.ones(1)
    for rank in range(1, n + 1):
        chances = (np.pad(chances, (0, rank)) + np.pad(chances, (rank, 0))) / 2
    return chances


@dataclass(frozen=True)
class VoteCount:
    """Hold the count of a person's votes between two checkpoints.

    Attributes:
        first, second, ties: Number of pictures with that vote.
        share: Share of the second among the votes that are no ties; nan without any.
        low, high: Exact 95 % interval of the share (Clopper and Pearson 1934).
        p_value: Two-sided binomial test of no preference.
    """

    first: int
    second: int
    ties: int
    share: float
    low: float
    high: float
    p_value: float

    @property
    def better(self) -> str | None:
        """Return the significantly preferred checkpoint: ``first``, ``second`` or None."""
        if self.p_value > _LEVEL:
            return None
        return "second" if self.second > self.first else "first"


def votes_between(votes: Sequence[PictureVote], first: Checkpoint, second: Checkpoint) -> list[PictureVote]:
    """Return the newest vote on each picture between two checkpoints, with `first` as the first one."""
    known = {}
    for vote in sorted(votes, key=lambda v: v.created_at):
        sides = (vote.run_uid, vote.epoch_number), (vote.other_run_uid, vote.other_epoch_number)
        if sides == (first, second):
            known[vote.picture] = vote
        elif sides == (second, first):
            known[vote.picture] = vote.changed(choice=_OTHER[vote.choice])
    return list(known.values())


def count_votes(votes: Sequence[PictureVote]) -> VoteCount:
    """Count the votes between two checkpoints and test them for a preference.

    For two checkpoints, Bradley and Terry's model is the binomial. Ties are counted for neither side.
    """
    first, second = (sum(v.choice == side for v in votes) for side in ("first", "second"))
    n = first + second
    # Without a vote for one side, the bound is exact and beta.ppf undefined.
    low = float(beta.ppf(_LEVEL / 2, second, first + 1)) if second else 0.0
    high = float(beta.ppf(1 - _LEVEL / 2, second + 1, first)) if first else 1.0
    p = min(1.0, 2 * float(binom.cdf(min(first, second), n, 0.5)))
    return VoteCount(first, second, len(votes) - n, second / n if n else math.nan, low, high, p)
