"""Test every parameter on every outcome, with p-values corrected for the number of tests."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import optuna
from scipy.stats import beta, rankdata

from optimizer.effects.outcomes import Measured, measured_outcomes
from optimizer.effects.responses import (
    SIGNIFICANT,
    Array,
    Varied,
    bare,
    better_side,
    effect_of,
    importances,
    moved_together,
    run_qualities,
    unvaried,
    varied_parameters,
)
from optimizer.history import informative
from optimizer.search.space import Space
from schema.findings import ImpactReport, Interaction, ParameterEffect
from schema.runs import RunHistory
from schema.states import EffectVerdict

_MIN_RUNS = 6
"""Runs needed for any test. Chosen by hand: few permutations exist of fewer runs."""

_MIN_SIDE = 3
"""Runs needed on each side of a parameter before we say that no effect was detected. Chosen by hand."""

_PERMUTATIONS = 1999
"""Together with the original order 2000, so p-values are multiples of 0.0005."""

_ROUNDS = 4
"""Most rounds of tests. Chosen by hand: each one costs as much as the first, and usually nothing new is claimed."""

_FANOVA_FROM = 50  # runs; with fewer, its trees are no better than the impurity of a forest
_MAX_PAIRED = 8
"""Parameters to test for interactions. Chosen by hand: eight make 28 pairs, all of which p-values are corrected for."""


@dataclass(frozen=True)
class _Tested:
    """Hold the results of all tests on one history."""

    runs: list[RunHistory]
    varied: list[Varied]
    outcomes: list[Measured]
    rows: list[ParameterEffect]  # strongest claim first
    constant: list[ParameterEffect]  # parameters that were never varied


def survey(history: Sequence[RunHistory], space: Space) -> ImpactReport:
    """Return the effect of each parameter on each outcome, smallest p-value first.

    Each test looks for a rising, falling or peaked relation of ranks, or a difference between categories, given the
    parameters already claimed. Its p-value is the share of permutations of the runs in which any test looks as
    significant (Westfall and Young 1993, single-step minimum of p). So at most one report in twenty on outcomes
    without any relation makes a claim, however many tests it has. Interactions are only tested for parameters
    claimed to affect quality, which preserves this bound.

    Args:
        history: Runs, preferably of one base model and data set.
        space: The searched parameters. Other parameters that vary are tested as well.
    """
    found = _tested(history, space)
    quality = next((m for m in found.outcomes if m.name == "quality"), None)
    claimed = {r.parameter for r in found.rows if r.outcome == "quality" and r.verdict.is_claim}
    shares, by = _importance(found.runs, found.varied, quality, space)
    return ImpactReport(
        n_runs=len(found.runs),
        outcomes=tuple(m.name for m in found.outcomes),
        tests=len(found.rows) if found.outcomes else 0,
        effects=(*found.rows, *found.constant),
        interactions=tuple(_interactions(found.varied, quality, claimed, shares)) if quality is not None else (),
        importance=shares,
        importance_by=by,
    )


def quality_effects(history: Sequence[RunHistory], space: Space) -> tuple[ParameterEffect, ...]:
    """Return the effect of each parameter on quality: the rows that a campaign's report shows.

    They come from the tests of `survey`, with the same correction, so the report and `pixelloop impact` give one
    verdict for the same runs. Importances and interactions, which take seconds, are left out.
    """
    found = _tested(history, space)
    return tuple(row for row in (*found.rows, *found.constant) if row.outcome == "quality")


def _tested(history: Sequence[RunHistory], space: Space) -> _Tested:
    runs = informative(history)
    varied = varied_parameters(runs, space)
    constant = unvaried(len(runs), varied, space)
    outcomes = measured_outcomes(runs, run_qualities(runs, space), space) if len(runs) >= _MIN_RUNS else []
    if not outcomes or not varied:
        rows = [bare(v.name, len(runs), EffectVerdict.NOT_ENOUGH_DATA) for v in varied]
        return _Tested(runs, varied, [], rows, constant)
    p_values = _corrected(varied, outcomes)
    confounded = moved_together(varied)
    rows = [
        _row(v, m, float(p_values[i, j]), tuple(confounded[v.name]))
        for i, v in enumerate(varied)
        for j, m in enumerate(outcomes)
    ]
    rows.sort(key=lambda row: (row.p_value or 0.0, -(row.importance or 0.0)))
    return _Tested(runs, varied, outcomes, rows, constant)


def _corrected(varied: Sequence[Varied], outcomes: Sequence[Measured]) -> Array:
    """Return the corrected p-value of each parameter and outcome, shape (parameters, outcomes).

    Tests run in rounds. Each round removes the claimed effects from the outcomes, so that a strong parameter does not
    hide a weaker one. A round only follows after a new claim, and its p-values are at least those of earlier claims.
    """
    p_values = np.ones((len(varied), len(outcomes)))
    claimed: set[tuple[int, int]] = set()
    least = 0.0
    for _ in range(_ROUNDS):
        # A later claim must not look surer than the claim that it depends on.
        found = np.maximum(_round(varied, outcomes, claimed), least)
        for i, j in itertools.product(range(len(varied)), range(len(outcomes))):
            p_values[i, j] = p_values[i, j] if (i, j) in claimed else min(p_values[i, j], found[i, j])
        new = {(i, j) for i, j in zip(*np.nonzero(p_values <= SIGNIFICANT), strict=True)} - claimed
        if not new:
            break
        claimed |= {(int(i), int(j)) for i, j in new}
        least = float(max(p_values[i, j] for i, j in claimed))
    return p_values


def _round(varied: Sequence[Varied], outcomes: Sequence[Measured], claimed: set[tuple[int, int]]) -> Array:
    """Return the p-values of all tests not claimed yet, given those that are; 1 for claimed ones.

    By chance, k columns explain a share of the variation of ranks that is about Beta(k / 2, (n - 1 - k) / 2). This
    makes tests comparable. Permuting the residuals (Freedman and Lane 1983), in the same way for all tests, makes the
    p-values exact.
    """
    n = len(varied[0].values)
    rng = np.random.default_rng(0)
    orders = np.array(
        [np.arange(n), *(rng.permutation(n) for _ in range(_PERMUTATIONS))]
    )  # the first is the original order
    alone = np.ones((len(varied), len(outcomes), len(orders)))
    bases = [v.design(degree=2) for v in varied]
    for j, outcome in enumerate(outcomes):
        span = _orthonormal([basis for i, basis in enumerate(bases) if (i, j) in claimed], n)
        rest = _without(_neutral_ranks(outcome)[:, None], span)[:, 0]
        shuffled = _without(rest[orders].T, span)  # (n, permutations)
        shuffled /= np.maximum(np.linalg.norm(shuffled, axis=0), 1e-12)
        for i, basis in enumerate(bases):
            own = _orthonormal([_without(basis, span)], n)
            free = n - 1 - span.shape[1] - own.shape[1]
            if (i, j) not in claimed and own.shape[1] and free > 0:
                explained = ((own.T @ shuffled) ** 2).sum(axis=0)
                alone[i, j] = beta.sf(np.minimum(explained, 1.0), own.shape[1] / 2, free / 2)
    # The smallest p of all tests in each permutation: comparing with it corrects for the number of tests.
    least = alone.min(axis=(0, 1))  # (permutations,)
    # The factor absorbs rounding: the original order must count as at least as extreme as itself.
    return np.asarray((least[None, None, :] <= alone[:, :, :1] * (1 + 1e-9)).mean(axis=2))


def _orthonormal(columns: Sequence[Array], n: int) -> Array:
    """Return orthonormal columns that span the given ones, shape (n, k)."""
    together = np.concatenate([np.empty((n, 0)), *columns], axis=1)
    if not together.shape[1]:
        return together
    left, size, _ = np.linalg.svd(together, full_matrices=False)
    return np.asarray(left[:, size > 1e-6])


def _without(columns: Array, span: Array) -> Array:
    """Return columns without their projection onto a span."""
    return np.asarray(columns - span @ (span.T @ columns))


def _neutral_ranks(outcome: Measured) -> Array:
    """Return centred ranks, shape (n,). Runs without the outcome are 0, so they have no influence."""
    ranks, known = np.zeros(len(outcome.values)), outcome.known
    ranks[known] = rankdata(outcome.values[known])
    ranks[known] -= ranks[known].mean()
    return ranks


def _row(v: Varied, outcome: Measured, p: float, confounded: tuple[str, ...]) -> ParameterEffect:
    known = outcome.known
    part = Varied(v.name, tuple(x for x, k in zip(v.values, known, strict=True) if k))
    values = outcome.values[known]
    if len(set(part.values)) < 2:
        return bare(v.name, len(values), EffectVerdict.NOT_ENOUGH_DATA).changed(outcome=outcome.name)
    found = effect_of(part, values, p, _explained(part, values), confounded, outcome=outcome.name, rises=outcome.rises)
    if found.verdict == EffectVerdict.NONE_DETECTED and _smaller_side(part, values, outcome.rises) < _MIN_SIDE:
        return found.changed(verdict=EffectVerdict.NOT_ENOUGH_DATA)
    return found


def _smaller_side(v: Varied, values: Array, rises: bool) -> int:
    """Return the number of runs on the smaller side of a parameter."""
    better, _ = better_side(v, values if rises else -values)
    return min(int(better.sum()), int((~better).sum()))


def _explained(v: Varied, values: Array) -> float:
    """Return the share (0-1) of the variation of ranks that the parameter alone explains (adjusted R squared)."""
    ranks: Array = rankdata(values) - (len(values) + 1) / 2
    basis, total = v.design(degree=2), float(np.sum(ranks**2))
    n, k = len(values), basis.shape[1]
    if total == 0 or n - 1 - k < 1:
        return 0.0
    share = float(np.sum((basis.T @ ranks) ** 2)) / total
    return max(0.0, 1 - (1 - share) * float(n - 1) / float(n - 1 - k))


def _importance(
    runs: Sequence[RunHistory], varied: Sequence[Varied], quality: Measured | None, space: Space
) -> tuple[dict[str, float], str]:
    """Return each parameter's share of the variation of quality, and the name of the model behind it."""
    if quality is None:
        return {}, ""
    trials = _trials(runs, quality, space)
    if len(trials) < _FANOVA_FROM:
        return importances(varied, quality.values), "a forest's decrease in impurity"
    study = optuna.create_study(direction="maximize")
    study.add_trials(trials)
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return dict(found), "fANOVA (Optuna)"


def _trials(runs: Sequence[RunHistory], quality: Measured, space: Space) -> list[optuna.trial.FrozenTrial]:
    """Return the runs whose searched parameters lie inside the space, as Optuna trials."""
    settings = [(space.searched(h.run.all_parameters), q) for h, q in zip(runs, quality.values, strict=True)]
    return [
        optuna.trial.create_trial(params=dict(s), distributions=dict(space.distributions), value=float(q))
        for s, q in settings
        if len(s) == len(space.names) and not space.problems(s)
    ]


def _interactions(
    varied: Sequence[Varied], quality: Measured, claimed: set[str], shares: dict[str, float]
) -> list[Interaction]:
    """Return pairs with a claimed parameter whose product explains residuals of the single effects.

    Residuals are permuted (Freedman and Lane 1983), and p-values are corrected for the number of pairs.
    """
    ranks = _neutral_ranks(quality)
    chosen = sorted(varied, key=lambda v: (v.name not in claimed, -shares.get(v.name, 0.0)))[:_MAX_PAIRED]
    span = _orthonormal([v.design(2) for v in chosen], len(ranks))
    if not claimed or len(ranks) - span.shape[1] < 2 * _MIN_RUNS:
        return []
    rest = _without(ranks[:, None], span)[:, 0]
    rng = np.random.default_rng(0)
    shuffled = np.array([rest, *(rng.permutation(rest) for _ in range(_PERMUTATIONS))]).T
    shuffled = _without(shuffled, span)
    shuffled /= np.linalg.norm(shuffled, axis=0)
    pairs = [(a, b) for a, b in itertools.combinations(chosen, 2) if {a.name, b.name} & claimed]
    tested = [(a, b, e) for a, b in pairs if (e := _product_share(a, b, span, shuffled)) is not None]
    if not tested:
        return []
    most = np.max([explained for _, _, explained in tested], axis=0)
    found = []
    for a, b, explained in tested:
        p = float((most >= explained[0] - 1e-12).mean())
        if p <= SIGNIFICANT:
            text = f"what {a.name} does to quality depends on {b.name}, beyond what each does alone"
            share = min(float(explained[0]), 1.0)
            found.append(Interaction(parameters=(a.name, b.name), n=len(ranks), share=share, p_value=p, sentence=text))
    return sorted(found, key=lambda i: i.p_value)


def _product_share(a: Varied, b: Varied, span: Array, shuffled: Array) -> Array | None:
    """Return the share of each permutation's residuals that the product of two parameters explains.

    None if the single effects already contain the product.
    """
    one, two = a.design(1), b.design(1)
    # All products of the columns, since a category has one column per level.
    product = np.stack([x * y for x in one.T for y in two.T], axis=1)
    basis = _orthonormal([_without(product, span)], len(product))
    return np.asarray(((basis.T @ shuffled) ** 2).sum(axis=0)) if basis.shape[1] else None
