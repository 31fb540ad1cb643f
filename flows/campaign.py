"""A campaign: ask, judge, run, learn, until the budget is spent.

It keeps nothing important in memory. Started again it first goes on with the trials that were cut off,
then asks for new ones: killing it at any moment costs at most part of an epoch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from prefect import flow, runtime
from prefect.artifacts import create_markdown_artifact

from flows.analysis import night_note
from flows.data_audit import audit_before
from flows.epoch import draw, measure_epoch
from flows.loop import analyse, beside_no_test, claim, opened, run_claimed, work
from flows.runtime import pause, progress
from flows.runtime.campaign_files import known_campaigns
from flows.runtime.notifications import notify
from flows.runtime.orphaned_runs import signed_in, tidy
from flows.runtime.retry import patiently
from flows.runtime.wiring import Context, open_campaign, pin_gpu, session, side_by_side
from flows.runtime.workers import Workers
from optimizer.control.confirmation import crowned, repeats_due
from optimizer.search.study import Proposal
from schema.campaign import Budget, campaign_json, load_campaign
from schema.errors import PixelloopError
from schema.parameters import Parameters
from schema.runs import TrainingRun
from schema.states import CampaignStatus


def _run_name() -> str:
    file = load_campaign(Path(runtime.flow_run.parameters["campaign_file"]))
    return f"campaign {file.campaign.name}"


@flow(name="campaign", flow_run_name=_run_name)
def campaign(campaign_file: str, home: str, trials: int | None = None) -> str:
    """Run or resume a campaign.

    Args:
        campaign_file: path of campaign.toml.
        home: folder of database, runs and reports.
        trials: how many to run instead of the file's budget.

    Returns:
        Why it ended.
    """
    with session():
        context = open_campaign(campaign_file, home)
        with signed_in(context.home), _at_work(context):
            known_campaigns(context.services).remember(context.name, context.path)
            tidy(context.home)
            pin_gpu(context.services.settings.device)
            pause.end_at(context.file.budget.until)
            return _night(context, trials)


@contextlib.contextmanager
def _at_work(context: Context) -> Iterator[None]:
    """Hold the claim that a campaign runs in this home, and tell what ends it before its time."""
    with beside_no_test(context.home):
        try:
            yield
        except Exception as error:
            told = str(error) if isinstance(error, PixelloopError) else f"{type(error).__name__}: {error}"
            notify(context, "trouble", f"campaign {context.name} waits for you", told)
            raise


def budget_of(context: Context, trials: int | None) -> Budget:
    """Return the campaign's budget, with `trials` in place of the file's where given."""
    return context.file.budget.changed(**({"trials": trials} if trials else {}))


def _night(context: Context, trials: int | None) -> str:
    budget = budget_of(context, trials)
    with Workers(context, side_by_side(context.file.campaign.parallel) - 1, trials) as workers:
        with context.study.alone():
            workers.start()  # they load their libraries meanwhile, and wait to ask
            _begin(context)
        reason = work(context, budget)
    if pause.time_is_up() is None:
        _repeat_best(context, budget)
    _save(context, CampaignStatus.FINISHED, reason)
    analyse(context)
    progress.listener.message(f"campaign {context.name} ended: {reason}")
    _publish(context, reason)
    return reason


def _publish(context: Context, reason: str) -> None:
    """The morning's report: as an artifact in Prefect's UI, and in a few words to whom notices go."""
    report = night_note(context)
    key = f"report-{context.name}".replace("_", "-")  # Prefect's keys know no other letters
    patiently(lambda: create_markdown_artifact(report, key=key, description=reason, _sync=True))  # type: ignore[call-arg]
    best = crowned(context.store.history(context.name), context.space)
    told = "nothing was measured" if best is None else f"best: {best.run.run_name}, {progress.describe(best.run)}"
    words = f"{reason}\n{told}\nreport: {context.home.report(context.name)}"
    notify(context, "end", f"campaign {context.name} has ended", words)


def _repeat_best(context: Context, budget: Budget) -> None:
    """Run the best settings once more before one is crowned; what was repeated before a kill is not due again."""
    for source, parameters in repeats_due(context.store.history(context.name), context.space, budget.repeats):
        with context.study.alone():
            number = opened(context, context.space.searched(parameters), _as(context, parameters))
            context.study.note(number, "repeats", source.run.number)
            claimed = claim(context, number)
        if claimed is not None:
            progress.listener.message(f"{source.run.run_name} is run once more with another seed")
            run_claimed(context, *claimed, budget)


def _as(context: Context, parameters: Parameters) -> Callable[[Proposal], TrainingRun]:
    """Return what makes the record of a run with these parameters."""
    return lambda proposal: context.new_run(proposal.number, parameters)


def _begin(context: Context) -> None:
    """Audit the data, register the campaign, learn from earlier ones, and measure the base model once."""
    _save(context, CampaignStatus.RUNNING, audit=audit_before(context).model_dump(mode="json"))
    if adopted := adopt(context):
        progress.listener.message(f"{adopted} earlier runs on the same model and data are taken into account")
    if context.base() is None:
        stand_in = context.new_run(0, context.space.complete({}))
        result = measure_epoch(context, stand_in, 0, draw(context, None, None, 0))
        _save(context, CampaignStatus.RUNNING, base=result.model_dump(mode="json"))
        progress.listener.message(f"base model without a LoRA: quality {progress.score(result.quality)}")


def adopt(context: Context) -> int:
    """Let the search learn from earlier campaigns, and from this one's runs of other homes; how many count."""
    others = [h for h in context.related() if h.run.campaign != context.name or not context.study.holds(h.run.number)]
    return context.study.warm_start(others)


def _save(context: Context, status: str, end_reason: str | None = None, **more: object) -> None:
    known = {c.name: c.settings for c in context.store.campaigns()}.get(context.name, {})
    settings = {**known, "campaign": campaign_json(context.file), "file": context.home.relative(context.path), **more}
    context.store.save_campaign(context.name, settings, status, end_reason)
