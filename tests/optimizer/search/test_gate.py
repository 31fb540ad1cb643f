from __future__ import annotations

import numpy as np
import pytest

from optimizer.search.gate import Gate
from optimizer.search.surrogate import Surrogate
from schema.campaign import GateSettings
from schema.findings import Decision, GateVerdict, Prediction
from schema.parameters import Parameters
from schema.runs import Outcome, RunHistory
from tests.optimizer.worlds import a_run, peak, random_runs, space_of

SPACE = space_of(rules=("network_dim <= 64",))
STRICT = GateSettings(audit_share=0.0)


def risk(p_fail: float, quality: float = 50.0) -> Prediction:
    return Prediction(quality=quality, low=0, high=100, p_fail=p_fail, n=9, nearest=("night-001",))


def judge(
    parameters: Parameters,
    history: list[RunHistory],
    p_fail: float = 0.1,
    settings: GateSettings = STRICT,
    number: int = 0,
    skips: int = 0,
) -> GateVerdict:
    return Gate(settings, SPACE, 0).judge(SPACE.complete(parameters), risk(p_fail), history, number, skips)


def rated(rates: list[float], start: int = 0) -> list[RunHistory]:
    """Runs that differ in their learning rate only; above 1e-2 they diverge."""
    runs = []
    for i, rate in enumerate(rates):
        runs.append(a_run(start + i, SPACE.complete({"learning_rate": rate}), None if rate > 1e-2 else 60.0))
    return runs


CLIFF = rated([1e-5, 1e-4, 1e-3, 5e-3, 2e-2, 3e-2, 5e-2])


def test_a_hard_rule_is_never_overruled() -> None:
    gate = GateSettings(audit_share=1.0, enabled=False)
    verdict = judge({"network_dim": 128}, [], settings=gate, skips=99)
    assert (verdict.decision, verdict.rule) == (Decision.SKIP, "hard_rule")
    assert verdict.reason == "the rule 'network_dim <= 64' does not hold: network_dim is 128"


def test_beyond_what_ever_worked_is_refused_with_evidence_to_check() -> None:
    verdict = judge({"learning_rate": 4e-2}, CLIFF)
    assert (verdict.decision, verdict.rule) == (Decision.SKIP, "known_failure")
    assert verdict.reason == (
        "3 of 3 runs with learning_rate >= 0.02 failed: diverged; highest that worked: 0.005"
    )  # fmt: skip
    assert verdict.evidence == ("night-004", "night-005", "night-006")
    assert judge({"learning_rate": 8e-3}, CLIFF).decision is Decision.RUN


def test_a_single_failure_or_failures_everywhere_blame_no_value() -> None:
    assert judge({"learning_rate": 4e-2}, CLIFF[:5]).decision is Decision.RUN
    dims = [a_run(i, SPACE.complete({"network_dim": 10 + i}), 60.0 if i % 2 else None) for i in range(12)]
    assert judge({"network_dim": 9}, dims).decision is Decision.RUN


def test_a_category_in_which_all_failed_is_refused() -> None:
    settings = [{"optimizer_type": "Lion" if i < 4 else "AdamW", "network_dim": 8 + i} for i in range(12)]
    runs = [a_run(i, SPACE.complete(s), 5.0 if i < 4 else 60.0) for i, s in enumerate(settings)]
    verdict = judge({"optimizer_type": "Lion", "network_dim": 60}, runs)
    assert verdict.rule == "known_failure"
    assert "optimizer_type = Lion failed: low quality; 8 of 8" in verdict.reason


def test_the_same_training_is_not_run_twice() -> None:
    good, bad = rated([1e-3, 2e-2])
    assert judge({"learning_rate": 1e-3}, [good, bad]).rule == "known_result"
    assert judge({"learning_rate": 2e-2}, [good, bad]).rule == "known_failure"
    assert judge({"learning_rate": 1e-3, "seed": 5}, [good, bad]).decision is Decision.RUN
    crashed = a_run(7, SPACE.complete({"learning_rate": 1e-4}), outcome=Outcome.CRASHED)
    assert judge({"learning_rate": 1e-4}, [crashed]).decision is Decision.RUN


def test_predictions_refuse_only_with_enough_runs() -> None:
    runs = random_runs(SPACE, 5, seed=0)
    verdict = judge({}, runs, p_fail=0.9)
    assert verdict.rule == "predicted_failure"
    assert "90%" in verdict.reason
    assert "night-001" in verdict.reason
    assert judge({}, runs[:4], p_fail=0.9).decision is Decision.RUN
    assert judge({}, runs, p_fail=0.3).decision is Decision.RUN
    assert judge({}, runs, p_fail=0.9, settings=GateSettings(enabled=False)).decision is Decision.RUN


def test_some_refusals_run_as_an_audit_and_always_the_same_ones() -> None:
    gate = GateSettings(audit_share=0.2)
    rules = [judge({"learning_rate": 4e-2}, CLIFF, settings=gate, number=n).rule for n in range(200)]
    assert rules == [judge({"learning_rate": 4e-2}, CLIFF, settings=gate, number=n).rule for n in range(200)]
    assert 20 <= rules.count("audit") <= 60
    assert judge({"learning_rate": 5e-2}, CLIFF, settings=GateSettings(audit_share=1.0)).decision is Decision.SKIP


def test_after_many_refusals_one_runs() -> None:
    verdict = judge({"learning_rate": 4e-2}, CLIFF, skips=STRICT.max_skips_in_a_row)
    assert (verdict.decision, verdict.rule) == (Decision.RUN, "least_bad")
    assert "3 of 3 runs" in verdict.reason


@pytest.mark.parametrize(("n", "cut"), [(20, 0.3), (50, 0.6)])
def test_failures_are_cut_and_good_settings_spared(n: int, cut: float) -> None:
    refused_bad, refused_good = [], []
    space = space_of()
    for seed in range(4):
        history = random_runs(space, n, seed)
        model = Surrogate.fit(history, space, 20.0, "base", "data")
        gate = Gate(STRICT, space, 0)
        rng = np.random.default_rng([seed, 1])
        for number in range(120):
            parameters = space.complete(space.at(rng.random(len(space.names))))
            verdict = gate.judge(parameters, model.predict(parameters), history, number, 0)
            quality = peak(parameters)
            if quality is None or quality < 20:
                refused_bad.append(verdict.decision is Decision.SKIP)
            elif quality > 65:
                refused_good.append(verdict.decision is Decision.SKIP)
    assert np.mean(refused_bad) >= cut
    assert np.mean(refused_good) <= 0.05
