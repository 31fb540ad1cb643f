"""Runs that other homes made of the same campaign: they count, but nobody takes them for their own."""

from __future__ import annotations

import subprocess
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from optuna.trial import TrialState

from demo.workspace import lay_out
from flows.cli.home import as_it_is
from flows.loop import claim, cut_off_trial, open_here, opened, propose, work
from flows.runtime import wiring
from flows.runtime.wiring import Context
from flows.trial import trial
from optimizer.search.study import Proposal
from schema.errors import RowRefusedError, TrialError
from schema.runs import Outcome, RunStatus, TrainingRun
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.portable import export, read_export, restore
from tests.conftest import remove
from tests.tasks.store.postgrest import SECRET_KEY, project


@pytest.fixture
def contexts(
    postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Context, Context]]:
    """One campaign file, open in two homes, each with a database of its own."""
    monkeypatch.setenv("PIXELLOOP_WARM_TRAINER", "false")
    file, opened = str(lay_out(tmp_path)), []
    with wiring.session():
        for home in ("a", "b"):
            url = postgres.ensure_database(f"home_{uuid.uuid4().hex[:12]}")
            monkeypatch.setenv("DATABASE_URL", url)
            opened.append(wiring.open_campaign(file, str(tmp_path / home)))
        yield opened[0], opened[1]


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Context, Context]]:
    """One campaign file, open in two homes that start a database themselves."""
    monkeypatch.setenv("PIXELLOOP_WARM_TRAINER", "false")
    file = str(lay_out(tmp_path))
    with wiring.session():
        yield wiring.open_campaign(file, str(tmp_path / "a")), wiring.open_campaign(file, str(tmp_path / "b"))
    for home in ("a", "b"):
        remove(EmbeddedPostgres(tmp_path / home / "postgres"))


def finish(context: Context, number: int, quality: float) -> TrainingRun:
    """End a trial as if it had been trained."""
    run = context.store.run(context.name, number).changed(
        status=RunStatus.FINISHED, outcome=Outcome.OK, quality=quality, finished_at=datetime.now(UTC)
    )
    context.store.save_run(run)
    context.study.finish(number, Outcome.OK, quality)
    return run


def move(source: Context, target: Context, file: Path) -> None:
    export(source.services.tables, file)
    restore(target.services.tables, read_export(file))


def test_numbers_go_on_after_the_runs_of_an_import(contexts: tuple[Context, Context], tmp_path: Path) -> None:
    old, new = contexts
    runs = [finish(old, propose(old), quality) for quality in (40.0, 86.0)]
    move(old, new, tmp_path / "moved.jsonl")
    number = propose(new)
    assert number == 2
    mine = new.store.run("demo", number)
    assert new.owns(mine)
    assert [run for run in new.store.runs("demo") if run != mine] == runs
    places = new.study.study.trials[:2]
    assert [(t.state, t.value, t.params) for t in places] == [(TrialState.FAIL, None, {})] * 2
    assert new.study.study.trials[2].params.items() <= mine.all_parameters.items()
    assert new.services.store.refused() == []
    assert new.surrogate(new.store.history()).weight > 0  # the imported runs are evidence


def test_a_home_never_trains_a_run_of_another(contexts: tuple[Context, Context], tmp_path: Path) -> None:
    old, new = contexts
    number = propose(old)
    move(old, new, tmp_path / "moved.jsonl")
    before = new.store.run("demo", number)
    with pytest.raises(TrialError, match="demo-000 is a run of another home"):
        trial.fn("demo", str(new.path), str(new.home.root), number)
    assert new.store.run("demo", number) == before


def test_an_open_trial_whose_number_an_import_takes_ends_and_the_budget_counts_all_runs(
    embedded: tuple[Context, Context], tmp_path: Path
) -> None:
    old, new = embedded
    finish(old, propose(old), 50.0)
    cut_off = new.study.ask(home=str(new.home.uid))  # a kill comes before its first row
    earlier_version = new.study.ask()
    assert (cut_off.number, earlier_version.number) == (0, 1)
    finish(old, propose(old), 60.0)
    move(old, new, tmp_path / "moved.jsonl")
    assert work(new, new.file.budget.changed(trials=2)) == "all 2 trials are done"
    assert [t.state for t in new.study.study.trials] == [TrialState.FAIL] * 2


def test_a_number_that_is_taken_between_ask_and_save_is_left_to_the_other_home(
    contexts: tuple[Context, Context], tmp_path: Path
) -> None:
    old, new = contexts
    parameters = new.space.complete({})

    def record(proposal: Proposal) -> TrainingRun:
        if proposal.number == 0:  # the other home is faster
            new.store.save_run(old.new_run(0, parameters))
        return new.new_run(proposal.number, parameters)

    with new.study.alone():
        assert opened(new, new.space.searched(new.space.likely()), record) == 1
    assert [new.owns(run) for run in new.store.runs("demo")] == [False, True]
    assert [t.state for t in new.study.study.trials] == [TrialState.FAIL, TrialState.RUNNING]
    assert new.services.store.refused() == []


def test_two_homes_on_one_project_number_their_runs_apart(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(postgres_url)
    with project(postgres_url) as served:
        monkeypatch.setenv("SUPABASE_URL", served.url)
        monkeypatch.setenv("SUPABASE_KEY", SECRET_KEY)
        monkeypatch.setenv("PIXELLOOP_WARM_TRAINER", "false")
        file = str(lay_out(tmp_path))
        with wiring.session():
            first, second = (wiring.open_campaign(file, str(tmp_path / home)) for home in ("a", "b"))
            numbers = [propose(context) for context in (first, second, first, second)]
            assert numbers == [0, 1, 2, 3]
            assert [first.owns(run) for run in first.store.runs("demo")] == [True, False, True, False]
            assert [c.services.store.refused() for c in (first, second)] == [[], []]
    for home in ("a", "b"):
        remove(EmbeddedPostgres(tmp_path / home / "postgres"))


def test_a_run_whose_row_is_refused_stops_the_campaign(contexts: tuple[Context, Context]) -> None:
    context = contexts[0]
    number = propose(context)
    with psycopg.connect(context.services.database_url) as connection:
        connection.execute("alter table training_runs add constraint no_end check (outcome is null)")
    for caption in context.file.dataset_dir.glob("*.txt"):
        caption.unlink()  # the trainer ends at once
    with pytest.raises(RowRefusedError, match=r"refuses run demo-000.*no_end"):
        trial.fn("demo", str(context.path), str(context.home.root), number)
    assert context.study.is_open(number)


def test_a_copied_home_goes_on_with_what_its_original_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELLOOP_WARM_TRAINER", "false")
    file = str(lay_out(tmp_path))
    with wiring.session():
        original = wiring.open_campaign(file, str(tmp_path / "a"))
        finish(original, propose(original), 50.0)
        assert propose(original) == 1
    subprocess.run(["cp", "-a", str(tmp_path / "a"), str(tmp_path / "b")], check=True)
    with wiring.session():
        copy = wiring.open_campaign(file, str(tmp_path / "b"))
        assert copy.home.uid != original.home.uid
        assert [copy.owns(run) for run in copy.store.runs("demo")] == [True, True]
        assert [proposal.number for proposal in open_here(copy)] == [1]
        claimed = cut_off_trial(copy)
        assert claimed is not None
        claimed[1].release()
        assert propose(copy) == 2
        states = [trial.state for trial in copy.study.study.trials]
        assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.RUNNING]
    for home in ("a", "b"):
        remove(EmbeddedPostgres(tmp_path / home / "postgres"))


def test_a_run_that_nobody_runs_is_shown_as_interrupted(contexts: tuple[Context, Context]) -> None:
    context, other = contexts
    number = propose(context)
    run = context.store.run("demo", number).changed(status=RunStatus.RUNNING)
    context.store.save_run(run)
    context.store.save_run(other.new_run(7, {}).changed(status=RunStatus.RUNNING))  # on another machine
    claimed = claim(context, number)
    assert claimed is not None

    def shown() -> list[RunStatus]:
        return [h.run.status for h in as_it_is(context.services, context.store.history("demo"))]

    assert shown() == [RunStatus.RUNNING, RunStatus.RUNNING]
    claimed[1].release()
    assert shown() == [RunStatus.INTERRUPTED, RunStatus.RUNNING]
    assert context.store.run("demo", number).status is RunStatus.RUNNING  # only shown so
