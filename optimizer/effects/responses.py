"""Measure how an outcome responds to one parameter: effect, interval, importance, confounding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.ensemble import RandomForestRegressor

from optimizer.history import best_quality
from optimizer.search.rules import text_of
from optimizer.search.space import Space, filled
from schema.findings import ParameterEffect
from schema.parameters import PARAMETERS, ParameterValue
from schema.runs import RunHistory
from schema.states import EffectVerdict

Array = NDArray[np.float64]

_RESAMPLES = 500
"""Bootstrap samples. Chosen by hand: 25 of them lie beyond each end of a 90 % interval."""

SIGNIFICANT = 0.05
"""Largest corrected p-value of a claim: at most one report in twenty on random outcomes makes any claim."""

CRITICAL = 0.25
"""Share of the variation that makes a claimed effect critical. Chosen by hand."""

_CONFOUNDED = 0.8
"""Canonical correlation above which two parameters moved together, so neither can be blamed alone. Chosen by hand."""

NO_CAUSE = frozenset(("seed", "save_every_n_epochs", "caption_extension", "save_precision"))
"""Parameters that may vary but cannot explain quality."""


@dataclass(frozen=True)
class Varied:
    """Hold the values of one parameter in n runs."""

    name: str
    values: tuple[ParameterValue, ...]  # None where it had no effect

    @property
    def numeric(self) -> bool:
        """Return whether the parameter has at least two different values, all of them numbers."""
        used = {v for v in self.values if v is not None}
        return len(used) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in used)

    @property
    def ranks(self) -> Array:
        """Return the ranks of a numeric parameter, shape (n,). Runs in which it had no effect get the middle rank."""
        used = np.array([v is not None for v in self.values])
        ranks = np.full(len(self.values), (used.sum() + 1) / 2)
        ranks[used] = rankdata([float(v) for v in self.values if v is not None])
        return ranks

    def design(self, degree: int) -> Array:
        """Return orthonormal centred columns that span the parameter's possible influence, shape (n, k).

        Args:
            degree: Highest power of the ranks of a number. Categories get one column per level instead.
        """
        if self.numeric:
            ranks = self.ranks - self.ranks.mean()
            raw = np.stack([ranks**power for power in range(1, degree + 1)], axis=1)
        else:
            raw = np.stack([[float(v == level) for v in self.values] for level in dict.fromkeys(self.values)], axis=1)
        # Drop columns that follow from the others, such as the last level of a category.
        left, size, _ = np.linalg.svd(raw - raw.mean(axis=0), full_matrices=False)
        return np.asarray(left[:, size > 1e-9 * max(float(size[0]), 1e-12)])


def unvaried(n: int, varied: Sequence[Varied], space: Space) -> list[ParameterEffect]:
    """Return rows for the searched parameters that never varied in n runs."""
    names = {v.name for v in varied}
    return [bare(name, n, EffectVerdict.NEVER_VARIED) for name in space.names if name not in names]


def bare(name: str, n: int, verdict: EffectVerdict) -> ParameterEffect:
    """Return a row that claims nothing about a parameter."""
    return ParameterEffect(parameter=name, n=n, effect=0.0, verdict=verdict)


def varied_parameters(runs: Sequence[RunHistory], space: Space) -> list[Varied]:
    """Return the parameters that differ between runs and may explain an outcome, searched ones first."""
    used = [space.active(run.run.all_parameters) for run in runs]
    others = [n for n, spec in PARAMETERS.items() if not spec.derived and n not in space.names and n not in NO_CAUSE]
    columns = [Varied(name, tuple(p[name] for p in used)) for name in (*space.names, *others)]
    # A parameter that only another parameter switched on and off has not been varied itself.
    settings = [filled(run.run.all_parameters) for run in runs]
    own = {c.name: {s[c.name] for s in settings} if c.name in PARAMETERS else {*c.values} - {None} for c in columns}
    return [c for c in columns if len(set(c.values)) > 1 and len(own[c.name]) > 1]


def run_qualities(runs: Sequence[RunHistory], space: Space) -> Array:
    """Return the quality of each run, shape (n,).

    Runs without a measurement get the lowest quality. With several base models or data sets, the median of each is
    subtracted.
    """
    seen = [q for q in map(best_quality, runs) if q is not None]
    # A run that failed unmeasured counts as the worst. Left out, it would make risky settings look good.
    floor = min([space.failed_quality, *seen])
    values = np.array([floor if (q := best_quality(run)) is None else q for run in runs])
    places = [(run.run.base_model, run.run.dataset) for run in runs]
    if len(set(places)) > 1:
        for place in dict.fromkeys(places):
            here = np.array([p == place for p in places])
            values[here] -= np.median(values[here])
    return values


def importances(varied: Sequence[Varied], outcome: Array) -> dict[str, float]:
    """Return each parameter's share (0-1) of the explained variation, by the impurity decrease of a random forest."""
    columns = [v.ranks[:, None] if v.numeric else v.design(1) for v in varied]
    if not columns:
        return {}
    owner = np.repeat(np.arange(len(varied)), [c.shape[1] for c in columns])
    forest = RandomForestRegressor(n_estimators=100, min_samples_leaf=2, max_features=0.5, random_state=0)
    forest.fit(np.concatenate(columns, axis=1), outcome)
    shares = np.bincount(owner, weights=forest.feature_importances_, minlength=len(varied))
    return {v.name: float(share) for v, share in zip(varied, shares, strict=True)}


def moved_together(varied: Sequence[Varied]) -> dict[str, list[str]]:
    """Return, for each parameter, those that moved with it: canonical correlation of ranks or levels above 0.8."""
    bases = {v.name: v.design(1) for v in varied}
    return {
        a: [
            b
            for b in bases
            if b != a and float(np.linalg.svd(bases[a].T @ bases[b], compute_uv=False)[0]) > _CONFOUNDED
        ]
        for a in bases
    }


def effect_of(
    v: Varied,
    values: Array,
    p: float,
    share: float,
    confounded: tuple[str, ...],
    *,
    outcome: str = "quality",
    rises: bool = True,
) -> ParameterEffect:
    """Return the effect of one parameter on one outcome, as a claim if `p` is small enough.

    Args:
        v: The parameter.
        values: The outcome, shape (n,).
        p: p-value, corrected for the number of tests.
        share: Share of the variation that the parameter explains, 0-1.
        confounded: Parameters that moved together with it.
        outcome: Name of the outcome.
        rises: False if lower is better. The effect is positive for the better side in either case.
    """
    goodness = values if rises else -values
    better, best = better_side(v, goodness)
    low, high = bootstrap_interval(goodness, better)
    verdict = EffectVerdict.NONE_DETECTED
    if p <= SIGNIFICANT:
        verdict = EffectVerdict.CRITICAL if share >= CRITICAL else EffectVerdict.SECONDARY
    return ParameterEffect(
        parameter=v.name,
        outcome=outcome,
        n=len(values),
        spearman=float(np.corrcoef(v.ranks, rankdata(values))[0, 1]) if v.numeric else None,
        pearson=_pearson(v, values),
        by_value=_by_value(v, values, better, best),
        effect=float(goodness[better].mean() - goodness[~better].mean()),
        low=low,
        high=high,
        p_value=p,
        best=best,
        importance=share,
        verdict=verdict,
        confounded_with=confounded,
    )  # fmt: skip


def better_side(v: Varied, outcome: Array) -> tuple[NDArray[np.bool_], str]:
    """Return which runs are on the better side of a parameter, shape (n,), and a text for that side.

    Numbers are split where the two sides differ most, with at least a fifth of the runs on each side if possible.
    A category is compared with all others. Choosing the split biases the difference upwards, but not the p-value,
    which does not use it.
    """
    if not v.numeric:
        levels = {level: np.array([value == level for value in v.values]) for level in dict.fromkeys(v.values)}
        best = max(levels, key=lambda level: float(outcome[levels[level]].mean()))
        return levels[best], text_of(best)
    numbers = np.array([np.nan if x is None else float(x) for x in v.values])
    least = max(2, len(numbers) // 5)
    cuts = np.unique(numbers[~np.isnan(numbers)])
    options = []
    for below, above in itertools.pairwise(cuts):
        left = numbers <= below
        size = min(int(left.sum()), int((~left).sum()))
        gap = float(outcome[left].mean() - outcome[~left].mean())
        # Tuples are compared in order: enough runs on both sides first, then the largest difference.
        options.append((size >= least, abs(gap), gap, below, above))
    _, _, gap, below, above = max(options)
    left = numbers <= below
    return (left, f"<= {text_of(float(below))}") if gap > 0 else (~left, f">= {text_of(float(above))}")


def bootstrap_interval(outcome: Array, better: NDArray[np.bool_]) -> tuple[float, float]:
    """Return the 90 % percentile bootstrap interval of the difference of means between the two sides."""
    # A fixed seed: the same runs must always give the same interval.
    rng = np.random.default_rng(0)
    one, two = outcome[better], outcome[~better]
    means = [side[rng.integers(0, len(side), (_RESAMPLES, len(side)))].mean(axis=1) for side in (one, two)]
    low, high = np.percentile(means[0] - means[1], [5, 95])
    return float(low), float(high)


def _pearson(v: Varied, values: Array) -> float | None:
    """Return the correlation over the runs in which the parameter had an effect; None if it is undefined.

    Parameters on a log scale are correlated by their logarithm.
    """
    if not v.numeric:
        return None
    used = np.array([x is not None for x in v.values])
    numbers = np.array([float(x) for x in v.values if x is not None])
    if PARAMETERS.get(v.name) and PARAMETERS[v.name].log and (numbers > 0).all():
        numbers = np.log(numbers)
    there = values[used]
    if len(numbers) < 3 or np.ptp(numbers) == 0 or np.ptp(there) == 0:
        return None
    return float(np.corrcoef(numbers, there)[0, 1])


def _by_value(v: Varied, values: Array, better: NDArray[np.bool_], best: str) -> dict[str, float]:
    if v.numeric:
        return {best: float(values[better].mean()), "else": float(values[~better].mean())}
    return {
        text_of(level): float(np.mean([y for x, y in zip(v.values, values, strict=True) if x == level]))
        for level in dict.fromkeys(v.values)
    }
