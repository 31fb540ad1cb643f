"""A paired experiment: runs that differ in one parameter, until they decide whether the change brings anything."""

from __future__ import annotations

import contextlib

from prefect import flow

from flows.loop import claim, open_here, opened, run_claimed
from flows.runtime import interrupt, progress
from flows.runtime.wiring import Context, open_campaign, pin_gpu, session
from optimizer.experiments.paired import LEAST_PAIRS, Change, Verdict, missing, verdict_on, worth_of
from optimizer.experiments.queue import noise
from optimizer.search.study import Proposal
from schema.errors import NotFoundError
from schema.findings import Decision, GateVerdict
from schema.parameters import Parameters
from schema.runs import TrainingRun
from schema.states import GateRule, HypothesisState
from tasks.claims import Claim


@flow(name="experiment", flow_run_name="{change}")
def experiment(campaign_file: str, home: str, change: str, worth: float | None = None) -> str:
    """Run pairs that differ in one parameter, until they decide whether the change brings anything.

    Started again it first goes on with a half that was cut off. It ends without a verdict where runs bring no pair, as
    when the trainer breaks down.

    Args:
        campaign_file: path of campaign.toml.
        home: folder of database, runs and reports.
        change: as ``keep_tokens 1 -> 3``.
        worth: quality points; a change that brings fewer is refuted. Left out, by the noise that the runs show so far.

    Returns:
        The state of the verdict.
    """
    with session():
        context, wanted = open_campaign(campaign_file, home), Change.parse(change)
        pin_gpu(context.services.settings.device)
        told, before = _judged(context, wanted, worth), -1
        while told.state == HypothesisState.RUNNING and told.pairs > before:
            halves = missing(wanted, context.related(), context.space, max(LEAST_PAIRS - told.pairs, 1))
            effect = f", effect {told.effect:+.1f}" if told.pairs else ""
            progress.listener.message(f"{change}: pairs {told.pairs}{effect}; runs that come next: {len(halves)}")
            for half in halves:
                interrupt.raise_if_asked()
                claimed = _half(context, wanted, half)
                if claimed is not None:
                    run_claimed(context, *claimed, context.file.budget)
            before = told.pairs
            told = _judged(context, wanted, worth)
        if told.state == HypothesisState.RUNNING:
            progress.listener.message("[red]no pair came of these runs[/]: see how they ended with 'pixelloop status'")
        return told.state


def _judged(context: Context, change: Change, worth: float | None) -> Verdict:
    """What all runs so far say of a change, as the command tells it in the end."""
    history = context.related()
    asked = worth if worth is not None else worth_of(noise(history, context.space))
    return verdict_on(change, history, context.space, asked)


def _half(context: Context, change: Change, parameters: Parameters) -> tuple[int, Claim] | None:
    """The trial of a half: one that was cut off, or a new one, which the gate has no say in."""
    wanted = context.space.key(parameters)
    with context.study.alone():
        for proposal in open_here(context):
            with contextlib.suppress(NotFoundError):
                if context.space.key(context.store.run(context.name, proposal.number).all_parameters) == wanted:
                    return claim(context, proposal.number)
        reason = f"half of a test: {change}"
        verdict = GateVerdict(decision=Decision.RUN, reason=reason, rule=GateRule.PAIRED_TEST)

        def record(proposal: Proposal) -> TrainingRun:
            return context.new_run(proposal.number, _as_own(context, parameters)).changed(verdict=verdict)

        number = opened(context, context.space.searched(parameters), record)
        context.study.note(number, "tests", str(change))
        return claim(context, number)


def _as_own(context: Context, parameters: Parameters) -> Parameters:
    """A setting as the campaign's own trials keep it: what it leaves unset is not 0, where both train the same."""
    unset = {
        name: None for name, value in context.space.complete({}).items() if value is None and not parameters.get(name)
    }
    same = context.space.key(parameters | unset) == context.space.key(parameters)
    return parameters | unset if same else parameters
