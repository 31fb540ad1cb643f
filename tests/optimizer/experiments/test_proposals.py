from __future__ import annotations

from datetime import timedelta

import pytest

from optimizer.experiments.proposals import next_experiments
from optimizer.search.surrogate import Surrogate
from schema.findings import AuditFinding, DataAudit, Hypothesis, Level
from schema.runs import RunHistory
from tests.optimizer.worlds import START, a_run, peak, random_runs, space_of

SPACE = space_of(rules=("network_dim <= 64",))


def proposals(history: list[RunHistory], day: int = 0) -> tuple[Hypothesis, ...]:
    model = Surrogate.fit(history, SPACE, 20.0, "base", "data")
    return next_experiments(history, SPACE, model, "night", START + timedelta(days=day))


def test_experiments_change_little_break_no_rule_and_repeat_nothing() -> None:
    history = random_runs(SPACE, 15, seed=2)
    found = proposals(history)
    best = max((h for h in history if h.run.quality is not None), key=lambda h: h.run.quality or 0)
    assert [h.priority for h in found] == [1, 2, 3]
    for hypothesis in found:
        assert 1 <= len(hypothesis.change) <= 2
        assert SPACE.violations(hypothesis.parameters) == []
        assert SPACE.problems(SPACE.searched(hypothesis.parameters)) == []
        kept = set(SPACE.names) - set(hypothesis.change)
        assert all(hypothesis.parameters[name] == best.run.all_parameters[name] for name in kept)
        assert best.run.run_name in hypothesis.rationale
        assert hypothesis.expected.p_fail < 0.6
    assert len({frozenset(h.change) for h in found}) == 3


def test_the_same_experiment_keeps_its_identity() -> None:
    history = random_runs(SPACE, 15, seed=2)
    assert [h.uid for h in proposals(history)] == [h.uid for h in proposals(history, day=1)]


def test_following_the_experiments_climbs_to_the_peak() -> None:
    history = random_runs(SPACE, 8, seed=5)
    for number in range(100, 112):
        first = proposals(history)[0]
        history.append(a_run(number, first.parameters, peak(first.parameters)))
    assert max(h.run.quality or 0 for h in history) > 78


def test_nothing_is_proposed_before_something_was_measured() -> None:
    assert proposals([]) == ()
    assert proposals([a_run(0, SPACE.complete({}))]) == ()


def test_a_best_run_from_outside_the_space_is_moved_into_it() -> None:
    far = a_run(0, SPACE.complete({"network_dim": 256}), 70.0)
    for hypothesis in proposals([far]):
        assert SPACE.problems(SPACE.searched(hypothesis.parameters)) == []


def test_an_experiment_says_what_it_costs_and_what_should_be_done_first() -> None:
    timed = [
        RunHistory(run=h.run.changed(num_images=12, total_training_time=360.0, epochs_done=10))
        for h in random_runs(SPACE, 15, seed=2)
    ]
    finding = AuditFinding(check="few_pictures", level=Level.WARNING, sentence="12 pictures are few")
    audit = DataAudit(dataset="data", pictures=12, findings=(finding,))
    model = Surrogate.fit(timed, SPACE, 20.0, "base", "data")
    found = next_experiments(timed, SPACE, model, "night", START, count=200, audit=audit)
    assert all(h.gpu_hours == pytest.approx(0.1) for h in found)
    best = max((h for h in timed if h.run.quality is not None), key=lambda h: h.run.quality or 0)
    rank = float(best.run.all_parameters["network_dim"] or 0)
    for hypothesis in found:
        wider = float(hypothesis.parameters["network_dim"] or 0) > rank
        assert bool(hypothesis.blockers) is wider
    assert any(h.blockers for h in found)
    assert all(h.gpu_hours is None and not h.blockers for h in proposals(random_runs(SPACE, 15, seed=2)))


def test_nothing_is_proposed_where_an_ill_run_is_nearer_than_the_healthy_ones() -> None:
    rates = {1e-3: 80.0, 2e-3: 82.0, 5e-4: 81.0, 8e-4: 80.5, 2e-5: 30.0, 5e-2: 25.0}
    history = [
        a_run(i, SPACE.complete({"learning_rate": rate, "network_dim": 16}), quality)
        for i, (rate, quality) in enumerate(rates.items())
    ]
    model = Surrogate.fit(history, SPACE, 20.0, "base", "data")
    found = next_experiments(history, SPACE, model, "night", START, count=200)
    proposed = [float(h.change["learning_rate"] or 0) for h in found if "learning_rate" in h.change]
    assert proposed
    assert min(proposed) >= 0.99e-4  # half the way, on a log scale, from 5e-4 to 2e-5
    assert max(proposed) <= 1.01e-2


def test_proposals_are_made_against_the_best_run_that_has_what_the_campaign_fixes() -> None:
    history = random_runs(SPACE, 15, seed=2)
    half = a_run(90, SPACE.complete({"network_dim": 16}) | {"caption_tag_dropout_rate": 0.3}, 99.0)
    best = max((h for h in history if h.run.quality is not None), key=lambda h: h.run.quality or 0)
    assert all(best.run.run_name in h.rationale.split(":")[0] for h in proposals([*history, half]))
