"""After each trial: what matters, why it failed, what to try next; into store, dashboard and report."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.data_audit import audited
from flows.runtime import progress
from flows.runtime.wiring import Context, open_campaign
from optimizer.control.confirmation import crowned
from optimizer.diagnosis.diagnose import diagnose_epoch, diagnose_run
from optimizer.effects.effects import quality_effects
from optimizer.effects.principles import learnt, scope_of, within
from optimizer.experiments.proposals import next_experiments
from optimizer.experiments.queue import known, settled
from schema.errors import NotFoundError, StoreError
from schema.findings import Analysis, Diagnosis, Hypothesis, Principle
from schema.runs import RunHistory, TrainingRun
from schema.states import HypothesisState, PrincipleState
from tasks.home import copy_atomically


@flow(name="analysis", flow_run_name="{campaign} analysis")
def analysis(campaign: str, campaign_file: str, home: str, number: int | None = None) -> None:
    """Learn from the history and show it; `number` is the trial that has just ended."""
    context = open_campaign(campaign_file, home)
    for changed in keep_diagnoses(context):
        note_trial(context, changed)
    found = learn(context)
    context.store.save_analysis(found)
    keep_hypotheses(context, found.hypotheses)
    keep_principles(context)
    if number is not None:
        run = context.store.run(campaign, number)
        context.store.save_parameter_analysis(run.uid, found.effects)
        note_trial(context, run)
    show(context, found)


def keep_diagnoses(context: Context) -> list[TrainingRun]:
    """Hold what was said of the campaign's ended runs against what is known now: later runs show what it was.

    Returns:
        The runs of which something else is said now.
    """
    history, audit = context.store.history(), audited(context)
    again = []
    for earlier in history:
        if earlier.run.campaign != context.name or earlier.run.finished_at is None:
            continue
        run = earlier.run.diagnosed(diagnose_run(earlier, history, context.space, audit))
        if run != earlier.run:
            context.store.save_run(run)
            again.append(run)
    return again


def keep_hypotheses(context: Context, proposals: Sequence[Hypothesis]) -> None:
    """Replace what was proposed, settle what was run, and leave the queue as it is."""
    kept = settled(context.store.hypotheses(context.name), context.store.history(context.name), context.space)
    kept = [h for h in kept if h.state != HypothesisState.PROPOSED]
    fresh = [h for h in proposals if h.uid not in known(kept)]
    if kept or fresh:
        context.store.save_hypotheses([*kept, *fresh])


def keep_principles(context: Context) -> None:
    """Hold the principles against all runs on this model and data, of any campaign; what changed is told."""
    scope = scope_of(context.file.base_model, context.dataset)
    with context.services.alone_with_principles():
        before = {p.uid: p for p in principles_now(context)}
        found = learnt(context.related(), context.space, list(before.values()), scope, datetime.now(UTC))
        for one in found:
            if one != before.get(one.uid):
                context.store.save_principle(one)
    for one in found:
        known = before.get(one.uid)
        if known is None:
            progress.listener.message(f"a principle: {one.sentence}; see 'pixelloop principles'")
        elif one.state == PrincipleState.WITHDRAWN != known.state:
            progress.listener.message(f"the principle '{one.rule}' is withdrawn: {one.sentence}")


def principles_now(context: Context) -> list[Principle]:
    """The principles of the campaign's model and data, in the order in which they were found."""
    return within(context.store.principles(), scope_of(context.file.base_model, context.dataset))


def learn(context: Context) -> Analysis:
    """What the campaign's history says now."""
    history, now = context.store.history(context.name), datetime.now(UTC)
    surrogate = context.surrogate(history)
    return Analysis(
        campaign=context.name,
        n_runs=len(history),
        effects=quality_effects(history, context.space),
        hypotheses=next_experiments(history, context.space, surrogate, context.name, now, audit=audited(context)),
        created_at=now,
    )


def diagnosed(context: Context, run: RunHistory, epoch: int | None) -> tuple[Diagnosis, ...]:
    """What is wrong with a run, or with one epoch of it, by all that is known now.

    Raises:
        NotFoundError: the epoch was not measured; the message lists those that were.
    """
    history, audit = context.store.history(), audited(context)
    if epoch is None:
        return diagnose_run(run, history, context.space, audit)
    for one in run.epochs:
        if one.epoch_number == epoch:
            total = int(run.run.all_parameters["max_train_epochs"] or 1)
            return diagnose_epoch(one.quantitative_metrics, epoch, total, run.run, history, audit)
    known = ", ".join(str(e.epoch_number) for e in run.epochs) or "none"
    raise NotFoundError(f"epoch {epoch} of {run.run.run_name} was not measured: there is {known}")


def note_trial(context: Context, run: TrainingRun) -> None:
    """Write the trial's note in the dashboard; a run of another home's study has no trial there."""
    if not context.study.holds(run.number):
        return
    from tasks.dashboard.annotate import annotate_trial
    from tasks.reports.markdown import trial_note

    note = trial_note(run, context.store.epochs(run.uid))
    annotate_trial(context.study.study, run.number, context.home.artifacts, note)


def night_note(context: Context) -> str:
    """The campaign as the dashboard and Prefect's UI show it, in Markdown."""
    return _note(context, context.store.latest_analysis(context.name) or learn(context))


def _note(context: Context, found: Analysis) -> str:
    from tasks.reports.markdown import campaign_note

    history = context.store.history(context.name)
    return campaign_note(
        history, found, context.services.ledger(context.name, history), context.base(), principles_now(context)
    )


def show(context: Context, found: Analysis) -> Path:
    """Write the campaign's note and report, and lay the best LoRA where it is easily found.

    Returns:
        The path of the report.
    """
    from tasks.dashboard.annotate import annotate_study
    from tasks.reports.charts import calibration, quality_curves
    from tasks.reports.html import write_report

    history, base = context.store.history(context.name), context.base()
    principles = principles_now(context)
    best = crowned(history, context.space)
    curves = quality_curves(history, base, best.run.run_name if best else None)
    plots = {"quality-by-epoch": curves, "predicted-and-measured": calibration(history)}
    annotate_study(context.study.study, _note(context, found), plots)
    if best is not None and best.run.best_checkpoint is not None:
        with contextlib.suppress(FileNotFoundError, StoreError):  # rows of another home came without their files
            copy_atomically(context.home.inside(best.run.best_checkpoint), context.home.best_lora(context.name))
    report = context.home.report(context.name)
    ledger = context.services.ledger(context.name, history)
    return write_report(report, context.name, history, found, ledger, base, context.home.root, principles)
