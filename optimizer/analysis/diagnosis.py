"""What is wrong with an epoch or a run, why, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optimizer.analysis.causes import Case, learnt_cause
from optimizer.analysis.experience import general_cause
from optimizer.analysis.issues import Issue, picture_issues, run_issues
from optimizer.history import best_quality, judged_epoch, related
from optimizer.space import Space
from schema.findings import Diagnosis
from schema.runs import EpochMetrics, RunHistory, TrainingRun

Names = Callable[[RunHistory], set[str]]

_NORMAL_RUNS = 2
_NORMAL_SHARE = 0.5


def diagnose_epoch(
    metrics: EpochMetrics, epoch: int, total_epochs: int, run: TrainingRun, history: Sequence[RunHistory]
) -> tuple[Diagnosis, ...]:
    """What is wrong with an epoch's pictures, worst first.

    An issue that past runs also had at this point and lost later is marked as normal for the epoch.

    Args:
        metrics: of the epoch's pictures.
        epoch: its number, from 1; 0 is the base model, in which nothing is wrong yet.
        total_epochs: epochs the run was planned for.
        run: the run the epoch belongs to.
        history: all runs; those on another base model or data set are left out here.
    """
    if epoch == 0:
        return ()
    past = _past(run, history)
    found = []
    for issue in picture_issues(metrics):
        diagnosis = _diagnosis(issue, run, 0.0, past, _picture_names)
        passing = _passing(issue.name, epoch / max(total_epochs, 1), past)
        if passing is not None:
            evidence = (*diagnosis.evidence, passing)
            diagnosis = diagnosis.changed(normal_for_epoch=True, evidence=evidence)
        found.append(diagnosis)
    return tuple(found)


def diagnose_run(run_history: RunHistory, history: Sequence[RunHistory], space: Space) -> tuple[Diagnosis, ...]:
    """What is wrong with an ended run, worst first: how it ended, its curve, and its best epoch's pictures.

    Every failed run gets at least one diagnosis.

    Args:
        run_history: the run.
        history: all runs; those on another base model or data set are left out here.
        space: says what counts as a failed run.
    """

    def run_names(run: RunHistory) -> set[str]:
        return {issue.name for issue in run_issues(run, space.failed_quality)}

    run, past = run_history.run, _past(run_history.run, history)
    quality = best_quality(run_history) or 0.0
    judged = judged_epoch(run_history)
    pictures = picture_issues(judged.quantitative_metrics) if judged is not None else ()
    whole = [_diagnosis(i, run, quality, past, run_names) for i in run_issues(run_history, space.failed_quality)]
    return (*whole, *(_diagnosis(i, run, quality, past, _picture_names) for i in pictures))


def _past(run: TrainingRun, history: Sequence[RunHistory]) -> list[RunHistory]:
    same = related(history, run.base_model, run.dataset)
    return [h for h in same if h.run.uid != run.uid and h.run.outcome is not None]


def _picture_names(run: RunHistory) -> set[str]:
    judged = judged_epoch(run)
    return {issue.name for issue in picture_issues(judged.quantitative_metrics)} if judged is not None else set()


def _diagnosis(issue: Issue, run: TrainingRun, quality: float, past: Sequence[RunHistory], names: Names) -> Diagnosis:
    cases = [Case(h.run.run_name, h.run.all_parameters, issue.name in names(h), best_quality(h) or 0.0) for h in past]
    cases.append(Case(run.run_name, run.all_parameters, True, quality))
    # A broken machine or file has no parameter for its cause, however the runs may fall.
    blameless = issue.name in ("crashed", "bad_data")
    cause = None if blameless else learnt_cause(cases, run.all_parameters)
    cause = cause or general_cause(issue.name, run.all_parameters)
    return Diagnosis(
        issue=issue.name,
        category=issue.category,
        severity=issue.severity,
        cause=cause.sentence,
        recommendation=cause.recommendation,
        confidence=cause.confidence,
        evidence=(issue.measurement, *cause.evidence),
    )


def _passing(name: str, progress: float, past: Sequence[RunHistory]) -> str | None:
    """The evidence that an issue at this share of the epochs goes away by itself, or None."""
    had = lost = 0
    for run in past:
        judged = judged_epoch(run)
        then = round(progress * max(run.run.epochs_done, 1))
        at = next((e for e in run.epochs if e.epoch_number == then), None)
        if judged is None or at is None or judged.epoch_number <= then:
            continue
        if name in {issue.name for issue in picture_issues(at.quantitative_metrics)}:
            had += 1
            lost += name not in {issue.name for issue in picture_issues(judged.quantitative_metrics)}
    if had < _NORMAL_RUNS or lost / had < _NORMAL_SHARE:
        return None
    return f"{lost} of {had} earlier runs showed it at this point and no longer at their best epoch"
