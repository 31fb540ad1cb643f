"""Manage hypotheses: proposed -> queued -> running -> confirmed | refuted | inconclusive."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import datetime

import numpy as np

from optimizer.experiments.proposals import best_own, identity_of
from optimizer.history import best_quality, failed, informative
from optimizer.search.rules import text_of
from optimizer.search.space import Space
from schema.errors import ConfigError, NotFoundError
from schema.findings import Hypothesis, Prediction
from schema.parameters import Parameters
from schema.runs import RunHistory
from schema.states import HypothesisState

_NOISE = 1.0  # assumed standard deviation of seed noise in quality points, if no setting was repeated
_CLEAR = 2.0  # standard deviations of a difference that noise hardly ever makes; chosen by hand
WAITING = (HypothesisState.QUEUED, HypothesisState.RUNNING)


def queue_of(hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Return the queued hypotheses in the order of their runs."""
    return sorted((h for h in hypotheses if h.state == HypothesisState.QUEUED), key=lambda h: (h.priority, str(h.uid)))


def with_queue(hypotheses: Sequence[Hypothesis], queue: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Return all hypotheses with `queue` as the new queue. Those no longer in it become proposals again."""
    waiting = {h.uid for h in queue}
    others = [
        h.changed(state=HypothesisState.PROPOSED) if h.state == HypothesisState.QUEUED else h
        for h in hypotheses
        if h.uid not in waiting
    ]
    return [*(h.changed(state=HypothesisState.QUEUED, priority=i + 1) for i, h in enumerate(queue)), *others]


def reordered(queue: Sequence[Hypothesis], place: int, to: int) -> list[Hypothesis]:
    """Return the queue with one experiment moved. Places count from 1.

    Raises:
        NotFoundError: The queue has no such place.
    """
    for wanted in (place, to):
        if not 1 <= wanted <= len(queue):
            raise NotFoundError(f"no experiment {wanted} in the queue: it holds {len(queue)}")
    rest = [h for i, h in enumerate(queue) if i != place - 1]
    rest.insert(to - 1, queue[place - 1])
    return rest


def by_hand(
    change: Parameters, history: Sequence[RunHistory], space: Space, expected: Prediction, campaign: str, now: datetime
) -> Hypothesis:
    """Return an experiment that a user asks for, as a change to the best run.

    Without a best run, the change is to the setting that a search starts with (`Space.likely`).

    Raises:
        ConfigError: A parameter is not searched, is out of range, or breaks a hard rule.
    """
    full, base = setting_of(change, history, space)
    best = best_own(history, space)
    quality = best_quality(best) if best is not None else None
    steps = " and ".join(f"{n} = {text_of(v)}" for n, v in change.items())
    return Hypothesis(
        uid=identity_of(campaign, space.searched(full)),
        campaign=campaign, priority=1, change=change, parameters=full,
        rationale=f"asked for by hand: {steps} against {base}",
        expected=expected, gain=expected.quality - (quality or 0.0), created_at=now,
    )  # fmt: skip


def setting_of(change: Parameters, history: Sequence[RunHistory], space: Space) -> tuple[Parameters, str]:
    """Return the full setting of a change, and the name of what it changes.

    Raises:
        ConfigError: As `by_hand`.
    """
    best = best_own(history, space)
    against = space.searched(best.run.all_parameters) if best is not None else space.likely()
    if problems := space.problems(change):
        raise ConfigError(f"this experiment cannot run: {'; '.join(problems)}")
    full = space.complete({**against, **change})
    if broken := space.violations(full):
        raise ConfigError(f"this experiment cannot run: {'; '.join(broken)}")
    return full, best.run.run_name if best is not None else "the middle of the search space"


def started(hypotheses: Sequence[Hypothesis], parameters: Parameters, space: Space) -> list[Hypothesis]:
    """Return all hypotheses, with those queued for this setting marked as running."""
    return [h.changed(state=HypothesisState.RUNNING) if _queued(h, parameters, space) else h for h in hypotheses]


def refused(hypotheses: Sequence[Hypothesis], parameters: Parameters, space: Space, reason: str) -> list[Hypothesis]:
    """Return all hypotheses, with those queued for a setting that the gate refused marked as inconclusive."""
    return [
        h.changed(state=HypothesisState.INCONCLUSIVE, rationale=f"{h.rationale}; the gate refused it: {reason}")
        if _queued(h, parameters, space)
        else h
        for h in hypotheses
    ]


def _queued(hypothesis: Hypothesis, parameters: Parameters, space: Space) -> bool:
    return hypothesis.state == HypothesisState.QUEUED and space.searched(hypothesis.parameters) == space.searched(
        parameters
    )


def settled(hypotheses: Sequence[Hypothesis], history: Sequence[RunHistory], space: Space) -> list[Hypothesis]:
    """Return all hypotheses, with a verdict on those whose setting was run.

    A hypothesis promises `gain` over the best run at the time of its proposal. It is confirmed if its runs beat that
    run by more than noise makes two runs differ, refuted if they failed or are not better at all, and otherwise
    inconclusive. The noise comes from repeated settings, see `noise`.
    """
    return [_settle(h, history, space) if h.state in WAITING else h for h in hypotheses]


def _settle(hypothesis: Hypothesis, history: Sequence[RunHistory], space: Space) -> Hypothesis:
    # A run that ended before the proposal was part of the evidence for it, so it cannot test it.
    ended = [h for h in informative(history) if h.run.finished_at is None or h.run.finished_at >= hypothesis.created_at]
    wanted = space.key({**hypothesis.parameters, "seed": None})
    mine = [h for h in ended if space.key({**h.run.all_parameters, "seed": None}) == wanted]
    if not mine:
        return hypothesis
    before = hypothesis.expected.quality - hypothesis.gain
    difference = float(np.mean([best_quality(h) or 0.0 for h in mine])) - before
    # The best run is a single run, and ours is a mean of n: their variances add up.
    spread = noise(history, space) * float(np.sqrt(1 + 1 / len(mine)))
    if any(failed(h, space.failed_quality) for h in mine) or difference <= 0:
        state = HypothesisState.REFUTED
    else:
        state = HypothesisState.CONFIRMED if difference > _CLEAR * spread else HypothesisState.INCONCLUSIVE
    runs = ", ".join(h.run.run_name for h in mine)
    rationale = (
        f"{hypothesis.rationale}; {state} by {runs}: {difference:+.1f} against {before:.1f} (noise {spread:.1f})"
    )
    return hypothesis.changed(state=state, rationale=rationale)


def noise(history: Sequence[RunHistory], space: Space) -> float:
    """Return the standard deviation of quality between runs that only differ in the seed; 1 if none were repeated.

    It is at least half a point, since a few equal runs do not prove that there is no noise.
    """
    same: dict[str, list[float]] = {}
    for run in informative(history):
        key = json.dumps(space.key({**run.run.all_parameters, "seed": None}))
        same.setdefault(key, []).append(best_quality(run) or 0.0)
    repeated = [values for values in same.values() if len(values) > 1]
    free = sum(len(values) - 1 for values in repeated)
    if free == 0:
        return _NOISE
    return max(float(np.sqrt(sum(np.var(values) * len(values) for values in repeated) / free)), _NOISE / 2)


def known(hypotheses: Sequence[Hypothesis]) -> set[uuid.UUID]:
    """Return the identities of hypotheses that are past the proposal. Proposing them again must not reset them."""
    return {h.uid for h in hypotheses if h.state != HypothesisState.PROPOSED}
