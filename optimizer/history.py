"""Judge past runs as evidence: which ones count, which failed, how good they were."""

from __future__ import annotations

from collections.abc import Iterable

from schema.runs import EpochResult, Outcome, RunHistory


def related(history: Iterable[RunHistory], base_model: str, dataset: str) -> list[RunHistory]:
    """Return the runs on the same base model and data set. Qualities are only comparable among these."""
    return [h for h in history if h.run.base_model == base_model and h.run.dataset == dataset]


def best_quality(run: RunHistory) -> float | None:
    """Return the best quality (0-100) from the run's record or else its epochs; None if nothing was measured."""
    if run.run.quality is not None:
        return run.run.quality
    return max((q for _, q in run.curve), default=None)


def informative(history: Iterable[RunHistory]) -> list[RunHistory]:
    """Return the finished runs that say something about their parameters.

    Left out are runs that crashed or had bad data, runs that are still active, and runs that ended well
    but were never measured.
    """
    return [h for h in history if _blames(h) or (_ended_well(h) and best_quality(h) is not None)]


def failed(run: RunHistory, failed_quality: float) -> bool:
    """Return whether the parameters made the run fail: divergence, memory, or a best quality below `failed_quality`."""
    best = best_quality(run)
    return _blames(run) or (_ended_well(run) and best is not None and best < failed_quality)


def how_it_ended(run: RunHistory) -> str:
    """Return how a run ended as a short phrase: ``diverged``, ``quality 63.1``, ``not measured``."""
    best = best_quality(run)
    if run.run.outcome is not None and run.run.outcome.failed:
        return str(run.run.outcome)
    return "not measured" if best is None else f"quality {best:.1f}"


def kind_of_failure(run: RunHistory) -> str:
    """Return how a run failed, without numbers, so that equal failures can be counted."""
    ending = how_it_ended(run)
    return "low quality" if ending.startswith("quality") else ending


def best_run(history: Iterable[RunHistory]) -> RunHistory | None:
    """Return the run of highest quality among those that ended well; the earliest of equals. None without any."""
    scored = [h for h in informative(history) if _ended_well(h)]
    # Ties are broken by start and name, so the result does not depend on the order of rows.
    return min(scored, key=lambda h: (-(best_quality(h) or 0.0), h.run.started_at, h.run.run_name), default=None)


def judged_epoch(run: RunHistory) -> EpochResult | None:
    """Return the epoch to judge a run by: its best, or else the last one with measured pictures. None without any."""
    scored = [e for e in run.epochs if e.quality is not None]
    if scored:
        # Of equal epochs the earlier one wins: it needs less training.
        return max(scored, key=lambda e: (e.quality or 0.0, -e.epoch_number))
    measured = [e for e in run.epochs if e.quantitative_metrics.mean is not None]
    return measured[-1] if measured else None


def _blames(run: RunHistory) -> bool:
    return run.run.outcome is not None and run.run.outcome.blames_parameters


def _ended_well(run: RunHistory) -> bool:
    return run.run.outcome in (Outcome.OK, Outcome.STOPPED_EARLY)
