"""After each trial: what matters, why it failed, what to try next; into store, dashboard and report."""

from __future__ import annotations

from datetime import UTC, datetime

from prefect import flow

from flows.wiring import Context, open_campaign
from optimizer.analysis.hypotheses import next_experiments
from optimizer.analysis.impact import effects
from schema.findings import Analysis
from schema.runs import TrainingRun
from tasks.home import copy_atomically


@flow(name="analysis", flow_run_name="{campaign} analysis")
def analysis(campaign: str, campaign_file: str, home: str, number: int | None = None) -> None:
    """Learn from the history and show it; `number` is the trial that has just ended."""
    context = open_campaign(campaign_file, home)
    history = context.store.history(campaign)
    now = datetime.now(UTC)
    hypotheses = next_experiments(history, context.space, context.surrogate(history), campaign, now)
    found = Analysis(
        campaign=campaign,
        n_runs=len(history),
        effects=effects(history, context.space),
        hypotheses=hypotheses,
        created_at=now,
    )
    context.store.save_analysis(found)
    context.store.save_hypotheses(list(hypotheses))
    if number is not None:
        note_trial(context, context.store.run(campaign, number))
    show(context, found)


def note_trial(context: Context, run: TrainingRun) -> None:
    """Write the trial's note in the dashboard."""
    from tasks.dashboard.annotate import annotate_trial
    from tasks.reports.markdown import trial_note

    note = trial_note(run, context.store.epochs(run.uid))
    annotate_trial(context.study.study, run.number, context.home.artifacts, note)


def show(context: Context, found: Analysis) -> None:
    """Write the campaign's note and report, and lay the best LoRA where it is easily found."""
    from tasks.dashboard.annotate import annotate_study
    from tasks.reports.html import write_report
    from tasks.reports.markdown import campaign_note

    history = context.store.history(context.name)
    annotate_study(context.study.study, campaign_note(history, found))
    write_report(
        context.home.report(context.name),
        context.name,
        history,
        found,
        context.store.refusals(context.name),
        context.base(),
        context.home.root,
    )
    scored = [h.run for h in history if h.run.quality is not None and h.run.best_checkpoint]
    if scored:
        best = max(scored, key=lambda run: run.quality or 0.0)
        copy_atomically(context.home.absolute(best.best_checkpoint or ""), context.home.best_lora(context.name))
