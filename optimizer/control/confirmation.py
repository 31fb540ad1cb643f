"""Which setting wins: the best ones are run again first, since a single run may have been luck."""

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
"""Quality points: two runs of one setting differ by as much, so nearer ones may deserve the crown as well."""


def repeats_due(history: Sequence[RunHistory], space: Space, count: int) -> list[tuple[RunHistory, Parameters]]:
    """The settings to run once more before one is crowned, best first, each with a training seed of its own.

    Those within 2 points of the best, the best itself always. One that was repeated already is not due.

    Args:
        history: the campaign's runs.
        space: what is searched.
        count: how many settings at most.

    Returns:
        The run to repeat and the full parameters for it.
    """
    groups = sorted(_groups(history, space), key=lambda runs: -_standing(runs))
    if not groups:
        return []
    top = _standing(groups[0])
    close = [runs for runs in groups[:count] if _standing(runs) >= top - _CLOSE]
    return [(runs[0], _reseeded(runs)) for runs in close if len(runs) == 1]


def crowned(history: Sequence[RunHistory], space: Space) -> RunHistory | None:
    """The best run of the setting that did best on the mean of its runs; None where nothing was measured."""
    groups = _groups(history, space)
    repeated = [runs for runs in groups if len(runs) > 1]
    if not repeated:
        return best_run(history)
    return best_run(max(repeated, key=_standing))


def _groups(history: Sequence[RunHistory], space: Space) -> list[list[RunHistory]]:
    """Fully trained runs by setting, whatever their seed, in order of their start."""
    found: dict[str, list[RunHistory]] = {}
    for run in sorted(informative(history), key=lambda h: h.run.number):
        if run.run.outcome is Outcome.OK and best_quality(run) is not None:
            found.setdefault(space.key({**run.run.all_parameters, _SEED: None}), []).append(run)
    return list(found.values())


def _standing(runs: Iterable[RunHistory]) -> float:
    return float(np.mean([best_quality(run) or 0.0 for run in runs]))


def _reseeded(runs: Sequence[RunHistory]) -> Parameters:
    used = [seed for run in runs if isinstance(seed := run.run.all_parameters.get(_SEED), int)]
    return {**runs[0].run.all_parameters, _SEED: max(used, default=0) + 1}
