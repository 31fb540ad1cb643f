"""The work of a campaign: trials one after another, whoever else does the same beside.

Each process that works asks alone, claims its trial, and runs it. A claim ends with its process, so what one has
left unfinished is taken up by the next that looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from flows.analysis import analysis
from flows.runtime import interrupt, pause, progress
from flows.runtime.notifications import notify_of_trial
from flows.runtime.retry import patiently
from flows.runtime.wiring import Context
from flows.trial import trial
from optimizer.control.budget import hours_left, hours_used, spent
from optimizer.control.scheduling import Run, Stop, next_step
from optimizer.experiments.queue import queue_of, refused, started
from optimizer.search.acquisition import expected_gain
from optimizer.search.study import Proposal
from optimizer.search.surrogate import Surrogate
from schema.campaign import Budget
from schema.errors import NotFoundError, NumberTakenError
from schema.findings import Decision, GateVerdict, Hypothesis, Prediction, RefusedProposal
from schema.parameters import Parameters
from schema.runs import RunHistory, TrainingRun, refusal_uid, run_uid
from tasks.claims import Claim
from tasks.home import Home

_LOOK = 1.0  # seconds between looks at what others do


def work(context: Context, budget: Budget, patient: bool = True) -> str:
    """Run trials, first those that were cut off, until the budget is spent.

    Args:
        patient: wait for the trials that others of this home run, and take up what they leave.

    Returns:
        Why it ended.
    """
    while True:
        interrupt.raise_if_asked()
        pause.wait(context.home)
        if (over := pause.time_is_up()) is not None:
            return over
        with context.study.alone():
            claimed = cut_off_trial(context)
            step = next_step(
                cut_off=None if claimed is None else claimed[0],
                spent=None if claimed else _spent(context, budget),
                finished=len(_finished(context)),
                running=len(context.study.running()),
                running_here=len(list(open_here(context))),
                trials=budget.trials,
                patient=patient,
            )
            if isinstance(step, Run):
                claimed = claim(context, propose(context))
        if claimed is not None:
            run_claimed(context, *claimed, budget)
        elif isinstance(step, Stop):
            return step.reason
        else:
            time.sleep(_LOOK)


def beside_no_test(home: Home) -> Claim:
    """The claim of a campaign on its home, which others share; where a paired test has it, wait for its end."""
    told = False
    while (held := Claim.take(home.at_work, shared=True)) is None:
        if not told:
            progress.listener.message("a paired test runs in this home: the campaign waits for its end")
        told = True
        interrupt.raise_if_asked()
        time.sleep(_LOOK)
    return held


def claim(context: Context, number: int) -> tuple[int, Claim] | None:
    """A trial for this process alone; None where another one runs it, or it has just ended."""
    held = Claim.take(context.folder(number).claim)
    if held is not None and not context.study.is_open(number):
        held.release()
        return None
    return None if held is None else (number, held)


def run_claimed(context: Context, number: int, held: Claim, budget: Budget) -> None:
    """Run a trial to its end, and learn from it."""
    with held:
        run = context.store.run(context.name, number)
        best = _best(_finished(context))
        progress.listener.trial_started(run, budget.trials, _time_left(context, budget), best)
        patiently(lambda: trial(context.name, str(context.path), str(context.home.root), number))
    ended = context.store.run(context.name, number)
    if ended.finished_at is None:  # its state is saved for another night
        return
    notify_of_trial(context, ended, best)
    analyse(context, number)


def analyse(context: Context, number: int | None = None) -> None:
    """Learn from the history; a mistake in it is told and costs nothing else."""
    with context.study.alone():
        state = patiently(
            lambda: analysis(context.name, str(context.path), str(context.home.root), number, return_state=True)
        )
    if state.is_failed() or state.is_crashed():
        progress.listener.message(f"[red]the analysis failed[/]: {state.message}")


def cut_off_trial(context: Context) -> tuple[int, Claim] | None:
    """A trial that was asked for and that nobody runs."""
    _give_up_taken(context)
    for proposal in open_here(context):
        claimed = claim(context, proposal.number)
        if claimed is None:
            continue
        try:
            run = context.store.run(context.name, proposal.number)
        except NotFoundError:  # cut off between the ask and the first row: judge it as if just asked
            surrogate = context.surrogate(context.store.history())
            if not _accept(context, proposal, *_judge(context, proposal, surrogate, skips=0)):
                claimed[1].release()
                continue
        else:
            done = len(context.store.epochs(run.uid))
            progress.listener.message(f"resuming {run.run_name} after epoch {done}")
        return claimed
    return None


def open_here(context: Context) -> Iterator[Proposal]:
    """Yield the trials that have not ended and whose folder is in this home."""
    kept = {run.number: run.uid for run in context.store.runs(context.name)}
    for proposal in context.study.running():
        here = {run_uid(uid, context.name, proposal.number) for uid in context.home.uids}
        if kept.get(proposal.number) in {None, *here}:
            yield proposal


def _give_up_taken(context: Context) -> None:
    """End trials of this home whose number an import, or another home on the same store, has taken."""
    elsewhere = {run.number for run in context.store.runs(context.name) if not context.owns(run)}
    for proposal in context.study.running():
        asked_here = proposal.home in {str(uid) for uid in context.home.uids}
        # An embedded study belongs to one home; trials of earlier versions do not say who asked.
        alone = proposal.home is None and context.services.embedded is not None
        if proposal.number in elsewhere and (asked_here or alone):
            context.study.give_up(proposal.number)
            progress.listener.message(f"trial {proposal.number} ends: a run of another home has its number")


def _taken(context: Context) -> set[int]:
    """Return the numbers that runs and refused proposals of other homes have in this campaign."""
    runs = {run.number for run in context.store.runs(context.name) if not context.owns(run)}
    own = context.home.uids
    refusals = context.store.refusals(context.name)
    return runs | {r.number for r in refusals if r.uid not in {refusal_uid(u, context.name, r.number) for u in own}}


def opened(context: Context, suggested: Parameters, record: Callable[[Proposal], TrainingRun]) -> int:
    """Open a trial with these parameters, outside the gate, and save its run.

    Args:
        record: makes the run's first row.

    Returns:
        The number of the trial.
    """
    while True:
        proposal = _ask(context, suggested)
        if _added(context, record(proposal)):
            return proposal.number


def _ask(context: Context, suggested: Parameters | None, surrogate: Surrogate | None = None) -> Proposal:
    """Open the next trial under a number that no run of another home has."""
    context.study.skip(_taken(context))
    return context.study.ask(suggested, surrogate, str(context.home.uid))


def _added(context: Context, run: TrainingRun) -> bool:
    """Save a run's first row; False where another home has taken its number since the ask."""
    try:
        context.store.add_run(run)
    except NumberTakenError:
        context.study.give_up(run.number)
        return False
    return True


def propose(context: Context) -> int:
    """Ask until the gate lets a proposal through; what it refuses is kept with the reason.

    Returns:
        The number of the trial to run; its record is in the store.
    """
    skips = 0
    suggestions = context.study.untried([*_queued(context), *_start(context)])
    while True:
        surrogate = context.surrogate(context.store.history())
        proposal = _ask(context, suggestions.pop(0) if suggestions else None, surrogate)
        verdict, prediction = _judge(context, proposal, surrogate, skips)
        if verdict.decision is Decision.RUN:
            if _accept(context, proposal, verdict, prediction):
                return proposal.number
            suggestions.insert(0, proposal.parameters)
            continue
        skips += 1
        _refuse(context, proposal, verdict, prediction)


def _queued(context: Context) -> list[Parameters]:
    """Settings that wait in the queue: they come before everything else."""
    waiting = queue_of(context.store.hypotheses(context.name))
    settings = [context.space.searched(h.parameters) for h in waiting]
    return [s for s in settings if not context.space.problems(s)]  # the space may have changed since


def _start(context: Context) -> list[Parameters]:
    """Return the settings to begin with, without those that a run of another home has tried in this campaign."""
    others = [run for run in context.store.runs(context.name) if not context.owns(run)]
    tried = [context.space.searched(run.all_parameters) for run in others]
    return [s for s in context.file.start if not any(all(t.get(k) == v for k, v in s.items()) for t in tried)]


def _note_queue(context: Context, before: list[Hypothesis], after: list[Hypothesis]) -> None:
    if after != before:
        context.store.save_hypotheses(after)


def _judge(context: Context, proposal: Proposal, surrogate: Surrogate, skips: int) -> tuple[GateVerdict, Prediction]:
    """Judge a proposal by the surrogate that it was made with: fitting is most of what a proposal costs."""
    parameters = context.space.complete(proposal.parameters)
    prediction = surrogate.predict(parameters)
    return context.gate.judge(parameters, prediction, context.related(), proposal.number, skips), prediction


def _accept(context: Context, proposal: Proposal, verdict: GateVerdict, prediction: Prediction) -> bool:
    """Save the run of a proposal; False where another home has taken its number."""
    run = context.new_run(proposal.number, context.space.complete(proposal.parameters))
    if not _added(context, run.changed(verdict=verdict, predicted=prediction)):
        return False
    known = context.store.hypotheses(context.name)
    _note_queue(context, known, started(known, proposal.parameters, context.space))
    return True


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


def _finished(context: Context) -> list[RunHistory]:
    """Return the campaign's ended runs, wherever they ran: arms of a test are asked for beside its budget."""
    ended = [h for h in context.store.history(context.name) if h.run.finished_at is not None]
    return [h for h in ended if not h.run.is_half]


def _spent(context: Context, budget: Budget) -> str | None:
    finished = _finished(context)
    gain = None
    if budget.least_gain is not None:
        gain = expected_gain(context.surrogate(context.store.history()), context.file.campaign.seed)
    return spent(budget, len(finished), hours_used(finished), _best(finished), gain)


def _best(finished: list[RunHistory]) -> float | None:
    return max((h.run.quality for h in finished if h.run.quality is not None), default=None)


def _time_left(context: Context, budget: Budget) -> float | None:
    """Seconds, from the mean of the runs so far; None before the first is done."""
    finished = _finished(context)
    left = hours_left(budget, len(finished), hours_used(finished))
    return None if left is None else left * 3600
