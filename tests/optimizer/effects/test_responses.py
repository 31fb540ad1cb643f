from __future__ import annotations

import numpy as np
import pytest

from optimizer.effects.effects import quality_effects
from schema.findings import Evidence
from schema.runs import RunHistory
from tests.optimizer.worlds import a_run, random_runs, space_of

SPACE = space_of()
CLAIMS = ("critical", "secondary")


def test_what_matters_is_found_and_told_with_its_figures() -> None:
    rows = {row.parameter: row for row in quality_effects(random_runs(SPACE, 30, seed=1), SPACE)}
    assert set(rows) == set(SPACE.names)
    rate = rows["learning_rate"]
    assert rate.verdict == "critical"
    assert rate.n == 30
    assert rate.best.startswith("<= ")
    assert rate.p_value is not None
    assert rate.p_value <= 0.05
    assert rate.low is not None
    assert rate.high is not None
    assert 0 < rate.low <= rate.effect <= rate.high
    assert rate.evidence is Evidence.OBSERVED
    assert rows["caption_dropout_rate"].verdict == "none detected"
    assert rate.importance == max(row.importance or 0 for row in rows.values())
    assert 0.25 <= (rate.importance or 0) <= 1


def test_shuffled_outcomes_support_hardly_any_claim() -> None:
    claims = 0
    for seed in range(40):
        runs = random_runs(SPACE, 16, seed)
        order = np.random.default_rng(seed).permutation(len(runs))
        qualities = [runs[i].run.quality for i in order]
        shuffled = [a_run(i, h.run.all_parameters, q) for i, (h, q) in enumerate(zip(runs, qualities, strict=True))]
        claims += any(row.verdict in CLAIMS for row in quality_effects(shuffled, SPACE))
    assert claims <= 5


def test_few_runs_and_constant_parameters_are_said() -> None:
    runs = [a_run(i, SPACE.complete({"network_dim": 8 + i}), 50.0 + i) for i in range(5)]
    verdicts = {row.parameter: row.verdict for row in quality_effects(runs, SPACE)}
    assert verdicts["network_dim"] == "not enough data"
    assert verdicts["learning_rate"] == "never varied"
    assert quality_effects([], SPACE)[0].verdict == "never varied"


def test_parameters_that_moved_together_are_named_together() -> None:
    runs = [
        a_run(i, SPACE.complete({"network_dim": 8 + i, "caption_dropout_rate": i / 100}), 40.0 + 3 * i)
        for i in range(12)
    ]
    rows = {row.parameter: row for row in quality_effects(runs, SPACE)}
    assert rows["network_dim"].verdict in CLAIMS
    assert rows["network_dim"].confounded_with == ("caption_dropout_rate",)
    assert rows["caption_dropout_rate"].confounded_with == ("network_dim",)


def test_a_peak_inside_counts_as_an_effect() -> None:
    runs = [a_run(i, SPACE.complete({"network_dim": 8 + i}), 70.0 - abs(i - 8) * 4) for i in range(17)]
    (row,) = [r for r in quality_effects(runs, SPACE) if r.parameter == "network_dim"]
    assert row.verdict in CLAIMS


def test_parameters_outside_the_search_are_seen_if_they_varied() -> None:
    runs = [a_run(i, SPACE.complete({}) | {"shuffle_caption": i % 2 == 0}, 60.0 if i % 2 else 40.0) for i in range(12)]
    row = quality_effects(runs, SPACE)[0]
    assert (row.parameter, row.best, row.verdict) == ("shuffle_caption", "false", "critical")
    assert row.effect == pytest.approx(20.0)


def test_qualities_of_other_places_are_not_compared_with_ours() -> None:
    def place(model: str, first: int, dim: int, level: float) -> list[RunHistory]:
        rng = np.random.default_rng(first)
        return [
            a_run(
                first + i, SPACE.complete({"network_dim": dim + i}), level + float(rng.normal(0, 2)), base_model=model
            )
            for i in range(8)
        ]

    mixed = place("a", 0, 8, 30.0) + place("b", 50, 40, 70.0)
    assert all(row.verdict not in CLAIMS for row in quality_effects(mixed, SPACE))
