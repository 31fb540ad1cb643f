"""Ending a trial early: what finished runs still gained from the same point on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from optimizer.history import best_quality, best_run
from optimizer.objective import TOLERANCE, Curve
from schema.campaign import StoppingSettings
from schema.runs import Outcome, RunHistory

_LEAST_SCALE = 5.0
"""Quality points: even where past runs gained nothing late, the next one may."""


def should_stop(
    curve: Curve, history: Sequence[RunHistory], settings: StoppingSettings, total_epochs: int
) -> str | None:
    """Why the trial should end now, as a sentence, or None to go on.

    Args:
        curve: the trial's measured epochs so far.
        history: other runs on the same base model and data set.
        settings: how sure one must be.
        total_epochs: epochs the trial was planned for.
    """
    best = best_run(history)
    if not settings.enabled or not curve or best is None:
        return None
    epoch = curve[-1][0]
    gains = remaining_gains(history, epoch, total_epochs)
    if epoch < settings.min_epochs or epoch >= total_epochs or len(gains) < settings.min_runs:
        return None
    target = best_quality(best) or 0.0
    needed = target - max(q for _, q in curve)
    chance = chance_of_gain(gains, needed)
    if chance >= settings.min_chance:
        return None
    return (
        f"the chance of beating {best.run.run_name} ({target:.1f}) is {chance:.0%}: {needed:.1f} points are missing "
        f"after epoch {epoch}, and from there {len(gains)} finished runs gained {max(gains):.1f} at most"
    )


def remaining_gains(history: Sequence[RunHistory], epoch: int, total_epochs: int) -> list[float]:
    """Quality points (>= 0) that each fully trained run still gained after the same share of its epochs.

    Runs that were stopped themselves are left out: what they would have gained is unknown.
    """
    found = []
    for run in history:
        planned = run.run.all_parameters.get("max_train_epochs")
        total = planned if isinstance(planned, int) else run.run.epochs_done
        now = epoch * total / total_epochs
        before = [q for e, q in run.curve if 0 < e <= now]
        after = [q for e, q in run.curve if e > now]
        if run.run.outcome is Outcome.OK and before and after:
            found.append(max(max(after) - max(before), 0.0))
    return found


def chance_of_gain(gains: Sequence[float], needed: float) -> float:
    """Probability that a run gains more than `needed` points.

    The empirical share, smoothed by a normal kernel (Silverman's rule), together with one made-up
    run from an exponential distribution of the same mean, so that few runs never give certainty.
    """
    if needed <= 0:
        return 1.0
    seen = np.asarray(gains, dtype=float)
    width = max(1.06 * float(seen.std()) * len(seen) ** -0.2, TOLERANCE)
    smooth = float(np.sum(norm.sf(needed, loc=seen, scale=width)))
    prior = math.exp(-needed / max(float(seen.mean()), _LEAST_SCALE))
    return (smooth + prior) / (len(seen) + 1)
