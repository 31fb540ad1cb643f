"""Propose the next experiments: small changes to the best run, ranked by expected improvement."""

from __future__ import annotations

import itertools
import json
import math
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm

from optimizer.diagnosis.reference_runs import Healthy
from optimizer.diagnosis.slowness import expected_hours
from optimizer.experiments.blockers import blockers
from optimizer.history import best_quality, best_run, informative
from optimizer.search.rules import text_of
from optimizer.search.space import Space, active, numeric
from optimizer.search.surrogate import Surrogate
from schema.findings import DataAudit, Hypothesis, Prediction
from schema.parameters import Parameters, ParameterValue
from schema.runs import RunHistory

_NAMESPACE = uuid.UUID("0b8f6c6e-3d0c-4a53-9a55-2f1a0d2f7b11")
"""Never change this: experiments are recognised by identities derived from it."""

_GRID = 9
"""Values to try along each parameter's axis. Chosen by hand: each eighth of the range."""

_STEPS = (-0.3, -0.15, 0.15, 0.3)
"""Steps from the best run to try as well, in shares of the range. Chosen by hand."""

_PAIRED = 12
"""Best single changes to combine in pairs: at most 66 pairs, since each one has to be predicted. Chosen by hand."""

_MIN_STEP = 0.03  # share of a parameter's range; a smaller change is no experiment; chosen by hand
_CATEGORY_GRID = 64
"""Points along the axis of a categorical parameter, which find every category of up to 64."""

_MAX_RISK = 0.6
"""Risk of failure above which nothing is proposed. Chosen by hand."""

_DIGITS = 2
"""Significant digits of proposed numbers. A person would write 0.0003, not 0.000297."""


@dataclass(frozen=True)
class _Candidate:
    searched: Parameters
    change: Parameters
    gain: float


def next_experiments(
    history: Sequence[RunHistory],
    space: Space,
    surrogate: Surrogate,
    campaign: str,
    now: datetime,
    count: int = 3,
    audit: DataAudit | None = None,
) -> tuple[Hypothesis, ...]:
    """Return the experiments of highest expected improvement, best first.

    Each changes one or two parameters of the best run. Candidates are small steps and the values of a grid, alone and
    in pairs of the most promising ones. Left out are candidates that break a rule, repeat a run, are likely to fail,
    or are closer to a bad run than to the healthy ones.

    The same experiment has the same identity each time it is proposed.

    Args:
        history: Runs of the campaign. Nothing is proposed before one was measured.
        space: Search space.
        surrogate: Model fitted to past runs.
        campaign: Name of the campaign.
        now: Time of the proposal.
        count: Most experiments to return. They change different sets of parameters if there are enough.
        audit: Audit of the data set, which may name problems to fix before an experiment.
    """
    best = best_own(history, space)
    if best is None or best_quality(best) is None:
        return ()
    base = _moved_inside(space, best.run.all_parameters)
    known = {space.key(h.run.all_parameters) for h in informative(history)}
    limits = _limits(history, space)
    steps = (change for change in _single_changes(space, base) if _within_limits(change, limits, space))
    # Pairs are only built from the best single changes, since all pairs would be too many to predict.
    singles = _ranked(steps, base, known, space, surrogate, best_quality(best) or 0.0)
    pairs = _ranked(_pairs(singles), base, known, space, surrogate, best_quality(best) or 0.0)
    chosen = _diverse(sorted(singles + pairs, key=lambda c: -c.gain), count)
    made = (_hypothesis(c, i + 1, base, best, space, surrogate, campaign, now) for i, c in enumerate(chosen))
    return tuple(costed(hypothesis, base, history, best.run.num_images, audit) for hypothesis in made)


def costed(
    hypothesis: Hypothesis,
    before: Parameters,
    history: Sequence[RunHistory],
    num_images: int | None,
    audit: DataAudit | None,
) -> Hypothesis:
    """Return an experiment with its expected hours and the problems to fix first.

    Args:
        hypothesis: The experiment.
        before: The setting that it changes.
        history: Runs on the same base model.
        num_images: Number of pictures in the data set; None if unknown.
        audit: Audit of the data set; None if there is none.
    """
    return hypothesis.changed(
        gpu_hours=expected_hours(hypothesis.parameters, history, num_images),
        blockers=blockers(hypothesis.change, before, audit),
    )


def best_own(history: Sequence[RunHistory], space: Space) -> RunHistory | None:
    """Return the best run with the campaign's fixed parameters; None without any.

    Every proposal has these parameters, so only such a run can be compared with it.
    """
    return best_run(h for h in history if space.is_own(h.run.all_parameters))


def identity_of(campaign: str, searched: Parameters) -> uuid.UUID:
    """Return the identity of an experiment, the same each time it is proposed."""
    return uuid.uuid5(_NAMESPACE, json.dumps([campaign, sorted(searched.items())]))


def _moved_inside(space: Space, parameters: Parameters) -> Parameters:
    """Return the searched parameters of a run, moved into the current space where they lie outside."""
    unit = np.array([space.unit(name, parameters.get(name)) for name in space.names])
    inside = space.at(unit)
    own = space.searched(parameters)
    return {n: own[n] if n in own and not space.problems({n: own[n]}) else inside[n] for n in space.names}


def _single_changes(space: Space, base: Parameters) -> Iterator[Parameters]:
    for i, name in enumerate(space.names):
        here = space.unit(name, base[name])
        grid = [float(u) for u in np.linspace(0, 1, _GRID)] + [here + step for step in _STEPS if 0 <= here + step <= 1]
        if not numeric(space.distributions[name]):
            grid = [(k + 0.5) / _CATEGORY_GRID for k in range(_CATEGORY_GRID)]
        for value in dict.fromkeys(_round(space, name, space.at(_unit(space, base, i, u))[name]) for u in grid):
            small = numeric(space.distributions[name]) and abs(space.unit(name, value) - here) < _MIN_STEP
            if value != base[name] and not small:
                yield {name: value}


def _limits(history: Sequence[RunHistory], space: Space) -> dict[str, tuple[float, float]]:
    """Return how far each searched number may go on its axis: half the way from healthy runs to the next bad run.

    A bad run only counts against the parameter in which it differs most from the healthy runs.
    """
    runs = informative(history)
    healthy = Healthy.of(runs)
    limits: dict[str, tuple[float, float]] = {}
    spans: dict[str, list[float]] = {}
    for run in runs:
        name = next((d.name for d in healthy.departures(run)), None) if healthy.shortfall(run) else None
        if name not in space.names or not numeric(space.distributions[name]):
            continue
        if name not in spans:
            spans[name] = [space.unit(name, active(h.run.all_parameters)[name]) for h in healthy.runs]
        here, theirs = space.unit(name, active(run.run.all_parameters)[name]), spans[name]
        low, high = limits.get(name, (-math.inf, math.inf))
        if here < min(theirs):
            low = max(low, (here + min(theirs)) / 2)
        elif here > max(theirs):
            high = min(high, (here + max(theirs)) / 2)
        limits[name] = low, high
    return limits


def _within_limits(change: Parameters, limits: dict[str, tuple[float, float]], space: Space) -> bool:
    """Return whether every changed number is closer to the healthy runs than to a bad run."""
    return all(
        limits[name][0] <= space.unit(name, value) <= limits[name][1]
        for name, value in change.items()
        if name in limits
    )


def _unit(space: Space, base: Parameters, index: int, value: float) -> NDArray[np.float64]:
    units = np.array([space.unit(name, base[name]) for name in space.names])
    units[index] = value
    return units


def _round(space: Space, name: str, value: ParameterValue) -> ParameterValue:
    """Return a number rounded to two significant digits, if it stays inside the space."""
    if isinstance(value, bool) or not isinstance(value, float) or value == 0 or space.problems({name: value}):
        return value
    short = round(value, _DIGITS - 1 - math.floor(math.log10(abs(value))))
    return value if space.problems({name: short}) else short


def _pairs(singles: Sequence[_Candidate]) -> Iterator[Parameters]:
    for a, b in itertools.combinations(singles[:_PAIRED], 2):
        if not set(a.change) & set(b.change):
            yield a.change | b.change


def _ranked(
    changes: Iterator[Parameters], base: Parameters, known: set[str], space: Space, surrogate: Surrogate, best: float
) -> list[_Candidate]:
    """Return the candidates that may run, by expected improvement times the probability of no failure, best first."""
    kept: list[tuple[Parameters, Parameters]] = []
    for change in changes:
        full = space.complete(base | change)
        if not space.violations(full) and space.key(full) not in known:
            kept.append((change, full))
    if not kept:
        return []
    x = np.array([space.encode(full) for _, full in kept])
    mean, sd = surrogate.moments(x)
    risk = surrogate.risks(x)
    z = (mean - best) / sd
    improvement = (mean - best) * norm.cdf(z) + sd * norm.pdf(z)  # Jones et al., 1998
    gains = np.where(risk > _MAX_RISK, 0.0, improvement * (1 - risk))
    found = [
        _Candidate(base | change, change, float(gain))
        for (change, _), gain in zip(kept, gains, strict=True)
        if gain > 0
    ]
    return sorted(found, key=lambda c: -c.gain)


def _diverse(candidates: Sequence[_Candidate], count: int) -> list[_Candidate]:
    """Return the best candidates that change different sets of parameters, then the next best.

    A candidate that only adds to a chosen change comes later, so that the smaller step is tried first.
    """
    chosen: list[_Candidate] = []
    for candidate in candidates:
        changed = [set(c.change) for c in chosen]
        adds = any(c.change.items() <= candidate.change.items() for c in chosen)
        if set(candidate.change) not in changed and not adds:
            chosen.append(candidate)
    return [*chosen, *(c for c in candidates if c not in chosen)][:count]


def _hypothesis(
    candidate: _Candidate,
    priority: int,
    base: Parameters,
    best: RunHistory,
    space: Space,
    surrogate: Surrogate,
    campaign: str,
    now: datetime,
) -> Hypothesis:
    full = space.complete(candidate.searched)
    expected = surrogate.predict(full)
    quality = best_quality(best) or 0.0
    return Hypothesis(
        uid=identity_of(campaign, candidate.searched),
        campaign=campaign,
        priority=priority,
        change=candidate.change,
        parameters=full,
        rationale=_rationale(candidate.change, base, best, quality, expected),
        expected=expected,
        gain=expected.quality - quality,
        created_at=now,
    )


def _rationale(change: Parameters, base: Parameters, best: RunHistory, quality: float, expected: Prediction) -> str:
    steps = " and ".join(f"{n} from {text_of(base[n])} to {text_of(v)}" for n, v in change.items())
    why = "promises more" if expected.quality > quality else "is uncertain enough to be worth a run"
    return (
        f"Changing {steps} against {best.run.run_name} ({quality:.1f}) {why}: expected {expected.quality:.1f} "
        f"({expected.low:.1f} to {expected.high:.1f}) with {expected.p_fail:.0%} risk of failure, judged from "
        f"{expected.n} runs, most like {', '.join(expected.nearest)}"
    )
