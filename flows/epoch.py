"""One epoch: checkpoint -> pictures -> measurements -> store -> Optuna -> go on or stop."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.data_audit import audited
from flows.runtime import progress
from flows.runtime.wiring import Context, open_campaign
from optimizer.control.fidelity import Effort
from optimizer.control.objective import quality_of
from optimizer.control.stopping import should_stop
from optimizer.diagnosis.diagnose import diagnose_epoch
from schema.prompts import PromptSuite
from schema.runs import EpochResult, RunHistory, TrainingRun, epoch_uid

if TYPE_CHECKING:
    from torch import Tensor


@flow(name="epoch", flow_run_name="{campaign} trial {number} epoch {epoch_number}")
def epoch(
    campaign: str,
    campaign_file: str,
    home: str,
    number: int,
    epoch_number: int,
    checkpoint: str,
    train_loss: float | None = None,
    seconds: float | None = None,
) -> str | None:
    """Judge one checkpoint while the trainer already works on the next epoch.

    Returns:
        Why the trial should stop now, or None to go on.
    """
    context = open_campaign(campaign_file, home)
    started = time.monotonic()
    run = context.store.run(campaign, number)
    result = _judged(context, run, epoch_number, Path(checkpoint)).changed(
        train_loss=train_loss,
        seconds=seconds,
        checkpoint=context.home.relative(Path(checkpoint)),
        evaluation_seconds=time.monotonic() - started,
    )
    return keep(context, run, result)


def _judged(context: Context, run: TrainingRun, epoch_number: int, checkpoint: Path) -> EpochResult:
    """A few prompts where the epoch can hardly win; the whole suite else, or where the few came out well."""
    prompts, seeds = len(context.suite.prompts), len(context.suite.seeds)
    sofar = RunHistory(run=run, epochs=tuple(context.store.epochs(run.uid)))
    effort = Effort(context.file.effort, sofar, others_of(context, run), epochs_of(run), prompts, seeds)
    if few := effort.few(epoch_number):
        part = context.suite.part(few)
        pictures = draw(context, checkpoint, run.number, epoch_number, part)
        result = measure_epoch(context, run, epoch_number, pictures, part)
        quality = effort.comparable(result.quantitative_metrics, few)
        if not effort.decides(quality):
            return result.changed(quality=quality)
    return measure_epoch(context, run, epoch_number, draw(context, checkpoint, run.number, epoch_number))


@task(name="draw", cache_policy=NO_CACHE)
def draw(
    context: Context, checkpoint: Path | None, number: int | None, epoch_number: int, part: PromptSuite | None = None
) -> Tensor:
    """Draw the prompt suite and save the pictures and their sheet; the base model if no checkpoint is given."""
    from tasks.sampling.pictures import save_pictures, save_sheet

    suite = part or context.suite
    folder = context.home.base_samples(context.name) if number is None else context.folder(number)
    pictures = context.sampler().draw(suite, checkpoint)
    save_pictures(pictures, suite, folder.samples(epoch_number))
    save_sheet(pictures, suite, folder.sheet(epoch_number))
    return pictures


@task(name="measure", cache_policy=NO_CACHE)
def measure_epoch(
    context: Context, run: TrainingRun, epoch_number: int, pictures: Tensor, part: PromptSuite | None = None
) -> EpochResult:
    """Measure all pictures in one batch and diagnose what is wrong with them."""
    from tasks.metrics.sets import training_pictures, with_set_measures
    from tasks.metrics.suite import as_bytes, measure, summarise
    from tasks.training.dataset import find_pictures

    suite = part or context.suite
    prompts = [p for p in suite.prompts for _ in suite.seeds]
    training = training_pictures(tuple(path for path, _ in find_pictures(context.file.dataset_dir)))
    metrics = summarise(measure(pictures, [p.expectation for p in prompts]))
    metrics = with_set_measures(metrics, as_bytes(pictures), [p.name for p in prompts], training)
    metrics = metrics.changed(share=len(prompts) / (len(context.suite.prompts) * len(context.suite.seeds)))
    issues = diagnose_epoch(metrics, epoch_number, epochs_of(run), run, context.store.history(), audited(context))
    folder = context.home.base_samples(context.name) if epoch_number == 0 else context.folder(run.number)
    return EpochResult(
        uid=epoch_uid(run.uid, epoch_number),
        run_uid=run.uid,
        epoch_number=epoch_number,
        quality=quality_of(metrics),
        sample_sheet=context.home.relative(folder.sheet(epoch_number)),
        quantitative_metrics=metrics,
        diagnosed_issues=issues,
        recommendations=tuple(dict.fromkeys(issue.recommendation for issue in issues)),
        created_at=datetime.now(UTC),
    )


@task(name="keep", cache_policy=NO_CACHE)
def keep(context: Context, run: TrainingRun, result: EpochResult) -> str | None:
    """Store the result, show it in the dashboard, tell Optuna, and ask whether to go on."""
    context.store.save_epoch(result)
    tell_study(context, run, result)
    progress.listener.measured(result)
    sofar = RunHistory(run=run, epochs=tuple(context.store.epochs(run.uid)))
    return should_stop(sofar, others_of(context, run), context.file.stopping, epochs_of(run))


def others_of(context: Context, run: TrainingRun) -> list[RunHistory]:
    """The runs that this one is compared with."""
    return [h for h in context.related() if h.run.uid != run.uid]


def epochs_of(run: TrainingRun) -> int:
    """Epochs that the run is to have."""
    return int(run.all_parameters["max_train_epochs"] or 1)


def tell_study(context: Context, run: TrainingRun, result: EpochResult) -> None:
    """Report an epoch to Optuna and show its pictures in the dashboard; told twice, nothing changes."""
    from tasks.dashboard.annotate import attach_sheet

    if not context.study.is_open(run.number):
        return
    if result.quality is not None:
        context.study.report(run.number, result.epoch_number, result.quality)
    if result.sample_sheet is not None and (sheet := context.home.inside(result.sample_sheet)).exists():
        attach_sheet(context.study.study, run.number, context.home.artifacts, sheet)
