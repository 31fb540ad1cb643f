"""A trial that goes on after a kill, without Prefect around it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.workspace import lay_out
from flows import wiring
from flows.trial import trial
from flows.wiring import Context
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
