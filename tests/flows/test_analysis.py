"""What is learnt after a trial, in a real home."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.workspace import lay_out
from flows.analysis import keep_diagnoses
from flows.runtime import wiring
from schema.runs import Outcome, RunStatus
from tests.conftest import remove
from tests.optimizer.worlds import START

RATES = (0.05, 0.001, 0.0012, 0.0015, 0.002)


@pytest.fixture
def context(tmp_path: Path) -> Iterator[wiring.Context]:
    """A campaign whose first run was spoilt by its learning rate, and the good ones that came later."""
    file = lay_out(tmp_path)
    with wiring.session():
        context = wiring.open_campaign(str(file), str(tmp_path))
        context.store.save_campaign(context.name, {}, "running")
        for number, rate in enumerate(RATES):
            run = context.new_run(number, context.space.complete({"learning_rate": rate})).changed(
                status=RunStatus.FINISHED, outcome=Outcome.OK, quality=80.0 if number else 20.0, started_at=START,
                finished_at=START,
            )  # fmt: skip
            context.store.save_run(run)
        embedded = context.services.embedded
        yield context
    assert embedded is not None
    remove(embedded)


def test_later_runs_tell_what_was_wrong_with_earlier_ones(context: wiring.Context) -> None:
    def spoilt() -> str:
        return " ".join(d.cause for d in context.store.run(context.name, 0).root_cause_diagnosis)

    assert spoilt() == ""
    keep_diagnoses(context)
    assert "learning_rate = 0.05 where 4 healthy runs have 0.001 to 0.002" in spoilt()
    assert "set learning_rate" in context.store.run(context.name, 0).recommended_next_steps[0]
    assert context.store.run(context.name, 1).root_cause_diagnosis == ()


def test_a_run_that_goes_on_is_left_alone(context: wiring.Context) -> None:
    running = context.new_run(9, context.space.complete({"learning_rate": 0.09}))
    context.store.save_run(running)
    keep_diagnoses(context)
    assert context.store.run(context.name, 9) == running
