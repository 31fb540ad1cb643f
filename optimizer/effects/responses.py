"""Which parameters moved the quality: effect, interval, and a p-value that is honest about how many were tried."""

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
SIGNIFICANT = 0.05
CRITICAL = 0.25
"""Share of the variation from which on a claim is critical."""
_CONFOUNDED = 0.8
NO_CAUSE = frozenset(("seed", "save_every_n_epochs", "caption_extension", "save_precision"))
"""Parameters that vary but are no explanation of quality."""


@dataclass(frozen=True)
class Varied:
    """One parameter over n runs."""

    name: str
    values: tuple[ParameterValue, ...]  # None where it had no effect

    @property
    def numeric(self) -> bool:
        """Whether all its values are numbers, and several."""
        used = {v for v in self.values if v is not None}
        return len(used) > 1 and all(isinstance(v, int | float) and not isinstance(v, bool) for v in used)

    @property
    def ranks(self) -> Array:
        """Ranks of a numeric parameter, those without effect in the middle."""
        used = np.array([v is not None for v in self.values])
        ranks = np.full(len(self.values), (used.sum() + 1) / 2)
        ranks[used] = rankdata([float(v) for v in self.values if v is not None])
        return ranks

    def design(self, degree: int) -> Array:
        """Orthonormal centred columns that span the parameter's possible influence: shape (n, k)."""
        if self.numeric:
            ranks = self.ranks - self.ranks.mean()
            raw = np.stack([ranks**power for power in range(1, degree + 1)], axis=1)
        else:
            raw = np.stack([[float(v == level) for v in self.values] for level in dict.fromkeys(self.values)], axis=1)
        left, size, _ = np.linalg.svd(raw - raw.mean(axis=0), full_matrices=False)
        return np.asarray(left[:, size > 1e-9 * max(float(size[0]), 1e-12)])


def unvaried(n: int, varied: Sequence[Varied], space: Space) -> list[ParameterEffect]:
    """The searched parameters that never varied over n runs, said to be so."""
    names = {v.name for v in varied}
    return [bare(name, n, EffectVerdict.NEVER_VARIED) for name in space.names if name not in names]


def bare(name: str, n: int, verdict: EffectVerdict) -> ParameterEffect:
    """Return a row that claims nothing about a parameter."""
    return ParameterEffect(parameter=name, n=n, effect=0.0, verdict=verdict)


def varied_parameters(runs: Sequence[RunHistory], space: Space) -> list[Varied]:
    """The parameters that differ between runs and may explain something, the searched ones first."""
    used = [space.active(run.run.all_parameters) for run in runs]
    others = [n for n, spec in PARAMETERS.items() if not spec.derived and n not in space.names and n not in NO_CAUSE]
    columns = [Varied(name, tuple(p[name] for p in used)) for name in (*space.names, *others)]
    # A parameter that another one switches on and off has not been varied itself.
    settings = [filled(run.run.all_parameters) for run in runs]
    own = {c.name: {s[c.name] for s in settings} if c.name in PARAMETERS else {*c.values} - {None} for c in columns}
    return [c for c in columns if len(set(c.values)) > 1 and len(own[c.name]) > 1]


def run_qualities(runs: Sequence[RunHistory], space: Space) -> Array:
    """Quality of each run, less the median of its base model and data set where there are several: shape (n,)."""
    seen = [q for q in map(best_quality, runs) if q is not None]
    floor = min([space.failed_quality, *seen])
    values = np.array([floor if (q := best_quality(run)) is None else q for run in runs])
    places = [(run.run.base_model, run.run.dataset) for run in runs]
    if len(set(places)) > 1:
        for place in dict.fromkeys(places):
            here = np.array([p == place for p in places])
            values[here] -= np.median(values[here])
    return values


def importances(varied: Sequence[Varied], outcome: Array) -> dict[str, float]:
    """Share of the explained variation (0-1) by a random forest's decrease in impurity."""
    columns = [v.ranks[:, None] if v.numeric else v.design(1) for v in varied]
    if not columns:
        return {}
    owner = np.repeat(np.arange(len(varied)), [c.shape[1] for c in columns])
    forest = RandomForestRegressor(n_estimators=100, min_samples_leaf=2, max_features=0.5, random_state=0)
    forest.fit(np.concatenate(columns, axis=1), outcome)
    shares = np.bincount(owner, weights=forest.feature_importances_, minlength=len(varied))
    return {v.name: float(share) for v, share in zip(varied, shares, strict=True)}


def moved_together(varied: Sequence[Varied]) -> dict[str, list[str]]:
    """Parameters that moved together, by their canonical correlation (of ranks, or category membership)."""
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
    twins: tuple[str, ...],
    *,
    outcome: str = "quality",
    rises: bool = True,
) -> ParameterEffect:
    """One parameter's effect on one outcome, claimed where p is small enough.

    Args:
        v: the parameter.
        values: (n,) of the outcome.
        p: corrected for the number of tests.
        share: of the variation that the parameter explains, 0-1.
        twins: parameters that moved together with it.
        outcome: its name.
        rises: False where lower is better; the effect is positive for the better side all the same.
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
        confounded_with=twins,
    )  # fmt: skip


def better_side(v: Varied, outcome: Array) -> tuple[NDArray[np.bool_], str]:
    """The runs on the better side of the parameter, and where that is.

    Numbers are split where the sides differ most, each side with a fifth of the runs if that can be; a
    category is set against all others. The difference is therefore on the high side; the p-value is not.
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
        options.append((size >= least, abs(gap), gap, below, above))
    _, _, gap, below, above = max(options)
    left = numbers <= below
    return (left, f"<= {text_of(float(below))}") if gap > 0 else (~left, f">= {text_of(float(above))}")


def bootstrap_interval(outcome: Array, better: NDArray[np.bool_]) -> tuple[float, float]:
    """90 % percentile bootstrap interval of the difference of means, within the two sides."""
    rng = np.random.default_rng(0)
    one, two = outcome[better], outcome[~better]
    means = [side[rng.integers(0, len(side), (_RESAMPLES, len(side)))].mean(axis=1) for side in (one, two)]
    low, high = np.percentile(means[0] - means[1], [5, 95])
    return float(low), float(high)


def _pearson(v: Varied, values: Array) -> float | None:
    """Correlation of values over the runs that used the parameter, of logs where its scale is one."""
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
