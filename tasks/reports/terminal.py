"""Build views for the terminal. Each function returns an object for a rich console; none prints."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from schema.findings import Decision, Diagnosis, GateVerdict, Hypothesis, Prediction
from schema.runs import EpochResult, PictureMetrics, RunHistory, TrainingRun, difference
from tasks.reports import wording
from tasks.reports.leaderboard import best_result
from tasks.reports.predictions import check_prediction

_FIGURES = {
    "colour": ("col", "colour"),
    "style": ("style", "style"),
    "background_accuracy": ("bg", "background"),
    "hair_accuracy": ("hair", "hair"),
    "crown_accuracy": ("crown", "crown"),
    "pixel_art_purity": ("pure", "pixel-art purity"),
    "photorealism": ("photo", "photorealism (lower is better)"),
    "palette_size": ("pal", "palette size (a count)"),
}
"""Fields of `PictureMetrics` to show, each with a column heading and a name."""


def prediction_panel(prediction: Prediction, verdict: GateVerdict) -> Panel:
    """Show the prediction for a setting, and whether the gate would let it run."""
    run = verdict.decision is Decision.RUN
    gate = Text.assemble(
        ("would run" if run else "would be refused", "bold green" if run else "bold red"),
        f" ({wording.words(verdict.rule)}): {verdict.reason}",
    )
    rows = [
        ("quality", Text(wording.score(prediction.quality), style="bold")),
        (
            "interval",
            Text(
                f"{wording.interval(prediction.low, prediction.high)} holds "
                f"{wording.percent(prediction.confidence)} of such runs"
            ),
        ),
        ("chance of failure", Text(wording.percent(prediction.p_fail))),
        ("from", Text(wording.count(prediction.n, "run"))),
        ("nearest runs", Text(", ".join(prediction.nearest) or "none")),
        ("gate", gate),
    ]
    if verdict.evidence:
        rows.append(("evidence", Text(", ".join(verdict.evidence))))
    return Panel(_pairs(rows), title="prediction", title_align="left", border_style="green" if run else "red")


def diagnosis_view(history: RunHistory) -> Group:
    """Show a run's epochs with their figures, its problems, and what to change."""
    run = history.run
    parts: list[RenderableType] = [_heading(run)]
    if run.failure:
        parts.append(Text(run.failure, style="red"))
    if run.verdict is not None:
        parts.append(Text(f"gate: {run.verdict.decision} ({wording.words(run.verdict.rule)}): {run.verdict.reason}"))
    if (check := check_prediction(run)) is not None:
        within = "within" if check.within else "not within"
        parts.append(
            Text(
                f"predicted {wording.score(check.prediction.quality)} "
                f"({wording.interval(check.prediction.low, check.prediction.high)}), "
                f"became {wording.score(check.actual)}: {within} 15 %"
            )
        )
    if history.epochs:
        parts += [Text(), _epoch_table(history)]
    parts += [Text(), *_diagnoses(run.root_cause_diagnosis)]
    if run.recommended_next_steps:
        parts += [Text("next steps", style="bold"), *(Text(f"  - {step}") for step in run.recommended_next_steps)]
    return Group(*parts)


def experiments_view(hypotheses: Sequence[Hypothesis]) -> RenderableType:
    """Show the proposed experiments, most promising first."""
    if not hypotheses:
        return Text("No experiment is proposed yet: they come with the analysis after a trial.")
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 2, 1, 0))
    table.add_column("#", justify="right")
    table.add_column("change against the best run")
    for h in sorted(hypotheses, key=lambda h: h.priority):
        facts = (
            f"expected {wording.score(h.expected.quality)} ({wording.signed(h.gain)}), "
            f"{wording.interval(h.expected.low, h.expected.high)}, p(fail) {wording.percent(h.expected.p_fail)}"
            f"{_cost(h)}, {h.state}"
        )
        blockers = [(f"\n{text}", "yellow") for text in h.blockers]
        cell = Text.assemble((wording.settings(h.change), "cyan"), f"\n{facts}\n", (h.rationale, "dim"), *blockers)
        table.add_row(Text(str(h.priority)), cell)
    return table


def _cost(hypothesis: Hypothesis) -> str:
    hours = hypothesis.gpu_hours
    return "" if hours is None else f", trains {wording.duration(hours * 3600)}"


def comparison_view(first: RunHistory, second: RunHistory) -> Group:
    """Show two runs side by side: the settings that differ, and the results."""
    table = Table(header_style="bold", box=None, pad_edge=False, padding=(0, 3, 0, 0))
    table.add_column("")
    for history in (first, second):
        table.add_column(Text(history.run.run_name), justify="right")
    table.add_column("difference", justify="right")
    changed = difference(first.run, second.run)
    for name in wording.in_taxonomy_order(set(changed)):
        a, b = changed[name]
        table.add_row(Text(name, style="cyan"), Text(wording.value(a)), Text(wording.value(b)), "")
    table.add_section()
    for name, a, b in _outcomes(first, second):
        table.add_row(Text(name), a, b, "")
    for name, x, y in _measurements(first, second):
        delta = None if x is None or y is None else y - x
        table.add_row(Text(name), wording.score(x), wording.score(y), wording.signed(delta))
    return Group(table, _fairness(len(changed)))


def _fairness(changes: int) -> Text:
    if changes == 0:
        return Text("\nNo parameter differs: what differs in the result is chance.", style="dim")
    if changes == 1:
        return Text("\nOne parameter differs: a paired comparison.", style="dim")
    return Text(f"\n{changes} parameters differ: the result cannot be laid at the door of one of them.", style="dim")


def _outcomes(first: RunHistory, second: RunHistory) -> list[tuple[str, str, str]]:
    a, b = first.run, second.run
    return [
        ("outcome", str(a.outcome or a.status), str(b.outcome or b.status)),
        ("best epoch", str(a.best_epoch or wording.NONE), str(b.best_epoch or wording.NONE)),
        ("time", wording.duration(a.total_training_time), wording.duration(b.total_training_time)),
    ]


def _measurements(first: RunHistory, second: RunHistory) -> list[tuple[str, float | None, float | None]]:
    best = [best_result(history) for history in (first, second)]
    means = [epoch.quantitative_metrics.mean if epoch else None for epoch in best]
    quality = [epoch.quality if epoch else None for epoch in best]
    figures = [(label, _figure(means[0], field), _figure(means[1], field)) for field, (_, label) in _FIGURES.items()]
    return [("quality", quality[0], quality[1]), *figures]


def _heading(run: TrainingRun) -> Text:
    failed = run.outcome is not None and run.outcome.failed
    heading = Text.assemble(
        (run.run_name, "bold"), "  ", (str(run.outcome or run.status), "red" if failed else "green")
    )
    if run.quality is not None:
        heading.append(f"  quality {wording.score(run.quality)} at epoch {run.best_epoch or wording.NONE}")
    return heading


def _epoch_table(history: RunHistory) -> Table:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for heading in ("epoch", "quality", *(short for short, _ in _FIGURES.values()), "loss"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("found", ratio=1)
    best = best_result(history)
    for epoch in history.epochs:
        style = "bold green" if best is not None and epoch.uid == best.uid else ""
        table.add_row(*_epoch_cells(epoch), style=style)
    return table


def _epoch_cells(epoch: EpochResult) -> list[Text]:
    figures = [_figure(epoch.quantitative_metrics.mean, field) for field in _FIGURES]
    loss = wording.NONE if epoch.train_loss is None else f"{epoch.train_loss:.4f}"
    issues = ", ".join(wording.words(d.issue) for d in epoch.diagnosed_issues)
    shown = (wording.NONE if figure is None else f"{figure:.0f}" for figure in figures)
    # Text, not str: rich reads [brackets] in a str as markup.
    return [Text(cell) for cell in (str(epoch.epoch_number), wording.score(epoch.quality), *shown, loss, issues)]


def _figure(mean: PictureMetrics | None, field: str) -> float | None:
    figure: float | None = getattr(mean, field, None)
    return figure


def diagnoses_view(diagnoses: Sequence[Diagnosis]) -> Group:
    """Show each issue with its possible causes, sorted by confidence times severity."""
    return Group(*_diagnoses(diagnoses))


def _diagnoses(diagnoses: Sequence[Diagnosis]) -> list[RenderableType]:
    if not diagnoses:
        return [Text("Nothing is wrong that was measured.", style="dim")]
    return [_diagnosis(each) for each in sorted(diagnoses, key=lambda d: -d.confidence * d.severity)]


def _diagnosis(diagnosis: Diagnosis) -> Text:
    numbers = (
        f"  {diagnosis.category}, severity {wording.percent(diagnosis.severity)}, "
        f"confidence {wording.percent(diagnosis.confidence)}"
    )
    text = Text.assemble((wording.words(diagnosis.issue), "bold yellow"), (numbers, "dim"))
    if diagnosis.normal_for_epoch:
        text.append("  normal for this epoch", style="dim")
    if diagnosis.expected_gain:
        text.append(f"  healthy runs have {diagnosis.expected_gain:.1f} more", style="dim")
    text.append(f"\n  cause  {diagnosis.cause}\n  mend   {diagnosis.recommendation}")
    for other in diagnosis.causes:
        if other.sentence != diagnosis.cause:
            text.append(f"\n  or     {wording.percent(other.confidence)}  {other.sentence}: {other.recommendation}")
    if diagnosis.evidence:
        text.append(f"\n  seen   {'; '.join(diagnosis.evidence)}", style="dim")
    return text.append("\n")


def _pairs(rows: Sequence[tuple[str, Text]]) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1)
    for name, text in rows:
        table.add_row(name, text)
    return table
