"""One trial: train, judge each epoch as it comes, and say how it ended.

The trial owns its truth. Killed and started again under the same number, it resumes the training and
leaves out the epochs that were already measured.
"""

from __future__ import annotations

import errno
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime

from prefect import flow
from prefect.exceptions import TerminationSignal
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
from rich.markup import escape

from flows.data_audit import audited
from flows.epoch import epoch, tell_study
from flows.runtime import interrupt, pause, progress
from flows.runtime.retry import patiently
from flows.runtime.wiring import Context, open_campaign
from optimizer.control.budget import ended_at
from optimizer.control.objective import best_epoch
from optimizer.diagnosis.diagnose import diagnose_run
from schema.errors import PixelloopError, RowRefusedError, StoreUnavailableError, TrialError
from schema.runs import EpochResult, Outcome, RunHistory, RunStatus, TrainingRun
from tasks.store.artifacts import settle
from tasks.training.events import EpochEvent, FailedEvent, FinishedEvent, StartedEvent, StepEvent, WarningEvent
from tasks.training.launch import TrainerProcess


@flow(name="trial", flow_run_name="{campaign} trial {number}")
def trial(campaign: str, campaign_file: str, home: str, number: int) -> str:
    """Run or resume trial `number`, whose record is in the store already.

    Returns:
        The outcome, or *interrupted* where time is up. A failing trial is an outcome, never an error: a night goes on.

    Raises:
        TrialError: the disk is full, which would end all other trials too; this one goes on when there is room. Or
            the run of this number belongs to another home.
        RowRefusedError: the database refuses the run's row, so its result could not be kept.
        StoreUnavailableError: the search's database is away and stays so.
    """
    context = open_campaign(campaign_file, home)
    run = context.store.run(campaign, number).changed(status=RunStatus.RUNNING)
    if not context.owns(run):
        raise TrialError(f"{run.run_name} is a run of another home, which alone can go on with it: start a new trial")
    context.store.save_run(run)
    sitting = _Sitting(pause.time_at_work(), run.time_at_work or 0.0, context.store.history(campaign))
    try:
        ended = sitting.told(_guarded(context, run, sitting))
    except (KeyboardInterrupt, TerminationSignal):
        context.store.save_run(sitting.told(context.store.run(campaign, number).changed(status=RunStatus.INTERRUPTED)))
        raise
    if ended.status is RunStatus.INTERRUPTED:
        context.store.save_run(ended)
        progress.listener.message(f"{run.run_name} waits after epoch {ended.epochs_done}")
        return str(ended.status)
    if ended.outcome is Outcome.DISK_FULL:
        context.store.save_run(sitting.told(run.changed(status=RunStatus.INTERRUPTED)))
        raise TrialError(f"{run.run_name} waits: {ended.failure}")
    return _finish(context, ended, sitting)


@dataclass(frozen=True)
class _Sitting:
    """The time in which this process is at work on a trial.

    Attributes:
        begun: by `pause.time_at_work`.
        before: seconds of earlier sittings.
        history: the campaign's runs when it began.
    """

    begun: float
    before: float
    history: list[RunHistory]

    @property
    def seconds(self) -> float:
        return pause.time_at_work() - self.begun

    @property
    def ends(self) -> datetime:
        return ended_at(datetime.now(UTC), self.seconds, self.history)

    def told(self, run: TrainingRun) -> TrainingRun:
        """The run with the time it has taken until now, all sittings together."""
        worked = round(self.before + self.seconds, 3)
        return run.changed(all_parameters=run.all_parameters | {"time_at_work": worked})


def _guarded(context: Context, run: TrainingRun, sitting: _Sitting) -> TrainingRun:
    """Train; what breaks is the run's end, an interrupt or a database that stays away is not."""
    try:
        return _train(context, run, sitting)
    except (StoreUnavailableError, RowRefusedError):
        raise
    except PixelloopError as error:
        interrupt.raise_if_asked()
        return run.changed(outcome=Outcome.CRASHED, failure=str(error))
    except Exception as error:  # noqa: BLE001 - the one boundary: whatever breaks, the night goes on
        interrupt.raise_if_asked()
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            failure = f"the disk is full, {error.filename} could not be written: make room and start again"
            return run.changed(outcome=Outcome.DISK_FULL, failure=failure)
        context.folder(run.number).traceback.write_text(traceback.format_exc())
        return run.changed(outcome=Outcome.CRASHED, failure=f"{type(error).__name__}: {error}")


def _train(context: Context, run: TrainingRun, sitting: _Sitting) -> TrainingRun:
    """Follow the trainer to its end; judge each checkpoint meanwhile."""
    kept = context.store.epochs(run.uid)
    measured = {e.epoch_number for e in kept}
    for earlier in kept:  # a kill may have come between the store and the study
        tell_study(context, run, earlier)
    total, last_step = 0, 0.0
    with context.trainer(run) as trainer:
        for event in trainer.follow():
            if not pause.may_go_on(context.home, trainer):
                return run.changed(status=RunStatus.INTERRUPTED)
            if isinstance(event, StartedEvent):
                total = event.total_steps
                run = run.changed(all_parameters=run.all_parameters | event.derived)
            elif isinstance(event, StepEvent) and time.monotonic() - last_step > 0.2:
                last_step = time.monotonic()
                progress.listener.stepped(event.step, total, event.epoch, event.loss)
            elif isinstance(event, EpochEvent):
                run = sitting.told(run.changed(epochs_done=event.epoch, total_training_time=event.time_trained))
                context.store.save_run(run)  # a kill may come before its end
                reason = None if event.epoch in measured else _evaluate(context, run, event, trainer)
                if reason is not None:
                    trainer.stop()
                    return run.changed(outcome=Outcome.STOPPED_EARLY, failure=reason)
            elif isinstance(event, WarningEvent):
                progress.listener.message(f"[yellow]{run.run_name}[/] {escape(event.sentence)}")
            elif isinstance(event, FailedEvent):
                return run.changed(outcome=event.outcome, failure=event.sentence)
            elif isinstance(event, FinishedEvent):
                run = run.changed(outcome=Outcome.OK, peak_memory_mb=event.peak_memory_mb)
    return run


def _evaluate(context: Context, run: TrainingRun, event: EpochEvent, trainer: TrainerProcess) -> str | None:
    """Judge an epoch beside the next one's training, or in its place where the device has no memory for both."""
    if context.file.campaign.evaluation == "overlap":
        return _judge(context, run, event)
    trainer.stop()
    reason = _judge(context, run, event)
    context.sampler().release()
    if reason is None:
        trainer.resume()
    return reason


def _judge(context: Context, run: TrainingRun, event: EpochEvent) -> str | None:
    # Prefect's heartbeat would hold each sync subflow open for a second after its end.
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}):
        return patiently(
            lambda: epoch(
                campaign=context.name,
                campaign_file=str(context.path),
                home=str(context.home.root),
                number=run.number,
                epoch_number=event.epoch,
                checkpoint=event.checkpoint,
                train_loss=event.loss,
                seconds=event.seconds,
            )
        )


def _finish(context: Context, run: TrainingRun, sitting: _Sitting) -> str:
    """Write the end of a run everywhere it is kept, the store last told nothing that it has not."""
    epochs = tuple(context.store.epochs(run.uid))
    run = _with_best(run, epochs)
    ended = RunHistory(run=run, epochs=epochs)
    diagnoses = diagnose_run(ended, context.store.history(), context.space, audited(context))
    run = run.diagnosed(diagnoses).changed(status=RunStatus.FINISHED, finished_at=sitting.ends)
    context.store.save_run(run)
    _settle(context, run, epochs)
    outcome = run.outcome or Outcome.CRASHED
    context.study.finish(run.number, outcome, run.quality)
    progress.listener.trial_finished(run)
    return str(outcome)


def _settle(context: Context, run: TrainingRun, epochs: tuple[EpochResult, ...]) -> None:
    """Keep the run's files; what goes wrong with them is told and costs nothing else."""
    try:
        settle(
            context.store, context.services.objects, context.home, run, epochs, context.file.retention.best_checkpoints
        )
    except PixelloopError as error:
        progress.listener.message(f"[red]files of {run.run_name}[/]: {escape(str(error))}")


def _with_best(run: TrainingRun, epochs: tuple[EpochResult, ...]) -> TrainingRun:
    best = best_epoch(RunHistory(run=run, epochs=epochs).curve)
    if best is None:
        return run
    checkpoint = next(e.checkpoint for e in epochs if e.epoch_number == best[0])
    return run.changed(best_epoch=best[0], quality=best[1], best_checkpoint=checkpoint)
