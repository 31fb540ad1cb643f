"""Decide what a campaign process does next, from plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resume:
    """Continue an interrupted trial that no process runs."""

    number: int


@dataclass(frozen=True)
class Run:
    """Ask for a new setting and run it."""


@dataclass(frozen=True)
class Wait:
    """Wait for trials that other processes of this home run, then decide again."""


@dataclass(frozen=True)
class Stop:
    """Stop this process. `reason` is one sentence."""

    reason: str


Step = Resume | Run | Wait | Stop

ELSEWHERE = "the rest of the budget runs on other machines"
"""Reason to stop although the budget is not used up."""


def next_step(
    *,
    cut_off: int | None,
    spent: str | None,
    finished: int,
    running: int,
    running_here: int,
    trials: int,
    patient: bool,
) -> Step:
    """Decide the next step.

    Interrupted trials come first, even if the budget is used up, since their training has been paid for.
    A new trial starts only if finished and running trials together leave room in the budget, so that
    parallel processes never exceed it.

    Args:
        cut_off: Number of an interrupted trial of this home that no process runs; None without any.
        spent: Reason why the budget is used up; None while it is not.
        finished: Number of finished trials of the campaign, on all machines.
        running: Number of trials that have started and not finished, on all machines.
        running_here: Number of those in this home.
        trials: Budget of trials.
        patient: Wait for the trials of other processes even when the budget is used up, to resume them if
            their process dies.
    """
    if cut_off is not None:
        return Resume(cut_off)
    if spent is None and finished + running < trials:
        return Run()
    # Only trials of this home are waited for: this process cannot resume those of other machines.
    if running_here and (patient or spent is None):
        return Wait()
    return Stop(spent or ELSEWHERE)
