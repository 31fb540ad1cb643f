"""Learn principles: rules that good runs follow across campaigns, and that hardly any good run breaks."""

from __future__ import annotations

import itertools
import json
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import numpy as np
from numpy.typing import NDArray
from scipy.stats import hypergeom

from optimizer.diagnosis.reference_runs import Healthy
from optimizer.effects.responses import NO_CAUSE
from optimizer.experiments.paired import pairs_across, verdict
from optimizer.history import informative
from optimizer.search.rules import Rule, text_of
from optimizer.search.space import Space, active, filled
from schema.findings import Evidence, Principle
from schema.parameters import PARAMETERS, Parameters, ParameterValue
from schema.runs import RunHistory
from schema.states import HypothesisState, PrincipleState

_NAMESPACE = uuid.UUID("5a3f0f58-2f0b-4c0b-8a64-6e1f0b6f7d21")
"""Never change this: stored principles are found again by identities derived from it."""

LEAST_RUNS = 8
"""Runs on one base model and data set needed to claim a rule. Chosen by hand."""

_MIN_SIDE = 3
"""Good runs, other runs, and runs that break a rule needed to claim it. Chosen by hand."""

_MAX_CUTS = 32  # limits to try for one parameter; chosen by hand, to bound the time of the permutations
_PERMUTATIONS = 1999
"""Together with the original order 2000, so p-values are multiples of 0.0005."""

_SIGNIFICANT = 0.05
"""Largest corrected p-value of a claim: at most one history in twenty with random outcomes yields one."""

_EXCEPTIONS = 0.1  # largest share of good runs among those that break a rule; chosen by hand
_CONTRADICTED = 0.2
"""Share of good runs among those that break a rule above which it is withdrawn. Chosen by hand: twice the limit for a
claim, so that a rule on the border is not claimed and withdrawn in turns."""

_MAX_CLAIMS = 5
"""Rules to claim in one history. Chosen by hand: users have to read and judge each of them."""

_IN_FORCE = PrincipleState.ACCEPTED

Scope = Mapping[str, str]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class _Past:
    """Hold past runs, their effective parameters, and which of them are good."""

    runs: tuple[RunHistory, ...]
    used: tuple[Parameters, ...]
    good: Flags

    @classmethod
    def of(cls, history: Sequence[RunHistory]) -> _Past:
        runs = tuple(informative(history))
        names = {h.run.uid for h in Healthy.of(runs).runs}
        good = np.array([h.run.uid in names for h in runs], dtype=bool)
        return cls(runs, tuple(active(h.run.all_parameters) for h in runs), good)

    def keeping(self, rule: str) -> Flags:
        """Return which runs follow a rule, shape (n,)."""
        read = Rule.parse(rule)
        return np.array([read.holds(used) for used in self.used], dtype=bool)

    def part(self, chosen: Flags) -> _Past:
        """Return the chosen runs only."""
        places = np.flatnonzero(chosen)
        return _Past(tuple(self.runs[i] for i in places), tuple(self.used[i] for i in places), self.good[chosen])


@dataclass(frozen=True)
class _Claim:
    rule: str
    parameter: str
    p_value: float
    together: tuple[str, ...] = ()


def scope_of(base_model: str, dataset: str) -> dict[str, str]:
    """Return the scope of a principle. Qualities are only comparable on one base model and data set."""
    return {"base_model": base_model, "dataset": dataset}


def within(principles: Sequence[Principle], scope: Scope) -> list[Principle]:
    """Return the principles of a scope."""
    return [p for p in principles if p.scope == scope]


def in_force(principles: Sequence[Principle], scope: Scope) -> tuple[str, ...]:
    """Return the rules that a user accepted for a scope. They are hard limits of its campaigns."""
    return tuple(p.rule for p in within(principles, scope) if p.state == _IN_FORCE)


def learnt(
    history: Sequence[RunHistory], space: Space, known: Sequence[Principle], scope: Scope, now: datetime
) -> list[Principle]:
    """Return all principles of a scope: known ones updated with the runs so far, and new ones.

    A rule is claimed if good runs follow it and hardly any run that breaks it is good, more clearly than chance would
    make any of the possible rules (single-step minimum of hypergeometric p over permutations of the runs, Westfall and
    Young 1993). So at most one history in twenty with random outcomes yields a rule. After a claim, the next rule
    is searched among the runs that follow the first, so that a parameter that moved with another is not claimed too.

    Good runs ended well with at least 80 % of the best quality. A rule is *tested* if pairs of runs that differ only in
    its parameter confirm it; the seed is the same in both. A rule is withdrawn if such pairs refute it or too many
    good runs break it. A rule that a user dropped stays dropped, and an accepted one keeps its limit.

    Args:
        history: Runs of the scope, from any campaign.
        space: Defines what counts as the same training.
        known: Known principles of the scope.
        scope: Base model and data set, see `scope_of`.
        now: Time of new claims.
    """
    past = _Past.of(history)
    before = {p.uid for p in known}
    fresh = {_identity(scope, c): c for c in _claims(past)}
    blank = Principle(uid=_NAMESPACE, rule="", support=0, exceptions=0, scope=dict(scope), created_at=now)
    new = [blank.changed(uid=uid, rule=claim.rule) for uid, claim in fresh.items() if uid not in before]
    found = [_updated(p, fresh.get(p.uid), past, space) for p in (*known, *new)]
    # A new rule that is refuted at once was never shown to anyone, so it is not stored.
    return [p for p in found if p.uid in before or p.state == PrincipleState.PROPOSED]


def _identity(scope: Scope, claim: _Claim) -> uuid.UUID:
    """Return an identity that depends on parameter and direction, but not on the limit, which moves with new runs."""
    rule = Rule.parse(claim.rule)
    what = rule.compare if rule.compare in ("<=", ">=") else f"{rule.compare} {text_of(rule.right)}"
    return uuid.uuid5(_NAMESPACE, json.dumps([sorted(scope.items()), claim.parameter, what]))


def _claims(past: _Past) -> Iterator[_Claim]:
    kept, least = np.ones(len(past.runs), dtype=bool), 0.0
    taken: set[str] = set()
    for _ in range(_MAX_CLAIMS):
        claim = _best_claim(past.part(kept), taken)
        if claim is None:
            return
        # A later claim is only searched because of earlier ones, so it cannot be surer than they are.
        least = max(least, claim.p_value)
        taken.add(_direction(claim.rule))
        # Continue among the runs that follow the rule, so that a parameter that moved with it is not claimed too.
        kept &= past.keeping(claim.rule)
        yield replace(claim, p_value=least)


def _direction(rule: str) -> str:
    return " ".join(rule.split()[:2])


def _best_claim(past: _Past, taken: set[str]) -> _Claim | None:
    """Return the rule that best separates good runs from the others; None if chance could explain it."""
    n, many = len(past.runs), int(past.good.sum())
    if n < LEAST_RUNS or many < _MIN_SIDE or n - many < _MIN_SIDE:
        return None
    keeps = {r: past.keeping(r) for r in _candidates(past) if _direction(r) not in taken}
    keeps = {r: keep for r, keep in keeps.items() if (~keep).sum() >= _MIN_SIDE}
    if not keeps:
        return None
    rules, inside = list(keeps), np.array(list(keeps.values()))  # (rules, n)
    rows, size = np.arange(len(rules))[:, None], inside.sum(axis=1)
    chances = hypergeom.sf(np.arange(many + 1)[None, :] - 1, n, many, size[:, None])  # of at least so many good runs
    seen = chances[rows[:, 0], (inside & past.good).sum(axis=1)]
    holds = (~inside & past.good).sum(axis=1) <= _EXCEPTIONS * (n - size)
    if not holds.any():
        return None
    best = int(np.argmin(np.where(holds, seen, np.inf)))
    shuffled = np.random.default_rng(0).permuted(np.tile(past.good, (_PERMUTATIONS, 1)), axis=1).T  # (n, permutations)
    # float32 for a fast matrix product. Counts of runs are exact in it.
    hits = (inside.astype(np.float32) @ shuffled.astype(np.float32)).astype(int)
    least = chances[rows, hits].min(axis=0)
    # The factor absorbs rounding: the claim must count as at least as extreme as itself.
    p = float((1 + (least <= seen[best] * (1 + 1e-9)).sum()) / (_PERMUTATIONS + 1))
    if p > _SIGNIFICANT:
        return None
    name = Rule.parse(rules[best]).left
    same = [Rule.parse(r).left for r, i in zip(rules, inside, strict=True) if np.array_equal(i, inside[best])]
    return _Claim(rules[best], name, p, tuple(dict.fromkeys(s for s in same if s != name)))


def _candidates(past: _Past) -> list[str]:
    """Return all rules that some runs follow and others break."""
    set_to = [filled(h.run.all_parameters) for h in past.runs]
    names = [n for n, spec in PARAMETERS.items() if not spec.derived and n not in NO_CAUSE]
    varied = [n for n in names if len({p[n] for p in past.used}) > 1 and len({p[n] for p in set_to}) > 1]
    return [rule for name in varied for rule in _about(name, [p[name] for p in past.used])]


def _about(name: str, values: Sequence[ParameterValue]) -> Iterator[str]:
    levels = [v for v in dict.fromkeys(values) if v is not None]
    numbers = sorted({float(v) for v in levels if isinstance(v, int | float) and not isinstance(v, bool)})
    if len(numbers) == len(levels):
        cuts = list(itertools.pairwise(numbers))
        for place in np.unique(np.linspace(0, len(cuts) - 1, _MAX_CUTS).astype(int)) if cuts else ():
            below, above = cuts[place]
            yield f"{name} <= {_short(below, above)}"
            yield f"{name} >= {_short(above, below)}"
    elif len(levels) == 2:
        yield from (f"{name} == {text_of(v)}" for v in levels)
    else:
        yield from (f"{name} {compare} {text_of(v)}" for v in levels for compare in ("==", "!="))


def _short(value: float, beyond: float) -> str:
    """Return the number with the fewest digits from `value` (included) to `beyond` (excluded), as text."""
    if value.is_integer():
        return f"{value:.0f}"
    up = beyond > value
    for digits in range(1, 17):
        step = 10.0 ** (math.floor(math.log10(abs(value))) - digits + 1)
        short = float(f"{(math.ceil if up else math.floor)(value / step) * step:.{digits}g}")
        if value <= short < beyond if up else beyond < short <= value:
            return f"{short:.{digits}g}" if abs(short) < 1e-4 else f"{short:.12g}"
    return repr(value)


def _updated(principle: Principle, claim: _Claim | None, past: _Past, space: Space) -> Principle:
    """Return a principle with its counts, evidence and state updated."""
    if claim is not None and principle.state != _IN_FORCE:
        principle = principle.changed(rule=claim.rule)
    rule, keep = Rule.parse(principle.rule), past.keeping(principle.rule)
    against = tuple(past.runs[i].run.run_name for i in np.flatnonzero(past.good & ~keep))
    pairs = pairs_across(rule.left, rule.right, lambda value: rule.holds({rule.left: value}), past.runs, space)
    tested = verdict([pair.difference for pair in pairs]).state
    outside = int((~keep).sum())
    details = principle.details.changed(
        good=int(past.good.sum()), outside=outside, runs=len(past.runs), against=against, pairs=len(pairs),
        p_value=principle.details.p_value if claim is None else claim.p_value,
        together=principle.details.together if claim is None else claim.together,
    )  # fmt: skip
    contradicted = tested == HypothesisState.REFUTED or (len(against) >= 2 and len(against) > _CONTRADICTED * outside)
    return principle.changed(
        support=int((keep & past.good).sum()),
        exceptions=len(against),
        evidence=Evidence.TESTED if tested == HypothesisState.CONFIRMED else Evidence.OBSERVED,
        state=_state(principle.state, contradicted, claim is not None),
        details=details,
    )


def _state(before: str, contradicted: bool, claimed: bool) -> str:
    if before == PrincipleState.DROPPED:
        return before
    if contradicted:
        return PrincipleState.WITHDRAWN
    return PrincipleState.PROPOSED if before == PrincipleState.WITHDRAWN and claimed else before
