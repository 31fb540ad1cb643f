"""Compute everything the report shows; the template only lays it out."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from schema.errors import StoreError
from schema.findings import Analysis, Diagnosis, GateLedger, Hypothesis, ParameterEffect, RefusedProposal
from schema.parameters import PARAMETERS, Parameters, with_defaults
from schema.runs import EpochResult, RunHistory, TrainingRun
from schema.states import EffectVerdict
from tasks.home import Home
from tasks.reports import charts, wording
from tasks.reports.leaderboard import Row, base_row, differing_parameters, leaderboard
from tasks.reports.pictures import Picture, embed
from tasks.reports.predictions import PredictionCheck, check_prediction, check_predictions, tally
from tasks.reports.progression import Progression, progressions

_LARGE_SIDE, _SMALL_SIDE = 1600, 800
"""Longest side, in pixels, of the best run's sheets and of all others. A campaign has hundreds of them."""

_PICTURED_BEST, _PICTURED_NEWEST = 12, 8
"""Numbers of runs whose sheets are embedded; the others get links. All of 300 runs would make a file of 250 MB."""


@dataclass(frozen=True)
class Sheet:
    """Hold one epoch's sample sheet; `linked` means that the picture is left out on purpose."""

    title: str
    quality: float | None
    found: tuple[str, ...]
    path: str | None
    picture: Picture | None
    linked: bool = False


@dataclass(frozen=True)
class RunSection:
    """Hold everything the report shows of one run."""

    row: Row
    run: TrainingRun
    epochs: tuple[EpochResult, ...]
    sheets: tuple[Sheet, ...]
    changed: Parameters
    unchanged: Parameters
    check: PredictionCheck | None
    progressions: tuple[Progression, ...]


@dataclass(frozen=True)
class Blamed:
    """Hold one cause of an issue, and the runs diagnosed with it."""

    diagnosis: Diagnosis
    runs: tuple[str, ...]


@dataclass(frozen=True)
class Issue:
    """Hold one kind of problem over all runs, with its causes, most confident first."""

    name: str
    runs: tuple[str, ...]
    causes: tuple[Blamed, ...]


@dataclass(frozen=True)
class EffectBar:
    """Hold an effect with its interval as positions on a 0-100 scale that all effects share."""

    effect: ParameterEffect
    zero: float
    low: float
    high: float
    point: float


@dataclass(frozen=True)
class Report:
    """Hold everything the template shows."""

    campaign: str
    analysis: Analysis
    rows: tuple[Row, ...]
    base: Row | None
    best: RunSection | None
    base_sheet: Sheet | None
    hours: str
    failures: int
    issues: tuple[Issue, ...]
    sections: tuple[RunSection, ...]
    effects: tuple[EffectBar, ...]
    hypotheses: tuple[Hypothesis, ...]
    ledger: GateLedger
    refused_settings: tuple[Parameters, ...]
    checks: tuple[PredictionCheck, ...]
    tally: str
    figures: dict[str, charts.Figure]
    scatters: tuple[str, ...]


def build_report(
    campaign: str,
    history: Sequence[RunHistory],
    analysis: Analysis,
    ledger: GateLedger,
    base: EpochResult | None,
    home: Path,
) -> Report:
    """Compute the report. Runs may come in any order; picture paths are relative to `home`."""
    history = sorted(history, key=lambda each: (each.run.campaign, each.run.number))
    rows, names = leaderboard(history), differing_parameters(history)
    best = rows[0].run_name if rows and rows[0].rank == 1 else None
    pictured = _pictured(rows)
    by_number = {(each.run.campaign, each.run.number): each for each in history}
    sections = [
        _section(row, by_number[row.campaign, row.number or 0], names, home, row.run_name == best, row in pictured)
        for row in rows
    ]
    checks, effects = check_predictions(history), _in_order(analysis.effects)
    return Report(
        campaign=campaign,
        analysis=analysis,
        rows=tuple(rows),
        base=base_row(base) if base else None,
        best=sections[0] if best else None,
        base_sheet=_sheet("base model", base, home, _LARGE_SIDE) if base else None,
        hours=wording.duration(sum(_seconds(each) for each in history)),
        failures=sum(row.failed for row in rows),
        issues=tuple(_issues(history)),
        sections=tuple(sections),
        effects=tuple(_bars(effects)),
        hypotheses=tuple(sorted(analysis.hypotheses, key=lambda h: h.priority)),
        ledger=ledger,
        refused_settings=tuple(_searched(each, names) for each in ledger.refusals),
        checks=tuple(checks),
        tally=tally(checks),
        figures=_figures(history, rows, names, base, best),
        scatters=tuple(names),
    )


def _pictured(rows: Sequence[Row]) -> list[Row]:
    """Return the rows whose runs are shown with pictures: the best ones and the newest ones."""
    newest = sorted(rows, key=lambda row: row.number or 0)[-_PICTURED_NEWEST:]
    return [*rows[:_PICTURED_BEST], *newest]


def _section(
    row: Row, history: RunHistory, names: Sequence[str], home: Path, is_best: bool, pictured: bool
) -> RunSection:
    epochs = tuple(epoch for epoch in history.epochs if epoch.epoch_number > 0)
    side = (_LARGE_SIDE if is_best else _SMALL_SIDE) if pictured else None
    settings = history.run.all_parameters
    return RunSection(
        row=row,
        run=history.run,
        epochs=epochs,
        sheets=tuple(_sheet(f"epoch {epoch.epoch_number}", epoch, home, side) for epoch in epochs),
        changed={name: settings[name] for name in names if name in settings},
        unchanged={name: settings[name] for name in wording.in_taxonomy_order(set(settings) - set(names))},
        check=check_prediction(history.run),
        progressions=tuple(progressions(epochs)),
    )


def _sheet(title: str, epoch: EpochResult, home: Path, side: int | None) -> Sheet:
    """Return an epoch's sheet, shrunk to `side` pixels; only a link if `side` is None."""
    path = epoch.sample_sheet
    found = tuple(diagnosis.issue for diagnosis in epoch.diagnosed_issues)
    if side is None:
        return Sheet(title, epoch.quality, found, path, None, linked=path is not None)
    return Sheet(title, epoch.quality, found, path, _picture(path, home, side) if path else None)


def _picture(path: str, home: Path, side: int) -> Picture | None:
    """Return a sheet; None if it is missing or lies outside the home."""
    with contextlib.suppress(StoreError):
        return embed(Home(home).inside(path), side)
    return None


def _seconds(history: RunHistory) -> float:
    """Return the time a run took; if unrecorded, the wall-clock time until its end or last epoch."""
    if history.run.time_at_work is not None:
        return history.run.time_at_work
    ends = [history.run.finished_at, *(epoch.created_at for epoch in history.epochs)]
    end = max((moment for moment in ends if moment is not None), default=history.run.started_at)
    return max((end - history.run.started_at).total_seconds(), 0.0)


def _issues(history: Sequence[RunHistory]) -> list[Issue]:
    """Return the problems of all runs, most frequent first; those normal for good runs are left out."""
    found: dict[str, list[tuple[str, Diagnosis]]] = defaultdict(list)
    for each in history:
        for diagnosis in each.run.root_cause_diagnosis:
            if not diagnosis.normal_for_epoch:
                found[diagnosis.issue].append((each.run.run_name, diagnosis))
    issues = [Issue(name, tuple(dict.fromkeys(run for run, _ in hits)), _causes(hits)) for name, hits in found.items()]
    return sorted(issues, key=lambda issue: (-len(issue.runs), issue.name))


def _causes(hits: Sequence[tuple[str, Diagnosis]]) -> tuple[Blamed, ...]:
    by_cause: dict[tuple[str, str], list[tuple[str, Diagnosis]]] = defaultdict(list)
    for name, diagnosis in hits:
        by_cause[diagnosis.cause, diagnosis.recommendation].append((name, diagnosis))
    causes = [Blamed(same[0][1], tuple(name for name, _ in same)) for same in by_cause.values()]
    return tuple(sorted(causes, key=lambda cause: -cause.diagnosis.confidence))


def _in_order(effects: Sequence[ParameterEffect]) -> list[ParameterEffect]:
    """Sort effects by verdict, in the order of `EffectVerdict`, then by size."""
    place = {verdict: number for number, verdict in enumerate(EffectVerdict)}
    return sorted(effects, key=lambda e: (place[e.verdict], -abs(e.effect), e.parameter))


def _bars(effects: Sequence[ParameterEffect]) -> list[EffectBar]:
    ends = [e for effect in effects for e in (effect.low, effect.high, effect.effect) if e is not None]
    floor, top = min([0.0, *ends]), max([0.0, *ends])
    span = (top - floor) or 1.0

    def at(figure: float) -> float:
        return round(100 * (figure - floor) / span, 2)

    return [
        EffectBar(
            effect=effect,
            zero=at(0.0),
            low=at(effect.effect if effect.low is None else effect.low),
            high=at(effect.effect if effect.high is None else effect.high),
            point=at(effect.effect),
        )
        for effect in effects
    ]


def _searched(refusal: RefusedProposal, names: Sequence[str]) -> Parameters:
    """Return the distinctive settings of a refused proposal: those that differ between runs or from the defaults."""
    defaults = with_defaults({})
    telling = {n for n, v in refusal.parameters.items() if n in names or (n in PARAMETERS and v != defaults.get(n))}
    shown = set(names) & telling or telling
    return {name: refusal.parameters[name] for name in wording.in_taxonomy_order(shown)}


def _figures(
    history: Sequence[RunHistory], rows: Sequence[Row], names: Sequence[str], base: EpochResult | None, best: str | None
) -> dict[str, charts.Figure]:
    scatters = {f"scatter-{name}": charts.parameter_scatter(rows, name) for name in names}
    figures = {"curves": charts.quality_curves(history, base, best), **scatters}
    for each in history:
        if each.run.run_name == best:
            figures["measures"] = charts.measure_curves([e for e in each.epochs if e.epoch_number > 0])
    return figures
