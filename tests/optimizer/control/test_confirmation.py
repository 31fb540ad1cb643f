from __future__ import annotations

from optimizer.control.confirmation import crowned, repeats_due
from schema.runs import Outcome
from tests.optimizer.worlds import a_run, space_of

SPACE = space_of()
ONCE = [a_run(i, SPACE.complete({"learning_rate": 1e-4 * (i + 1)}), q) for i, q in enumerate([60.0, 71.0, 70.0, 50.0])]


def test_the_best_and_what_is_close_to_it_is_run_again_with_another_seed() -> None:
    due = repeats_due(ONCE, SPACE, 3)
    assert [source.run.number for source, _ in due] == [1, 2]
    assert [again["learning_rate"] for _, again in due] == [s.run.all_parameters["learning_rate"] for s, _ in due]
    assert [again["seed"] for _, again in due] == [1, 1]
    assert [source.run.number for source, _ in repeats_due(ONCE, SPACE, 1)] == [1]
    assert repeats_due([], SPACE, 2) == []
    assert repeats_due([a_run(0, SPACE.complete({}), 70.0, Outcome.STOPPED_EARLY)], SPACE, 2) == []


def test_the_crown_goes_to_the_better_mean() -> None:
    assert crowned(ONCE, SPACE) == ONCE[1]
    due = repeats_due(ONCE, SPACE, 2)
    again = [a_run(9 + i, due[i][1], quality) for i, quality in enumerate((62.0, 69.0))]
    assert crowned([*ONCE, *again], SPACE) == ONCE[2]
    assert repeats_due([*ONCE, *again], SPACE, 2) == []
    assert crowned([], SPACE) is None
