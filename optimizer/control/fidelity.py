"""Decide how much of the prompt suite to draw: a few prompts for an epoch that cannot win, else all of them."""

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
"""Quality points. A few prompts may be off by this much, and a campaign may be decided by it."""


@dataclass(frozen=True)
class Effort:
    """Choose the prompts to draw after an epoch.

    Attributes:
        settings: Settings of the campaign.
        run: The run with its epochs so far, including the measurements of single pictures.
        history: Other runs on the same base model and data set.
        total: Epochs planned for the run.
        prompts: Number of prompts in the suite.
        seeds: Number of seeds for each prompt.
    """

    settings: EffortSettings
    run: RunHistory
    history: Sequence[RunHistory]
    total: int
    prompts: int
    seeds: int

    def few(self, epoch: int) -> tuple[int, ...]:
        """Return the indices of a few prompts to draw, spread over the suite; empty to draw all prompts.

        All prompts are drawn in the run's first epoch (later estimates are calibrated on it), while no finished
        run shows how much can still be gained, when the epoch may come near the best run, and in paired tests.

        Args:
            epoch: Epoch to draw, from 1.
        """
        count = self.settings.few_prompts
        if self.run.run.is_half or count >= self.prompts or not self._fully_drawn():
            return ()
        if self._chance(epoch) >= self.settings.min_chance:
            return ()
        return tuple(int(i) for i in np.linspace(0, self.prompts - 1, count).round())

    def decides(self, quality: float | None) -> bool:
        """Return whether to draw all prompts after all, given the quality (0-100) on a few of them.

        An epoch never becomes the best on the strength of a few prompts.
        """
        return quality is None or quality >= self._target() - _MARGIN

    def comparable(self, metrics: EpochMetrics, few: Sequence[int]) -> float | None:
        """Estimate the quality (0-100) on the whole suite from a few prompts; None if nothing was measured.

        The estimate is corrected by the mean error of the same prompts in the run's fully drawn epochs.

        Args:
            metrics: Measurements of the few prompts, one seed each.
            few: Indices of these prompts in the suite.
        """
        quality = quality_of(metrics)
        if quality is None:
            return None
        whole = [quality_of(m) or 0.0 for m in self._fully_drawn()]
        # Pictures are ordered by prompt, then seed: this is the first seed of each prompt.
        part = [np.mean([m.pictures[i * self.seeds].overall for i in few]) for m in self._fully_drawn()]
        return float(np.clip(quality + np.mean(np.subtract(whole, part)), 0.0, 100.0))

    def _fully_drawn(self) -> list[EpochMetrics]:
        """Return the measurements of the epochs that drew the whole suite, at its current size."""
        found = [e.quantitative_metrics for e in self.run.epochs if e.quality is not None]
        return [m for m in found if len(m.pictures) == self.prompts * self.seeds]

    def _target(self) -> float:
        champion = best_run(self.history)
        return (best_quality(champion) or 0.0) if champion is not None else 0.0

    def _chance(self, epoch: int) -> float:
        """Return the probability that the epoch comes within the margin of the best run."""
        outlook = Outlook(self.history, self.total)
        # Without finished runs nothing is known about late gains, so all prompts are drawn.
        return outlook.chance(self.run.curve, self._target() - _MARGIN, epoch) if outlook.runs else 1.0
