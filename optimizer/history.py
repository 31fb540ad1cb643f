"""What past runs are worth as evidence: which count, which failed, how good they were."""

from __future__ import annotations

from collections.abc import Iterable

from schema.runs import EpochResult, Outcome, RunHistory


def related(history: Iterable[RunHistory], base_model: str, dataset: str) -> list[RunHistory]:
    """The runs on the same base model and data set: only their qualities may be compared with ours."""
    return [h for h in history if h.run.base_model == base_model and h.run.dataset == dataset]


def best_quality(run: RunHistory) -> float | None:
    """Best quality the run reached (0-100), from its record or else its epochs; None if nothing was measured."""
    if run.run.quality is not None:
        return run.run.quality
    return max((q for _, q in run.curve), default=None)


def informative(history: Iterable[RunHistory]) -> list[RunHistory]:
    """Ended runs that say something about their parameters.

    A run that crashed or had bad data says nothing about them, nor does one that still runs or
    that ended without a measurement although nothing went wrong.
    """
    return [h for h in history if _blames(h) or (_ended_well(h) and best_quality(h) is not None)]


def failed(run: RunHistory, failed_quality: float) -> bool:
    """True where the parameters made the run fail: it diverged, ran out of memory, or stayed below `failed_quality`."""
    best = best_quality(run)
    return _blames(run) or (_ended_well(run) and best is not None and best < failed_quality)


def how_it_ended(run: RunHistory) -> str:
    """The end of a run in two words: ``diverged``, ``quality 63.1``."""
    best = best_quality(run)
    if run.run.outcome is not None and run.run.outcome.failed:
        return str(run.run.outcome)
    return "not measured" if best is None else f"quality {best:.1f}"


def best_run(history: Iterable[RunHistory]) -> RunHistory | None:
    """The informative run of highest quality; of equal ones the one that started first."""
    scored = [h for h in informative(history) if _ended_well(h)]
    return min(scored, key=lambda h: (-(best_quality(h) or 0.0), h.run.started_at, h.run.run_name), default=None)


def judged_epoch(run: RunHistory) -> EpochResult | None:
    """The epoch a run is judged by: its best one, or the last measured one if none has a quality."""
    scored = [e for e in run.epochs if e.quality is not None]
    if scored:
        return max(scored, key=lambda e: (e.quality or 0.0, -e.epoch_number))
    measured = [e for e in run.epochs if e.quantitative_metrics.mean is not None]
    return measured[-1] if measured else None


def _blames(run: RunHistory) -> bool:
    return run.run.outcome is not None and run.run.outcome.blames_parameters


def _ended_well(run: RunHistory) -> bool:
    return run.run.outcome in (Outcome.OK, Outcome.STOPPED_EARLY)
