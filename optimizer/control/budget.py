"""Decide when a campaign has used up its budget."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta

from schema.campaign import Budget
from schema.runs import RunHistory, TrainingRun


def spent(
    budget: Budget, trials_done: int, hours: float, best_quality: float | None, expected_gain: float | None = None
) -> str | None:
    """Return the reason why the campaign ends now, as one sentence; None to continue.

    Args:
        budget: Limits of the campaign.
        trials_done: Trials that ran and ended. Refused proposals do not count.
        hours: Hours that the trials took, see `hours_used`.
        best_quality: Best quality so far (0-100); None if nothing was measured.
        expected_gain: Quality points that the next trial is expected to gain; None if unknown.
    """
    if budget.target_quality is not None and best_quality is not None and best_quality >= budget.target_quality:
        return f"quality {best_quality:.1f} reached the target of {budget.target_quality:g}"
    if trials_done >= budget.trials:
        return f"all {budget.trials} trials are done" if budget.trials > 1 else "the only trial is done"
    if budget.hours is not None and hours >= budget.hours:
        return f"{hours:.1f} of {budget.hours:g} hours are used"
    if budget.money is not None and budget.price_per_hour is not None and hours * budget.price_per_hour >= budget.money:
        price = f"{hours:.1f} hours at {budget.price_per_hour:g}"
        return f"{hours * budget.price_per_hour:.2f} of {budget.money:g} are paid ({price})"
    if _converged(budget, trials_done, expected_gain):
        return f"another trial is expected to gain {expected_gain:.2f} points, less than {budget.least_gain:g}"
    return None


def _converged(budget: Budget, trials_done: int, expected_gain: float | None) -> bool:
    known = budget.least_gain is not None and expected_gain is not None
    return known and trials_done >= budget.least_trials and (expected_gain or 0.0) < (budget.least_gain or 0.0)


def deadline(until: time, now: datetime) -> datetime:
    """Return the first moment after `now` at which a clock in its time zone shows `until`."""
    today = now.replace(hour=until.hour, minute=until.minute, second=until.second, microsecond=0)
    # A time that has passed today means tomorrow, so that a campaign started at night runs until morning.
    return today if today > now else today + timedelta(days=1)


def hours_used(finished: Sequence[RunHistory]) -> float:
    """Return the hours during which at least one run was active. Parallel runs count once, pauses not at all."""
    spans = sorted(_span(h.run, h.run.finished_at) for h in finished if h.run.finished_at is not None)
    seconds, until = 0.0, None
    for begin, end in spans:
        start = begin if until is None else max(begin, until)
        # A run that lies within a longer parallel one adds nothing.
        seconds += max((end - start).total_seconds(), 0.0)
        until = end if until is None else max(until, end)
    return seconds / 3600


def _span(run: TrainingRun, end: datetime) -> tuple[datetime, datetime]:
    """Return start and end of a run as if it had worked without pauses right up to its end."""
    return run.started_at if run.time_at_work is None else end - timedelta(seconds=run.time_at_work), end


def ended_at(now: datetime, worked: float, others: Sequence[RunHistory]) -> datetime:
    """Return the end time to record for a run that ends now.

    This is `now`, unless the clock was set back during the run. The recorded times of successive runs would then
    overlap, and `hours_used` would count them only once.

    Args:
        now: Time on the wall clock.
        worked: Seconds since this session of the run began, by a monotonic clock.
        others: Runs that had ended before the session began.
    """
    ends = [h.run.finished_at for h in others if h.run.finished_at is not None]
    return max([now, *(end + timedelta(seconds=worked) for end in ends)])


def hours_allowed(budget: Budget) -> float | None:
    """Return the hours after which the limit on time or money is reached; None without such a limit."""
    limits = [] if budget.hours is None else [budget.hours]
    if budget.money is not None and budget.price_per_hour is not None:
        limits.append(budget.money / budget.price_per_hour)
    return min(limits, default=None)


def hours_left(budget: Budget, trials_done: int, hours: float) -> float | None:
    """Return the hours left if future trials take as long as past ones; None before the first trial has ended."""
    if trials_done == 0:
        return None
    by_trials = hours / trials_done * max(budget.trials - trials_done, 0)
    allowed = hours_allowed(budget)
    return by_trials if allowed is None else min(by_trials, max(allowed - hours, 0.0))
