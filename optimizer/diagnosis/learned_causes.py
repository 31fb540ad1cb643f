"""Learn from the history why runs have an issue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from optimizer.effects.responses import NO_CAUSE
from optimizer.search.rules import text_of
from optimizer.search.space import active, filled
from schema.parameters import PARAMETERS, Parameters, ParameterValue

_MIN_RUNS = 5  # at least two of them with the issue and two without; chosen by hand
_SIGNIFICANT = 0.1
"""Largest p-value of a cause. Looser than a claim, since it only suggests what to change. Chosen by hand."""

_PERMUTATIONS = 499
"""Together with the original order 500, so p-values are multiples of 0.002, fine enough for a level of 0.1."""


@dataclass(frozen=True)
class Cause:
    """Hold a likely cause, what to change, its confidence (0-1) and its evidence."""

    sentence: str
    recommendation: str
    confidence: float
    evidence: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()  # the parameters that are blamed


@dataclass(frozen=True)
class Case:
    """Hold a run as evidence about one issue: whether it is affected, and its quality (0-100)."""

    name: str
    parameters: Parameters
    affected: bool
    quality: float


@dataclass(frozen=True)
class _Condition:
    name: str
    text: str
    inside: NDArray[np.bool_]


def learnt_cause(cases: Sequence[Case], parameters: Parameters) -> Cause | None:
    """Return the condition on one parameter that best separates affected from unaffected runs.

    None if chance could explain it. All conditions that the diagnosed run meets are tried. The permutation test
    compares with the best of all of them, so it is corrected for their number. Parameters that changed together are
    named together.

    Args:
        cases: Past runs on the same base model and data set, and the diagnosed run.
        parameters: Parameters of the diagnosed run.
    """
    affected = np.array([case.affected for case in cases])
    if len(cases) < _MIN_RUNS or affected.sum() < 2 or (~affected).sum() < 2:
        return None
    conditions = [c for c in _conditions(cases, parameters) if affected[c.inside].sum() >= 2 and (~c.inside).any()]
    if not conditions:
        return None
    inside = np.array([c.inside for c in conditions], dtype=float)  # (conditions, runs)
    scores = _scores(inside, affected.astype(float)[:, None])[:, 0]
    best = int(np.argmax(scores))
    # A fixed seed: the same runs must always give the same cause.
    shuffled = np.random.default_rng(0).permuted(np.tile(affected.astype(float), (_PERMUTATIONS, 1)), axis=1).T
    chance = _scores(inside, shuffled).max(axis=0)
    p_value = float((1 + (chance >= scores[best] - 1e-9).sum()) / (_PERMUTATIONS + 1))
    if p_value > _SIGNIFICANT:
        return None
    same = [c for c in conditions if np.array_equal(c.inside, conditions[best].inside)]
    return _as_cause(cases, affected, conditions[best], same, p_value)


def _scores(inside: NDArray[np.float64], affected: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return by how many standard deviations more affected runs meet each condition than by chance.

    Args:
        inside: Which runs meet a condition, shape (conditions, runs).
        affected: Which runs are affected, in m orders, shape (runs, m).

    Returns:
        Hypergeometric z-scores, shape (conditions, m).
    """
    n, share = inside.shape[1], float(affected[:, 0].mean())
    size = inside.sum(axis=1, keepdims=True)
    deviation = np.sqrt(size * (n - size) / (n - 1) * share * (1 - share))
    return np.asarray((inside @ affected - size * share) / np.maximum(deviation, 1e-12))


def _conditions(cases: Sequence[Case], parameters: Parameters) -> Iterator[_Condition]:
    wanted = active(parameters)
    used = [active(case.parameters) for case in cases]
    for name, spec in PARAMETERS.items():
        if spec.derived or name in NO_CAUSE or wanted[name] is None:
            continue
        values = [p[name] for p in used]
        # A parameter that only another parameter switched on and off has not been varied itself.
        if len(set(values)) > 1 and len({filled(case.parameters)[name] for case in cases}) > 1:
            yield from _about(name, wanted[name], values)


def _about(name: str, wanted: ParameterValue, values: Sequence[ParameterValue]) -> Iterator[_Condition]:
    if isinstance(wanted, bool | str) or wanted is None:
        yield _Condition(name, f"= {text_of(wanted)}", np.array([v == wanted for v in values]))
        return
    numbers = np.array([float(v) if isinstance(v, int | float) else np.nan for v in values])
    for cut in np.unique(numbers[~np.isnan(numbers)]):
        if wanted >= cut:
            yield _Condition(name, f">= {text_of(float(cut))}", numbers >= cut)
        if wanted <= cut:
            yield _Condition(name, f"<= {text_of(float(cut))}", numbers <= cut)


def _as_cause(
    cases: Sequence[Case], affected: NDArray[np.bool_], found: _Condition, same: Sequence[_Condition], p_value: float
) -> Cause:
    inside, hit = int(found.inside.sum()), int(affected[found.inside].sum())
    outside, missed = int((~found.inside).sum()), int(affected[~found.inside].sum())
    both = {c.name: c for c in same}
    text = " or ".join(f"{c.name} {c.text}" for c in both.values())
    together = ", which changed together here" if len(both) > 1 else ""
    good = max(
        (c for c, i in zip(cases, found.inside, strict=True) if not i), key=lambda c: (not c.affected, c.quality)
    )
    values = active(good.parameters)
    instead = " and ".join(f"{name} = {text_of(values[name])}" for name in both)
    return Cause(
        sentence=f"{text}{together}: {hit} of {inside} such runs show it, but {missed} of the {outside} others",
        recommendation=f"try {instead} as in {good.name}",
        confidence=min((hit + 1) / (inside + 2) * (1 - p_value) / len(both), 0.95),
        evidence=tuple(c.name for c, i in zip(cases, found.inside, strict=True) if i and c.affected),
        factors=tuple(both),
    )
