from __future__ import annotations

from datetime import timedelta

from optimizer.analysis import next_experiments
from optimizer.surrogate import Surrogate
from schema.findings import Hypothesis
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
