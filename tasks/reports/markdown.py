"""Write notes for optuna-dashboard in Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from schema.findings import (
    Analysis,
    Diagnosis,
    GateLedger,
    GateVerdict,
    Hypothesis,
    ImpactReport,
    ParameterEffect,
    Principle,
    RefusedProposal,
)
from schema.parameters import with_defaults
from schema.runs import EpochResult, RunHistory, TrainingRun
from schema.states import EffectVerdict
from tasks.reports import wording
from tasks.reports.leaderboard import Row, base_row, leaderboard
from tasks.reports.predictions import check_prediction, check_predictions, tally

_MANY_RUNS = 20  # below this, a note says that only large effects can be found. Chosen by hand
_SPECIAL = re.compile(r"[\\`*\[\]|]")


def trial_note(run: TrainingRun, epochs: Sequence[EpochResult]) -> str:
    """Return the note of one trial: result, prediction, diagnosis, next steps and parameters."""
    return _sections(
        f"# {_text(run.run_name)}: {_text(_headline(run))}",
        f"**{_text(run.failure)}**" if run.failure else "",
        _section("Gate", _verdict(run.verdict) if run.verdict else ""),
        _section("Prediction", _prediction(run)),
        _section("Epochs", _epochs(epochs)),
        _section("Diagnosis", _diagnoses(run.root_cause_diagnosis)),
        _section("Next steps", _list(map(_text, run.recommended_next_steps))),
        _section("Parameters", _parameters(run)),
    )


def campaign_note(
    history: Sequence[RunHistory],
    analysis: Analysis,
    ledger: GateLedger,
    base: EpochResult | None = None,
    principles: Sequence[Principle] = (),
) -> str:
    """Return the note of the study: leaderboard, effects, principles, next experiments, refused proposals."""
    rows = leaderboard(history)
    failed = sum(row.failed for row in rows)
    best = next((row for row in rows if row.rank == 1), None)
    sofar = f"best **{_text(best.run_name)}** at {wording.score(best.quality)}" if best else "none measured yet"
    counts = f"{wording.count(len(rows), 'run')}, {failed} failed"
    gate = wording.gate(ledger)
    return _sections(
        f"# {_text(analysis.campaign)}",
        f"{counts}; {sofar}. {tally(check_predictions(history))}" + (f" Gate: {_text(gate)}." if gate else ""),
        _section("Leaderboard", _leaderboard([*rows, *([base_row(base)] if base else [])])),
        _section("What matters", _effects(analysis.effects)),
        _section("Principles", _list(_text(f"{p.sentence} ({p.state}, {p.evidence})") for p in principles)),
        _section("Next experiments", _experiments(analysis.hypotheses)),
        _section("Refused by the gate", _refusals(ledger.refusals)),
    )


def _headline(run: TrainingRun) -> str:
    ending = str(run.outcome or run.status)
    if run.quality is None:
        return ending
    return f"quality {wording.score(run.quality)} at epoch {run.best_epoch or wording.NONE}, {ending}"


def _verdict(verdict: GateVerdict) -> str:
    chance = "" if verdict.p_fail is None else f", chance of failure {wording.percent(verdict.p_fail)}"
    return f"**{verdict.decision}** ({_text(wording.words(verdict.rule))}{chance}). {_text(verdict.reason)}"


def _prediction(run: TrainingRun) -> str:
    if run.predicted is None:
        return ""
    p, check = run.predicted, check_prediction(run)
    expected = (
        f"Expected {wording.score(p.quality)} ({wording.interval(p.low, p.high)}) from {wording.count(p.n, 'run')}"
    )
    if check is None:
        return f"{expected}."
    judgement = "within" if check.within else "not within"
    return f"{expected}; it became {wording.score(check.actual)}: {wording.signed(check.error)}, {judgement} 15 %."


def _epochs(epochs: Sequence[EpochResult]) -> str:
    rows = []
    for epoch in epochs:
        mean = epoch.quantitative_metrics.mean
        figures = (mean.colour, mean.style, mean.pixel_art_purity) if mean else (None, None, None)
        issues = ", ".join(wording.words(d.issue) for d in epoch.diagnosed_issues)
        loss = wording.NONE if epoch.train_loss is None else f"{epoch.train_loss:.4f}"
        rows.append((str(epoch.epoch_number), wording.score(epoch.quality), *map(wording.score, figures), loss, issues))
    return _table(("epoch", "quality", "colour", "style", "purity", "loss", "found"), rows)


def _diagnoses(diagnoses: Sequence[Diagnosis]) -> str:
    return _list(
        f"**{_text(wording.words(d.issue))}** (severity {wording.percent(d.severity)}, "
        f"confidence {wording.percent(d.confidence)}): {_text(d.cause)} *{_text(d.recommendation)}*"
        for d in diagnoses
    )


def _parameters(run: TrainingRun) -> str:
    """Return a table of the parameters that differ from kohya's defaults, and a line of the others."""
    settings, defaults = run.all_parameters, with_defaults({})
    names = wording.in_taxonomy_order(set(settings))
    changed = [name for name in names if name not in defaults or settings[name] != defaults[name]]
    usual = {name: settings[name] for name in names if name not in changed and settings[name] is not None}
    return _sections(
        _table(("parameter", "value"), [(name, wording.value(settings[name])) for name in changed]),
        f"At kohya's defaults: {_code(wording.settings(usual))}" if usual else "",
    ).rstrip()


def impact_note(report: ImpactReport, scope: str) -> str:
    """Return the effects of each parameter on each outcome: significant ones first, then the others by reason.

    Args:
        report: the impact report.
        scope: which runs it is about, as text.
    """
    claims = [e for e in report.effects if e.verdict.is_claim]
    constant = [e.parameter for e in report.effects if e.verdict is EffectVerdict.NEVER_VARIED]
    of_quality = [e for e in report.effects if e.outcome == "quality"]
    unsure = {e.parameter for e in of_quality if e.verdict is EffectVerdict.NONE_DETECTED}
    short = {e.parameter for e in of_quality if e.verdict is EffectVerdict.NOT_ENOUGH_DATA}
    together = sorted({tuple(sorted((e.parameter, o))) for e in report.effects for o in e.confounded_with})
    most = sorted(report.importance.items(), key=lambda pair: -pair[1])
    pairs = report.interactions
    return _sections(
        f"# What mattered: {_text(scope)}",
        f"{wording.count(report.n_runs, 'run')}, {wording.count(report.tests, 'test')} on "
        f"{wording.count(len(report.outcomes), 'outcome')}. Observed, not tested: a paired experiment is what proves a "
        "cause. p is corrected for all tests; intervals are 90 % bootstrap, of a split chosen for its difference.",
        _section("Found", _claims(claims) or _nothing(report.n_runs)),
        _section("Depends on each other", _list(f"{_text(i.sentence)} (p {i.p_value:.3f})" for i in pairs)),
        _section(f"Share of quality's variation, by {report.importance_by}",
                 _table(("parameter", "share"), [(name, wording.percent(share)) for name, share in most])),
        _section("Moved together: never blame one singly", _list(_text(f"{a} and {b}") for a, b in together)),
        _section("No effect on quality detected", _text(", ".join(sorted(unsure)))),
        _section("Not enough data", _text(", ".join(sorted(short)))),
        _section("Never varied", _text(", ".join(constant))),
    )  # fmt: skip


def _nothing(runs: int) -> str:
    few = ": so few runs show large effects only" if runs < _MANY_RUNS else ""
    return (
        f"Nothing that chance would not show as well{few}. Let the campaign run on, or test a hunch by pairs of runs: "
        "`pixelloop test`."
    )


def _claims(effects: Sequence[ParameterEffect]) -> str:
    return _table(
        ("parameter", "outcome", "verdict", "n", "best where", "difference", "interval", "p", "Spearman", "Pearson"),
        [
            (
                e.parameter, e.outcome, e.verdict, str(e.n), e.best, wording.signed(e.effect),
                wording.interval(e.low, e.high), wording.p_value(e.p_value), _correlation(e.spearman),
                _correlation(e.pearson),
            )
            for e in effects
        ],
    )  # fmt: skip


def _correlation(value: float | None) -> str:
    return wording.NONE if value is None else f"{value:+.2f}"


def _leaderboard(rows: Sequence[Row]) -> str:
    return _table(
        ("#", "run", "quality", "epoch", "outcome", "settings"),
        [
            (
                str(row.rank or wording.NONE),
                row.run_name,
                wording.score(row.quality),
                str(row.best_epoch or wording.NONE),
                row.outcome,
                wording.settings(row.parameters),
            )
            for row in rows
        ],
    )


def _effects(effects: Sequence[ParameterEffect]) -> str:
    return _table(
        ("parameter", "verdict", "evidence", "n", "effect", "interval", "p", "best where"),
        [
            (
                e.parameter,
                e.verdict,
                str(e.evidence),
                str(e.n),
                wording.signed(e.effect),
                wording.interval(e.low, e.high),
                wording.p_value(e.p_value),
                e.best,
            )
            for e in effects
        ],
    )


def _experiments(hypotheses: Sequence[Hypothesis]) -> str:
    return "\n".join(
        f"{h.priority}. {_code(wording.settings(h.change))} ({h.state}): {_text(h.rationale)}{_cost(h)}."
        f"{''.join(f' **{_text(text)}**' for text in h.blockers)}"
        for h in sorted(hypotheses, key=lambda h: h.priority)
    )


def _cost(hypothesis: Hypothesis) -> str:
    hours = hypothesis.gpu_hours
    return "" if hours is None else f", {wording.duration(hours * 3600)} of training"


def _refusals(refusals: Sequence[RefusedProposal]) -> str:
    return _list(
        f"proposal {r.number} ({_text(wording.words(r.verdict.rule))}): {_text(r.verdict.reason)}" for r in refusals
    )


def _sections(*parts: str) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _section(heading: str, body: str) -> str:
    return f"## {heading}\n\n{body}" if body else ""


def _list(lines: Iterable[str]) -> str:
    """Return a Markdown list of lines that are already escaped."""
    return "\n".join(f"- {line}" for line in lines)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_text(cell) for cell in line) + " |" for line in lines)


def _text(text: str) -> str:
    """Escape text for one line: it cannot end a table cell or start a tag, link, picture or code."""
    return _SPECIAL.sub(r"\\\g<0>", " ".join(text.split())).replace("<", "&lt;")


def _code(text: str) -> str:
    """Quote text as code, with more backticks than any run of them in it."""
    plain = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", plain)), default=0))
    space = " " if plain.startswith("`") or plain.endswith("`") else ""
    return f"{fence}{space}{plain}{space}{fence}"
