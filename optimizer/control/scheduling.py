"""Decide what a process of a campaign does next, from plain values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resume:
    """Go on with a trial that was cut off and that nobody runs."""

    number: int


@dataclass(frozen=True)
class Run:
    """Ask for a setting and run it."""


@dataclass(frozen=True)
class Wait:
    """Wait for trials that other processes of this home run, and look again."""


@dataclass(frozen=True)
class Stop:
    """End this process's work; `reason` is one sentence."""

    reason: str


Step = Resume | Run | Wait | Stop

ELSEWHERE = "the rest of the budget runs on other machines"


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

    Trials that were cut off come first, whatever the budget says: what was paid for is finished. New ones start only
    while finished and running ones together leave one of the budget, so several processes never overshoot it.

    Args:
        cut_off: number of a trial of this home that has begun and that nobody runs.
        spent: why the budget is used up; None while it is not.
        finished: ended trials of the campaign, wherever they ran.
        running: trials that have begun and not ended, on any machine.
        running_here: those of them whose folder is in this home.
        trials: the budget.
        patient: wait for the trials of other processes even when the budget is used up, to take up what they leave.
    """
    if cut_off is not None:
        return Resume(cut_off)
    if spent is None and finished + running < trials:
        return Run()
    if running_here and (patient or spent is None):
        return Wait()
    return Stop(spent or ELSEWHERE)
