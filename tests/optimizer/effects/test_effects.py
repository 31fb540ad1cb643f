from __future__ import annotations

import numpy as np
import pytest

from optimizer.effects.effects import quality_effects, survey
from schema.findings import ImpactReport, ParameterEffect
from schema.runs import Outcome, RunHistory
from tests.optimizer.worlds import a_run, metrics, random_runs, space_of

SPACE = space_of()
CLAIMS = ("critical", "secondary")


def row(report: ImpactReport, parameter: str, outcome: str = "quality") -> ParameterEffect:
    return next(e for e in report.effects if (e.parameter, e.outcome) == (parameter, outcome))


def claims(report: ImpactReport) -> set[tuple[str, str]]:
    return {(e.parameter, e.outcome) for e in report.effects if e.verdict in CLAIMS}


def test_quality_and_the_kind_of_failure_are_explained() -> None:
    report = survey(random_runs(SPACE, 40, seed=1), SPACE)
    assert ("learning_rate", "quality") in claims(report)
    assert ("learning_rate", "failed: diverged") in claims(report)
    assert not {parameter for parameter, _ in claims(report)} & {"caption_dropout_rate"}
    failing = row(report, "learning_rate", "failed: diverged")
    assert failing.best.startswith("<=")
    assert failing.pearson is not None
    assert failing.pearson > 0.5
    assert report.tests == len(report.outcomes) * len(SPACE.names)
    assert report.importance["learning_rate"] > 0.3


def test_a_measure_is_told_apart_from_quality() -> None:
    rng = np.random.default_rng(0)
    runs = []
    for i in range(40):
        share = float(rng.uniform(0, 0.2))
        seen = metrics(float(rng.normal(60, 3)), background_accuracy=90 - 300 * share + float(rng.normal(0, 4)))
        runs.append(a_run(i, SPACE.complete({"caption_dropout_rate": share, "network_dim": 8 + i % 5}), epochs=[seen]))
    report = survey(runs, SPACE)
    assert claims(report) == {("caption_dropout_rate", "background_accuracy")}
    assert row(report, "caption_dropout_rate", "background_accuracy").verdict == "critical"


def test_a_strong_parameter_does_not_hide_a_weaker_one() -> None:
    rng = np.random.default_rng(3)
    runs = []
    for i in range(40):
        dim, share = int(rng.choice([8, 64])), float(rng.uniform(0, 0.2))
        quality = 60 - (40 if dim == 64 else 0) - 60 * share + float(rng.normal(0, 2))
        runs.append(a_run(i, SPACE.complete({"network_dim": dim, "caption_dropout_rate": share}), max(quality, 0.0)))
    assert {p for p, o in claims(survey(runs, SPACE)) if o == "quality"} == {"network_dim", "caption_dropout_rate"}


def test_interactions_are_found_where_effects_do_not_add_up() -> None:
    rng = np.random.default_rng(1)
    runs = []
    for i in range(60):
        dim, share = int(rng.choice([8, 16, 32, 64])), float(rng.uniform(0, 0.2))
        quality = 50 + 8 * np.log2(dim / 22) * (1 if share > 0.1 else -0.4) + float(rng.normal(0, 1.5))
        runs.append(a_run(i, SPACE.complete({"network_dim": dim, "caption_dropout_rate": share}), quality))
    (found,) = survey(runs, SPACE).interactions
    assert set(found.parameters) == {"network_dim", "caption_dropout_rate"}


def test_shuffled_outcomes_support_hardly_any_claim() -> None:
    made = 0
    for seed in range(20):
        runs = random_runs(SPACE, 16, seed)
        order = np.random.default_rng(seed).permutation(len(runs))
        shuffled = [
            RunHistory(run=runs[i].run.changed(all_parameters=h.run.all_parameters))
            for i, h in zip(order, runs, strict=True)
        ]
        made += bool(claims(survey(shuffled, SPACE)))
    assert made <= 3


def test_what_cannot_be_said_is_said() -> None:
    few = survey([a_run(i, SPACE.complete({"network_dim": 8 + i}), 50.0 + i) for i in range(4)], SPACE)
    assert row(few, "network_dim").verdict == "not enough data"
    assert row(few, "learning_rate").verdict == "never varied"
    together = [
        a_run(i, SPACE.complete({"network_dim": 8 + i, "caption_dropout_rate": i / 100}), 50.0 + i) for i in range(12)
    ]
    assert row(survey(together, SPACE), "network_dim").confounded_with == ("caption_dropout_rate",)
    assert survey([], SPACE).n_runs == 0


def test_many_runs_are_judged_by_fanova() -> None:
    report = survey(random_runs(SPACE, 60, seed=2), SPACE)
    assert report.importance_by.startswith("fANOVA")
    assert max(report.importance, key=lambda name: report.importance[name]) == "learning_rate"
    assert sum(report.importance.values()) == pytest.approx(1.0)


def test_runs_that_failed_without_a_measure_count_for_nothing_there() -> None:
    runs = random_runs(SPACE, 30, seed=5)
    assert any(h.run.outcome is Outcome.DIVERGED for h in runs)
    assert row(survey(runs, SPACE), "network_dim").n == 30


@pytest.mark.parametrize("n", [8, 16, 40])
def test_the_nights_report_gives_the_same_verdicts(n: int) -> None:
    runs = random_runs(SPACE, n, seed=n)
    of_quality = [row for row in survey(runs, SPACE).effects if row.outcome == "quality"]
    assert list(quality_effects(runs, SPACE)) == of_quality
