"""Confirm the best setting: repeat the best ones with other seeds, since a single good run may be luck."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from optimizer.control.objective import TOLERANCE
from optimizer.history import best_quality, best_run, informative
from optimizer.search.space import Space
from schema.parameters import Parameters
from schema.runs import Outcome, RunHistory

_SEED = "seed"
_CLOSE = 2 * TOLERANCE
"""Quality points. Two runs of one setting can differ by this much, so any setting this close may be the best."""


def repeats_due(history: Sequence[RunHistory], space: Space, count: int) -> list[tuple[RunHistory, Parameters]]:
    """Return the settings to repeat before the best one is confirmed, best first.

    These are the best setting and those within 2 points of it, without settings that have been repeated already.

    Args:
        history: Runs of the campaign.
        space: Search space of the campaign.
        count: Most settings to return.

    Returns:
        For each setting, the run to repeat and the full parameters with a new training seed.
    """
    groups = sorted(_groups(history, space), key=lambda runs: -_mean_quality(runs))
    if not groups:
        return []
    top = _mean_quality(groups[0])
    close = [runs for runs in groups[:count] if _mean_quality(runs) >= top - _CLOSE]
    return [(runs[0], _reseeded(runs)) for runs in close if len(runs) == 1]


def crowned(history: Sequence[RunHistory], space: Space) -> RunHistory | None:
    """Return the best run of the setting with the highest mean quality; None if nothing was measured.

    Once a setting was repeated, only repeated settings are candidates.
    """
    groups = _groups(history, space)
    repeated = [runs for runs in groups if len(runs) > 1]
    if not repeated:
        return best_run(history)
    return best_run(max(repeated, key=_mean_quality))


def _groups(history: Sequence[RunHistory], space: Space) -> list[list[RunHistory]]:
    """Group fully trained runs by setting, ignoring the seed, in the order of their trial numbers."""
    found: dict[str, list[RunHistory]] = {}
    for run in sorted(informative(history), key=lambda h: h.run.number):
        # A run that was stopped early would lower the mean of its setting.
        if run.run.outcome is Outcome.OK and best_quality(run) is not None:
            # The key without the seed puts the repeats of a setting into one group.
            found.setdefault(space.key({**run.run.all_parameters, _SEED: None}), []).append(run)
    return list(found.values())


def _mean_quality(runs: Iterable[RunHistory]) -> float:
    return float(np.mean([best_quality(run) or 0.0 for run in runs]))


def _reseeded(runs: Sequence[RunHistory]) -> Parameters:
    used = [seed for run in runs if isinstance(seed := run.run.all_parameters.get(_SEED), int)]
    return {**runs[0].run.all_parameters, _SEED: max(used, default=0) + 1}
