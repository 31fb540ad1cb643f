"""A trial that goes on after a kill, without Prefect around it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from demo.workspace import lay_out
from flows.runtime import wiring
from flows.runtime.wiring import Context
from flows.trial import trial
from optimizer.control.budget import hours_used
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove
from tests.tasks.store.store_contract import make_epoch


@pytest.fixture
def context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    monkeypatch.setenv("PIXELLOOP_WARM_TRAINER", "false")
    with wiring.session():
        yield wiring.open_campaign(str(lay_out(tmp_path)), str(tmp_path / "home"))
    remove(EmbeddedPostgres(tmp_path / "home" / "postgres"))


def test_an_epoch_that_the_study_was_not_told_of_before_a_kill_is_told_now(context: Context) -> None:
    number = context.study.ask().number
    run = context.new_run(number, context.space.complete({}))
    context.store.save_run(run)
    context.store.save_epoch(make_epoch(run, 1))  # the kill comes here
    for caption in context.file.dataset_dir.glob("*.txt"):
        caption.unlink()  # the trainer ends at once
    assert trial.fn("demo", str(context.path), str(context.home.root), number) == "bad data"
    assert context.study.study.trials[number].intermediate_values == {1: make_epoch(run, 1).quality}


def test_the_day_that_a_run_waits_for_its_second_night_is_no_time_at_work(context: Context) -> None:
    number = context.study.ask().number
    run = context.new_run(number, context.space.complete({}) | {"time_at_work": 3600.0})  # of its first night
    context.store.save_run(run.changed(started_at=run.started_at - timedelta(hours=15)))
    for caption in context.file.dataset_dir.glob("*.txt"):
        caption.unlink()  # the trainer ends at once
    trial.fn("demo", str(context.path), str(context.home.root), number)
    assert 1.0 < hours_used(context.store.history("demo")) < 1.1
