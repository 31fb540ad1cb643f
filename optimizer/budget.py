"""When a campaign has had enough."""

from __future__ import annotations

from schema.campaign import Budget


def spent(budget: Budget, trials_done: int, hours: float, best_quality: float | None) -> str | None:
    """Why the campaign ends now, as a sentence, or None to go on.

    Args:
        budget: the campaign's limits.
        trials_done: trials that really ran to an end; refused proposals do not count.
        hours: hours the trials took.
        best_quality: best quality so far (0-100), None if nothing was measured.
    """
    if budget.target_quality is not None and best_quality is not None and best_quality >= budget.target_quality:
        return f"quality {best_quality:.1f} reached the target of {budget.target_quality:g}"
    if trials_done >= budget.trials:
        return f"all {budget.trials} trials are done"
    if budget.hours is not None and hours >= budget.hours:
        return f"{hours:.1f} of {budget.hours:g} hours are used"
    return None


def hours_left(budget: Budget, trials_done: int, hours: float) -> float | None:
    """Hours the rest of the campaign takes if trials go on as long as so far; None before the first is done."""
    if trials_done == 0:
        return None
    by_trials = hours / trials_done * max(budget.trials - trials_done, 0)
    return by_trials if budget.hours is None else min(by_trials, max(budget.hours - hours, 0.0))
