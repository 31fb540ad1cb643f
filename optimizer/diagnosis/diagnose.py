"""Diagnose an epoch or a run: what is wrong, why, and what to change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from optimizer.diagnosis.issues import Issue, picture_issues, run_issues
from optimizer.diagnosis.known_causes import general_cause
from optimizer.diagnosis.learned_causes import Case, Cause, learnt_cause
from optimizer.diagnosis.ranking import likely_causes
from optimizer.diagnosis.reference_runs import Healthy
from optimizer.diagnosis.slowness import slow_causes, slowness
from optimizer.history import best_quality, judged_epoch, related
from optimizer.search.space import Space
from schema.campaign import ratio_of
from schema.findings import DataAudit, Diagnosis, LikelyCause
from schema.parameters import PARAMETERS
from schema.runs import EpochMetrics, RunHistory, TrainingRun
from schema.states import IssueName

Names = Callable[[RunHistory], set[str]]

_MIN_PASSING = 2
"""Past runs with an issue needed to call it normal for the epoch. Chosen by hand: one run may be chance."""

_PASSING_SHARE = 0.5
"""Share of these runs that must lose the issue by their best epoch. Chosen by hand: at least half."""

_USUAL = 0.5  # share of healthy runs with an issue from which it counts as normal; chosen by hand: half
_BLAMELESS = (IssueName.CRASHED, IssueName.BAD_DATA)
_NO_HARM = 0.1
"""Severity of a problem that spoils no picture. Chosen by hand, low, to sort it behind real damage."""

_MIN_CONFIDENCE = 0.5
"""Total confidence of causes needed to report a risk without measured harm. Chosen by hand: it raised no alarm on 20
healthy runs (benchmarks/RESULTS.md)."""

SLOW = IssueName.SLOW
_MIN_HEALTHY = 3  # healthy runs on the same data set from which runs on other data are ignored; chosen by hand


def diagnose_epoch(
    metrics: EpochMetrics,
    epoch: int,
    total_epochs: int,
    run: TrainingRun,
    history: Sequence[RunHistory],
    audit: DataAudit | None = None,
) -> tuple[Diagnosis, ...]:
    """Diagnose an epoch's pictures, worst issue first.

    An issue that past runs also had at this point and lost later is marked as normal for the epoch.

    Args:
        metrics: Measurements of the epoch's pictures.
        epoch: Number of the epoch, from 1. Epoch 0 is the base model, which has no issues by definition.
        total_epochs: Epochs planned for the run.
        run: Run of the epoch.
        history: All runs. Those on another base model or data set are ignored.
        audit: Audit of the run's data set; None if there is none.
    """
    if epoch == 0:
        return ()
    past, healthy = _past(run, history), _healthy(run, history)
    found = []
    for issue in picture_issues(metrics):
        diagnosis = _diagnosis(issue, RunHistory(run=run), 0.0, past, _picture_names, healthy, audit)
        passing = _passing(issue.name, epoch / max(total_epochs, 1), past)
        if passing is not None:
            evidence = (*diagnosis.evidence, passing)
            diagnosis = diagnosis.changed(normal_for_epoch=True, evidence=evidence)
        found.append(diagnosis)
    return tuple(found)


def diagnose_run(
    run_history: RunHistory, history: Sequence[RunHistory], space: Space, audit: DataAudit | None = None
) -> tuple[Diagnosis, ...]:
    """Diagnose a finished run: how it ended, its learning curve, and the pictures of its best epoch.

    Issues of the run come first, then those of its pictures, each worst first. `slow` comes last, for a run that
    needed clearly more time per picture than others. Every failed run gets at least one diagnosis, and so does a run
    that is clearly worse than healthy ones. A setting or data set that is clearly risky is reported with low severity
    even if no harm was measured (`risky_setting`, `risky_data`).

    Args:
        run_history: The run.
        history: All runs. Those on another base model or data set are ignored where there are enough others.
        space: Defines which runs count as failed.
        audit: Audit of the run's data set; None if there is none.
    """

    def run_names(run: RunHistory) -> set[str]:
        return {issue.name for issue in run_issues(run, space.failed_quality)}

    run, past = run_history.run, _past(run_history.run, history)
    healthy = _healthy(run, history)
    quality = best_quality(run_history) or 0.0
    judged = judged_epoch(run_history)
    pictures = picture_issues(judged.quantitative_metrics) if judged is not None else ()
    whole = (
        *run_issues(run_history, space.failed_quality),
        *_below_healthy(run_history, healthy, space.failed_quality),
    )
    found = [_diagnosis(i, run_history, quality, past, run_names, healthy, audit) for i in whole]
    found += [_diagnosis(i, run_history, quality, past, _picture_names, healthy, audit) for i in pictures]
    found = [_mark_usual(d, healthy) for d in found]
    # Risks are only reported if nothing else explains the run. They come first, since the rest is normal.
    if all(d.normal_for_epoch for d in found):
        found = [*_risky(run_history, healthy, audit), *found]
    return (*found, *_slow(run_history, history))


def blamed(diagnoses: Sequence[Diagnosis]) -> tuple[LikelyCause, ...]:
    """Return the causes behind the issues of one run, by severity times confidence summed over issues.

    Issues that are normal are left out, and so is slowness, since it spoils no picture.
    """
    weights: dict[str, float] = {}
    causes: dict[str, LikelyCause] = {}
    for diagnosis in diagnoses:
        for cause in diagnosis.causes if not diagnosis.normal_for_epoch and diagnosis.issue != SLOW else ():
            weights[cause.factor] = weights.get(cause.factor, 0.0) + diagnosis.severity * cause.confidence
            known = causes.get(cause.factor)
            causes[cause.factor] = cause if known is None or known.confidence < cause.confidence else known
    return tuple(sorted(causes.values(), key=lambda cause: -weights[cause.factor]))


def _below_healthy(run: RunHistory, healthy: Healthy, failed_quality: float) -> list[Issue]:
    """Return an issue if a run did not fail but is worse than healthy ones."""
    quality, lacks = best_quality(run), healthy.shortfall(run)
    if not lacks or quality is None or quality < failed_quality:
        return []
    text = f"best quality {quality:.1f}, healthy runs have {healthy.quality:.1f} (median of {len(healthy.runs)})"
    return [Issue(IssueName.BELOW_HEALTHY, "dynamics", min(max(lacks / max(healthy.quality, 1.0), 0.05), 1.0), text)]


def _risky(run: RunHistory, healthy: Healthy, audit: DataAudit | None) -> list[Diagnosis]:
    """Return a diagnosis if the setting or data of a run are clearly risky although no harm was measured."""
    causes = [c for c in likely_causes(run, healthy, audit, ()) if not _outcome_of_machine(run)]
    if not causes or sum(c.confidence for c in causes) < _MIN_CONFIDENCE:
        return []
    first = causes[0]
    return [
        Diagnosis(
            issue="risky_setting" if first.factor in PARAMETERS else "risky_data",
            category=first.category,
            severity=_NO_HARM,
            cause=f"{first.sentence}; no harm was measured",
            recommendation=first.recommendation,
            confidence=first.confidence,
            evidence=first.evidence,
            causes=tuple(causes),
        )
    ]


def _slow(run: RunHistory, history: Sequence[RunHistory]) -> list[Diagnosis]:
    """Return a diagnosis if a run needed more time per picture than others on the same base model."""
    others = [h for h in history if h.run.base_model == run.run.base_model and h.run.uid != run.run.uid]
    found = slowness(run, others)
    if found is None:
        return []
    causes = slow_causes(run, others, found)
    first = causes[0] if causes else general_cause(SLOW, run.run.all_parameters)
    text = f"{found.seconds:.3g} s a picture, {found.ratio:.1f} times the {found.usual:.3g} s of {found.compared} runs"
    return [
        Diagnosis(
            issue=SLOW, category="resources", severity=_NO_HARM, cause=first.sentence,
            recommendation=first.recommendation, confidence=first.confidence, evidence=(text, *first.evidence),
            causes=causes,
        )
    ]  # fmt: skip


def _outcome_of_machine(run: RunHistory) -> bool:
    outcome = run.run.outcome
    return outcome is not None and outcome.failed and not outcome.blames_parameters


def _mark_usual(diagnosis: Diagnosis, healthy: Healthy) -> Diagnosis:
    """Mark a diagnosis as normal if most healthy runs have the issue as well, since it then explains nothing."""
    share = healthy.share_with(diagnosis.issue, {h.run.run_name: _picture_names(h) for h in healthy.runs})
    if share < _USUAL:
        return diagnosis
    text = f"{share:.0%} of {len(healthy.runs)} healthy runs show it at their best epoch too"
    return diagnosis.changed(normal_for_epoch=True, evidence=(*diagnosis.evidence, text))


def _healthy(run: TrainingRun, history: Sequence[RunHistory]) -> Healthy:
    """Return the healthy runs on the same base model and data set, or on any data set if those are too few."""
    here = Healthy.of(_past(run, history))
    if len(here.runs) >= _MIN_HEALTHY:
        return here
    others = [h for h in history if h.run.base_model == run.base_model and h.run.uid != run.uid]
    return Healthy.of([h for h in others if h.run.outcome is not None])


def _past(run: TrainingRun, history: Sequence[RunHistory]) -> list[RunHistory]:
    same = related(history, run.base_model, run.dataset)
    return [h for h in same if h.run.uid != run.uid and h.run.outcome is not None]


def _picture_names(run: RunHistory) -> set[str]:
    judged = judged_epoch(run)
    return {issue.name for issue in picture_issues(judged.quantitative_metrics)} if judged is not None else set()


def _diagnosis(
    issue: Issue,
    run: RunHistory,
    quality: float,
    past: Sequence[RunHistory],
    names: Names,
    healthy: Healthy,
    audit: DataAudit | None,
) -> Diagnosis:
    mine = run.run
    cases = [Case(h.run.run_name, h.run.all_parameters, issue.name in names(h), best_quality(h) or 0.0) for h in past]
    cases.append(Case(mine.run_name, mine.all_parameters, True, quality))
    # No parameter causes a broken machine or file, even if one happens to separate the affected runs.
    blameless = issue.name in _BLAMELESS
    learnt = None if blameless else learnt_cause(cases, mine.all_parameters)
    causes = [] if blameless else list(likely_causes(run, healthy, audit, (issue.name,)))
    if learnt is not None:
        # What past runs show replaces the general suspicion of the same parameter.
        causes = [c for c in causes if c.factor not in learnt.factors]
        causes = sorted([*_as_causes(learnt.factors, learnt), *causes], key=lambda c: -c.confidence)
    general = general_cause(issue.name, mine.all_parameters, audit)
    first = causes[0] if causes and causes[0].confidence >= general.confidence else None
    return Diagnosis(
        issue=issue.name,
        category=first.category if first is not None else issue.category,
        severity=issue.severity,
        cause=(first or general).sentence,
        recommendation=(first or general).recommendation,
        confidence=(first or general).confidence,
        evidence=(issue.measurement, *(first or general).evidence),
        causes=tuple(causes),
        expected_gain=healthy.shortfall(run) if healthy and run.epochs else None,
    )


def _as_causes(factors: Sequence[str], learnt: Cause) -> list[LikelyCause]:
    """Return one cause per blamed parameter. Parameters that changed together share one sentence."""
    return [
        LikelyCause(
            factor=name, category=str(PARAMETERS[(ratio_of(name) or (name,))[0]].category), sentence=learnt.sentence,
            recommendation=learnt.recommendation, confidence=learnt.confidence, evidence=learnt.evidence,
        )
        for name in factors
    ]  # fmt: skip


def _passing(name: str, progress: float, past: Sequence[RunHistory]) -> str | None:
    """Return the evidence that an issue at this share of the epochs goes away by itself; None without any."""
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
    if had < _MIN_PASSING or lost / had < _PASSING_SHARE:
        return None
    return f"{lost} of {had} earlier runs showed it at this point and no longer at their best epoch"
