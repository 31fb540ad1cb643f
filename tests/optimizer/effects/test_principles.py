from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.effects.principles import in_force, learnt, scope_of, within
from optimizer.search.gate import Gate
from optimizer.search.rules import Rule
from optimizer.search.space import Space
from schema.campaign import GateSettings
from schema.findings import Decision, Evidence, Prediction, Principle
from schema.runs import RunHistory
from tests.optimizer.worlds import START, a_run, campaign_file, space_of

SPACE = space_of()
SCOPE = scope_of("base", "data")


def found(runs: Sequence[RunHistory], known: Sequence[Principle] = ()) -> list[Principle]:
    return learnt(runs, SPACE, known, SCOPE, START + timedelta(days=1))


def runs_by_dim(dims: Sequence[int], limit: int = 32, seed: int = 0) -> list[RunHistory]:
    """Good up to a rank, bad above; the rate is anything."""
    rng = np.random.default_rng(seed)
    return [
        a_run(
            i,
            SPACE.complete({"network_dim": dim, "learning_rate": float(10 ** rng.uniform(-5, -2))}),
            (80.0 if dim <= limit else 40.0) + rng.normal(0, 1),
            campaign=f"night-{i % 2}",
        )
        for i, dim in enumerate(dims)
    ]


DIMS = (4, 8, 8, 16, 16, 24, 32, 32, 16, 48, 64, 64, 96, 128, 128)


def test_a_rule_is_claimed_with_its_counts() -> None:
    (principle,) = found(runs_by_dim(DIMS))
    assert principle.rule == "network_dim <= 32"
    assert (principle.support, principle.exceptions, principle.details.outside) == (9, 0, 6)
    assert principle.sentence == "network_dim <= 32 in 9 of 9 good runs; 0 of 6 others are good"
    assert (principle.state, principle.evidence) == ("proposed", Evidence.OBSERVED)
    assert principle.details.p_value <= 0.05


def test_few_runs_and_outcomes_dealt_at_random_claim_nothing() -> None:
    assert found(runs_by_dim(DIMS[5:12])) == []
    claims = 0
    for seed in range(60):
        runs = runs_by_dim(DIMS, seed=seed)
        order = np.random.default_rng(seed).permutation(len(runs))
        dealt = [
            RunHistory(run=runs[int(i)].run.changed(all_parameters=r.run.all_parameters))
            for r, i in zip(runs, order, strict=True)
        ]
        claims += bool(found(dealt))
    assert claims <= 6  # 3 are expected


def test_a_parameter_that_only_follows_another_is_named_beside_it() -> None:
    runs = [
        RunHistory(run=h.run.changed(all_parameters={**h.run.all_parameters, "network_alpha": float(dim)}))
        for h, dim in zip(runs_by_dim(DIMS), DIMS, strict=True)
    ]
    (principle,) = found(runs)
    assert {Rule.parse(principle.rule).left, *principle.details.together} == {"network_dim", "network_alpha"}
    assert "which changed together" in principle.sentence


def test_a_category_that_is_never_good_is_a_rule() -> None:
    kinds = ["AdamW", "Lion", "Prodigy"] * 6
    runs = [
        a_run(i, SPACE.complete({"optimizer_type": k}), 30.0 if k == "Lion" else 80.0 + i % 3)
        for i, k in enumerate(kinds)
    ]
    assert [p.rule for p in found(runs)] == ["optimizer_type != Lion"]


def test_good_runs_beyond_it_withdraw_a_principle_and_its_limit() -> None:
    runs = runs_by_dim(DIMS)
    (principle,) = found(runs)
    accepted = principle.changed(state="accepted")
    assert in_force([accepted], SCOPE) == ("network_dim <= 32",)
    good = [a_run(50 + i, SPACE.complete({"network_dim": 64 + i}), 81.0) for i in range(3)]
    (told,) = found([*runs, *good], [accepted])
    assert (told.state, told.exceptions) == ("withdrawn", 3)
    assert told.details.against == ("night-050", "night-051", "night-052")
    assert in_force([told], SCOPE) == ()


def pairs(first: int, better: float) -> list[RunHistory]:
    """Four pairs that differ in the rank alone."""
    return [
        a_run(first + 2 * i + k, SPACE.complete({"network_dim": dim, "seed": i}), 70.0 + i / 4 + (better if k else 0.0))
        for i in range(4)
        for k, dim in enumerate((64, 16))
    ]


def test_pairs_that_differ_in_it_alone_test_a_principle() -> None:
    (principle,) = found(runs_by_dim(DIMS))
    (tested,) = found([*runs_by_dim(DIMS), *pairs(50, 20.0)], [principle])
    assert (tested.evidence, tested.details.pairs) == (Evidence.TESTED, 4)
    (refuted,) = found([*runs_by_dim(DIMS), *pairs(50, -30.0)], [principle])
    assert refuted.state == "withdrawn"


def test_what_a_user_dropped_stays_dropped_and_what_was_accepted_keeps_its_limit() -> None:
    (principle,) = found(runs_by_dim(DIMS))
    assert [p.state for p in found(runs_by_dim(DIMS), [principle.changed(state="dropped")])] == ["dropped"]
    tighter = runs_by_dim([d for d in DIMS if d != 32] + [4, 8])
    (kept,) = found(tighter, [principle.changed(state="accepted")])
    assert (kept.rule, kept.state) == ("network_dim <= 32", "accepted")
    (moved,) = found(tighter, [principle])
    assert (moved.rule, moved.uid) == ("network_dim <= 24", principle.uid)


def test_an_accepted_principle_is_a_hard_limit_of_its_scope_alone() -> None:
    (principle,) = found(runs_by_dim(DIMS))
    accepted = principle.changed(state="accepted")
    elsewhere = scope_of("base", "other data")
    assert within([accepted], elsewhere) == []
    assert in_force([accepted], elsewhere) == ()
    bound = Space.of(campaign_file(), in_force([accepted], SCOPE))
    expected = Prediction(quality=70, low=50, high=90, p_fail=0.0, n=9)
    gate = Gate(GateSettings(), bound, 0)
    verdict = gate.judge(bound.complete({"network_dim": 64}), expected, [], 0, 0)
    assert (verdict.decision, verdict.rule) == (Decision.SKIP, "hard_rule")
    assert gate.judge(bound.complete({"network_dim": 32}), expected, [], 0, 0).decision is Decision.RUN


@given(st.lists(st.floats(1e-6, 1e6), min_size=9, max_size=12, unique=True))
def test_a_limit_reads_back_and_parts_the_runs_as_it_was_found(rates: list[float]) -> None:
    middle = float(np.median(rates))
    runs = [
        a_run(i, SPACE.complete({}) | {"noise_offset": rate}, 80.0 if rate <= middle else 20.0)
        for i, rate in enumerate(rates)
    ]
    for principle in found(runs):
        rule = Rule.parse(principle.rule)
        inside = [rule.holds(h.run.all_parameters) for h in runs]
        assert sum(inside) == sum(rate <= middle for rate in rates)


def test_the_same_runs_give_the_same_principles() -> None:
    assert found(runs_by_dim(DIMS)) == found(runs_by_dim(DIMS))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_hardly_any_history_is_no_mistake(count: int) -> None:
    assert found(runs_by_dim(DIMS[:count])) == []
