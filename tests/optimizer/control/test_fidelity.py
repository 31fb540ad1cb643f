from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from optimizer.control.fidelity import Effort
from schema.campaign import EffortSettings
from schema.findings import Decision, GateVerdict
from schema.runs import EpochMetrics, RunHistory
from schema.states import GateRule
from tests.optimizer.worlds import a_run, picture

HISTORY = [a_run(i, {"max_train_epochs": 5}, curve=[20 + i, 40 + i, 55, 58 + i, 60 + i]) for i in range(6)]
PROMPTS, SEEDS = 8, 2


def suite(*overall: float, share: float = 1.0) -> EpochMetrics:
    """Measurements of so many prompts, each drawn with all seeds where the whole suite was."""
    seeds = SEEDS if share == 1.0 else 1
    pictures = tuple(picture(q) for q in overall for _ in range(seeds))
    mean = picture(sum(overall) / len(overall))
    return EpochMetrics(mean=mean, share=share, pictures=pictures)


def effort(epochs: Sequence[EpochMetrics], history: Sequence[RunHistory] = HISTORY, few: int = 4) -> Effort:
    run = a_run(50, {"max_train_epochs": 5}, epochs=epochs)
    return Effort(EffortSettings(few_prompts=few), run, history, 5, PROMPTS, SEEDS)


def test_a_half_of_a_paired_test_is_measured_as_well_as_the_other() -> None:
    hopeless = effort([suite(*[4.0] * PROMPTS)])
    verdict = GateVerdict(decision=Decision.RUN, reason="half of a test", rule=GateRule.PAIRED_TEST)
    half = hopeless.run.model_copy(update={"run": hopeless.run.run.changed(verdict=verdict)})
    assert hopeless.few(2)
    assert replace(hopeless, run=half).few(2) == ()


def test_a_few_prompts_over_the_whole_suite_where_the_epoch_cannot_win() -> None:
    assert effort([suite(*[4.0] * PROMPTS)]).few(2) == (0, 2, 5, 7)


@pytest.mark.parametrize(
    ("epochs", "history", "few", "epoch"),
    [
        ([], HISTORY, 4, 1),  # nothing to compare the few with
        ([suite(*[4.0] * PROMPTS)], [], 4, 2),  # nobody knows what is still gained
        ([suite(*[4.0] * PROMPTS)], HISTORY, PROMPTS, 2),  # always all
        ([suite(*[24.0] * PROMPTS), suite(*[44.0] * PROMPTS)], HISTORY, 4, 5),  # on the way of the best
        ([suite(*[70.0] * PROMPTS)], HISTORY, 4, 2),  # the best already
        ([suite(*[4.0] * 5)], HISTORY, 4, 2),  # the suite has changed since
    ],
)
def test_all_of_them_else(epochs: list[EpochMetrics], history: list[RunHistory], few: int, epoch: int) -> None:
    assert effort(epochs, history, few).few(epoch) == ()


def test_one_epoch_short_of_the_best_is_still_drawn_with_few_where_the_next_gains_little() -> None:
    slow = effort([suite(*[24.0] * PROMPTS)])
    assert slow.few(2) != ()  # the others came to 45 by then, the best run to 65
    assert slow.few(5) == ()


def test_the_few_are_moved_to_where_the_whole_suite_would_stand() -> None:
    whole = suite(40.0, 10.0, 40.0, 10.0, 10.0, 40.0, 10.0, 40.0)  # the few are the easy ones
    found = effort([whole])
    few = found.few(2)
    easy = suite(*[45.0] * 4, share=0.25)
    assert found.comparable(easy, few) == pytest.approx(30.0)
    assert found.comparable(EpochMetrics(share=0.25), few) is None


def test_what_may_be_the_best_is_decided_by_all() -> None:
    found = effort([suite(*[30.0] * PROMPTS), suite(*[20.0] * PROMPTS)])
    assert found.decides(64.0)  # the best run has 65
    assert found.decides(None)
    assert not found.decides(31.0)
