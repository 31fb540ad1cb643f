"""A campaign: ask, judge, run, learn, until the budget is spent.

It keeps nothing important in memory. Started again it first goes on with the trials that were cut off,
then asks for new ones: killing it at any moment costs at most part of an epoch.
"""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow, runtime

from flows import interrupt, progress
from flows.analysis import analysis
from flows.data import audit_before
from flows.epoch import draw, measure_epoch
from flows.trial import trial
from flows.wiring import Context, open_campaign, session
from optimizer.acquisition import expected_gain
from optimizer.analysis.lifecycle import queue_of, refused, started
from optimizer.analysis.paired import LEAST_PAIRS, Change, missing, verdict_on
from optimizer.budget import hours_left, spent
from optimizer.crown import repeats_due
from optimizer.study import Proposal
from schema.campaign import Budget, campaign_json, load_campaign
from schema.errors import NotFoundError
from schema.findings import PAIRED_TEST, Decision, GateVerdict, Hypothesis, Prediction, RefusedProposal
from schema.parameters import Parameters
from schema.runs import RunHistory, refusal_uid


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
        budget = context.file.budget.changed(**({"trials": trials} if trials else {}))
        return _night(context, budget)


def _night(context: Context, budget: Budget) -> str:
    _begin(context)
    _resume(context, budget)
    while (reason := _spent(context, budget)) is None:
        interrupt.raise_if_asked()
        number = propose(context)
        _run(context, number, budget)
    _repeat_best(context, budget)
    _save(context, "finished", reason)
    _analyse(context)
    progress.listener.message(f"campaign {context.name} ended: {reason}")
    return reason


def _repeat_best(context: Context, budget: Budget) -> None:
    """Run the best settings once more before one is crowned; what was repeated before a kill is not due again."""
    for source, parameters in repeats_due(context.store.history(context.name), context.space, budget.repeats):
        proposal = context.study.ask(context.space.searched(parameters))
        context.study.note(proposal.number, "repeats", source.run.number)
        context.store.save_run(context.new_run(proposal.number, parameters))
        progress.listener.message(f"{source.run.run_name} is run once more with another seed")
        _run(context, proposal.number, budget)


@flow(name="experiment", flow_run_name="{change}")
def experiment(campaign_file: str, home: str, change: str, worth: float) -> str:
    """Run pairs that differ in one parameter, until they decide whether the change brings anything.

    Started again it first goes on with a half that was cut off. It ends without a verdict where runs bring no pair, as
    when the trainer breaks down.

    Args:
        campaign_file: path of campaign.toml.
        home: folder of database, runs and reports.
        change: as ``keep_tokens 1 -> 3``.
        worth: quality points; a change that brings fewer is refuted.

    Returns:
        The state of the verdict.
    """
    with session():
        context, wanted = open_campaign(campaign_file, home), Change.parse(change)
        told, before = verdict_on(wanted, context.related(), context.space, worth), -1
        while told.state == "running" and told.pairs > before:
            halves = missing(wanted, context.related(), context.space, max(LEAST_PAIRS - told.pairs, 1))
            effect = f", effect {told.effect:+.1f}" if told.pairs else ""
            progress.listener.message(f"{change}: pairs {told.pairs}{effect}; runs that come next: {len(halves)}")
            for half in halves:
                interrupt.raise_if_asked()
                _run(context, _half(context, wanted, half), context.file.budget)
            before = told.pairs
            told = verdict_on(wanted, context.related(), context.space, worth)
        if told.state == "running":
            progress.listener.message("[red]no pair came of these runs[/]: see how they ended with 'pixelloop status'")
        return told.state


def _half(context: Context, change: Change, parameters: Parameters) -> int:
    """The trial of a half: one that was cut off, or a new one, which the gate has no say in."""
    wanted = context.space.key(parameters)
    for proposal in context.study.running():
        with contextlib.suppress(NotFoundError):
            if context.space.key(context.store.run(context.name, proposal.number).all_parameters) == wanted:
                return proposal.number
    proposal = context.study.ask(context.space.searched(parameters))
    reason = f"half of a test: {change}"
    verdict = GateVerdict(decision=Decision.RUN, reason=reason, rule=PAIRED_TEST)
    context.study.note(proposal.number, "tests", str(change))
    context.store.save_run(context.new_run(proposal.number, parameters).changed(verdict=verdict))
    return proposal.number


def _begin(context: Context) -> None:
    """Audit the data, register the campaign, learn from earlier ones, and measure the base model once."""
    _save(context, "running", audit=audit_before(context).model_dump(mode="json"))
    adopted = context.study.warm_start([h for h in context.related() if h.run.campaign != context.name])
    if adopted:
        progress.listener.message(f"{adopted} earlier runs on the same model and data are taken into account")
    if context.base() is None:
        stand_in = context.new_run(0, context.space.complete({}))
        result = measure_epoch(context, stand_in, 0, draw(context, None, None, 0))
        _save(context, "running", base=result.model_dump(mode="json"))
        progress.listener.message(f"base model without a LoRA: quality {progress.score(result.quality)}")


def _resume(context: Context, budget: Budget) -> None:
    """Go on with the trials that were running when the campaign was cut off."""
    for proposal in context.study.running():
        try:
            run = context.store.run(context.name, proposal.number)
        except NotFoundError:  # cut off between the ask and the first row: judge it as if just asked
            _accept(context, proposal, *_judge(context, proposal, skips=0))
        else:
            progress.listener.message(f"resuming {run.run_name} after epoch {run.epochs_done}")
        _run(context, proposal.number, budget)


def propose(context: Context) -> int:
    """Ask until the gate lets a proposal through; what it refuses is kept with the reason.

    Returns:
        The number of the trial to run; its record is in the store.
    """
    skips = 0
    suggestions = context.study.untried([*_queued(context), *context.file.start])
    while True:
        surrogate = context.surrogate(context.store.history())
        proposal = context.study.ask(suggestions.pop(0) if suggestions else None, surrogate)
        verdict, prediction = _judge(context, proposal, skips)
        if verdict.decision is Decision.RUN:
            _accept(context, proposal, verdict, prediction)
            return proposal.number
        skips += 1
        _refuse(context, proposal, verdict, prediction)


def _queued(context: Context) -> list[Parameters]:
    """Settings that wait in the queue: they come before everything else."""
    waiting = queue_of(context.store.hypotheses(context.name))
    settings = [context.space.searched(h.parameters) for h in waiting]
    return [s for s in settings if not context.space.problems(s)]  # the space may have changed since


def _note_queue(context: Context, before: list[Hypothesis], after: list[Hypothesis]) -> None:
    if after != before:
        context.store.save_hypotheses(after)


def _judge(context: Context, proposal: Proposal, skips: int) -> tuple[GateVerdict, Prediction]:
    parameters = context.space.complete(proposal.parameters)
    prediction = context.surrogate(context.store.history()).predict(parameters)
    return context.gate.judge(parameters, prediction, context.related(), proposal.number, skips), prediction


def _accept(context: Context, proposal: Proposal, verdict: GateVerdict, prediction: Prediction) -> None:
    run = context.new_run(proposal.number, context.space.complete(proposal.parameters))
    context.store.save_run(run.changed(verdict=verdict, predicted=prediction))
    known = context.store.hypotheses(context.name)
    _note_queue(context, known, started(known, proposal.parameters, context.space))


def _refuse(context: Context, proposal: Proposal, verdict: GateVerdict, prediction: Prediction) -> None:
    kept = RefusedProposal(
        uid=refusal_uid(context.home.uid, context.name, proposal.number),
        campaign=context.name,
        number=proposal.number,
        parameters=proposal.parameters,
        verdict=verdict,
        predicted=prediction,
        created_at=datetime.now(UTC),
    )
    context.store.save_refusal(kept)
    context.study.refuse(proposal.number, verdict)
    known = context.store.hypotheses(context.name)
    _note_queue(context, known, refused(known, proposal.parameters, context.space, verdict.reason))
    progress.listener.refused(proposal.number, verdict)


def _run(context: Context, number: int, budget: Budget) -> None:
    run = context.store.run(context.name, number)
    progress.listener.trial_started(run, budget.trials, _time_left(context, budget))
    trial(context.name, str(context.path), str(context.home.root), number)
    _analyse(context, number)


def _analyse(context: Context, number: int | None = None) -> None:
    """Learn from the history; a mistake in it is told and costs nothing else."""
    state = analysis(context.name, str(context.path), str(context.home.root), number, return_state=True)
    if state.is_failed() or state.is_crashed():
        progress.listener.message(f"[red]the analysis failed[/]: {state.message}")


def _finished(context: Context) -> list[RunHistory]:
    """The campaign's own runs: halves of a test are asked for beside its budget."""
    ended = [h for h in context.store.history(context.name) if h.run.finished_at is not None]
    return [h for h in ended if h.run.verdict is None or h.run.verdict.rule != PAIRED_TEST]


def _spent(context: Context, budget: Budget) -> str | None:
    finished = _finished(context)
    best = max((h.run.quality for h in finished if h.run.quality is not None), default=None)
    gain = None
    if budget.least_gain is not None:
        gain = expected_gain(context.surrogate(context.store.history()), context.file.campaign.seed)
    return spent(budget, len(finished), _hours(finished), best, gain)


def _hours(finished: list[RunHistory]) -> float:
    """Hours that the runs took: pauses between an interruption and its resume do not count."""
    return sum((h.run.finished_at - h.run.started_at).total_seconds() for h in finished if h.run.finished_at) / 3600


def _time_left(context: Context, budget: Budget) -> float | None:
    """Seconds, from the mean of the runs so far; None before the first is done."""
    finished = _finished(context)
    left = hours_left(budget, len(finished), _hours(finished))
    return None if left is None else left * 3600


def _save(context: Context, status: str, end_reason: str | None = None, **more: object) -> None:
    known = {c.name: c.settings for c in context.store.campaigns()}.get(context.name, {})
    settings = {**known, "campaign": campaign_json(context.file), "file": context.home.relative(context.path), **more}
    context.store.save_campaign(context.name, settings, status, end_reason)
