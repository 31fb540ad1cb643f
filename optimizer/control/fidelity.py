"""How much of the prompt suite an epoch deserves: a few prompts where it cannot win, all where the best is decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.control.objective import TOLERANCE, quality_of
from optimizer.control.stopping import Outlook
from optimizer.history import best_quality, best_run
from schema.campaign import EffortSettings
from schema.runs import EpochMetrics, RunHistory

_MARGIN = 2 * TOLERANCE
"""Quality points that a few prompts may be off, and that the crown may be decided by."""


@dataclass(frozen=True)
class Effort:
    """What is known when an epoch is about to be judged.

    Attributes:
        settings: the campaign's.
        run: the run with its epochs so far, their single pictures included.
        history: other runs on the same base model and data set.
        total: epochs planned for the run.
        prompts: in the suite.
        seeds: with which each prompt is drawn.
    """

    settings: EffortSettings
    run: RunHistory
    history: Sequence[RunHistory]
    total: int
    prompts: int
    seeds: int

    def few(self, epoch: int) -> tuple[int, ...]:
        """Places of the prompts that are enough for an epoch, spread over the suite; empty where all are due.

        All are due in a run's first epoch, which the few are compared with later; where no finished run tells
        what is still gained; where the epoch may come near the best run; and in a half of a paired test.

        Args:
            epoch: about to be drawn, from 1.
        """
        count = self.settings.few_prompts
        if self.run.run.is_half or count >= self.prompts or not self._whole():
            return ()
        if self._chance(epoch) >= self.settings.min_chance:
            return ()
        return tuple(int(i) for i in np.linspace(0, self.prompts - 1, count).round())

    def decides(self, quality: float | None) -> bool:
        """True where what a few prompts came to (0-100) calls for all of them: no epoch becomes the best by a few."""
        return quality is None or quality >= self._target() - _MARGIN

    def comparable(self, metrics: EpochMetrics, few: Sequence[int]) -> float | None:
        """Quality (0-100) of an epoch measured on a few prompts, as the whole suite would give it.

        Moved by how far these prompts were off the whole in the run's epochs that had all of it.

        Args:
            metrics: of the few, one seed each.
            few: their places in the suite.
        """
        quality = quality_of(metrics)
        if quality is None:
            return None
        off = [quality_of(m) or 0.0 for m in self._whole()]
        part = [np.mean([m.pictures[i * self.seeds].overall for i in few]) for m in self._whole()]
        return float(np.clip(quality + np.mean(np.subtract(off, part)), 0.0, 100.0))

    def _whole(self) -> list[EpochMetrics]:
        """Measurements of the run's epochs that had the whole suite, as it is now."""
        found = [e.quantitative_metrics for e in self.run.epochs if e.quality is not None]
        return [m for m in found if len(m.pictures) == self.prompts * self.seeds]

    def _target(self) -> float:
        champion = best_run(self.history)
        return (best_quality(champion) or 0.0) if champion is not None else 0.0

    def _chance(self, epoch: int) -> float:
        """Probability that the epoch comes within the margin of the best run."""
        outlook = Outlook(self.history, self.total)
        return outlook.chance(self.run.curve, self._target() - _MARGIN, epoch) if outlook.runs else 1.0
