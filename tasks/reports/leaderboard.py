"""Rank the runs of a campaign, and show the leaderboard in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.table import Table
from rich.text import Text

from schema.base import Frozen
from schema.parameters import PARAMETERS, Parameters
from schema.runs import EpochResult, PictureMetrics, RunHistory
from tasks.reports import wording

_MAX_PARAMETERS = 6
"""Settings shown per run: a terminal has no room for more. The JSON form has all."""

_WIDE_COLUMNS = 110  # width of a terminal from which figures and settings fit side by side
_NARROW_COLUMNS = 76  # width below which the measures are left out
_MEASURES = ("col", "style", "bg", "hair", "crown", "pure")
"""Headings of the measures."""


class Row(Frozen):
    """Hold one line of the leaderboard. Figures are 0-100, higher is better; None if not measured."""

    rank: int | None = Field(None, description="from 1; None for failed and unmeasured runs and the base model")
    run_name: str
    campaign: str = ""
    number: int | None = Field(None, description="number of the trial; None for the base model")
    quality: float | None = None
    best_epoch: int | None = None
    outcome: str = Field(description="how it ended, or its status while it has not")
    failed: bool = False
    failure: str | None = None
    colour: float | None = None
    style: float | None = None
    background: float | None = None
    hair: float | None = None
    crown: float | None = None
    purity: float | None = Field(None, description="pixel-art purity")
    parameters: Parameters = Field(default_factory=dict, description="settings in which the runs differ")
    seconds: float | None = Field(None, description="training time")


def leaderboard(history: Sequence[RunHistory]) -> list[Row]:
    """Rank the runs by the quality of their best epoch.

    Runs without a quality come after the ranked ones, failed runs last. Ties go to the earlier run. A run in
    progress is ranked by its best epoch so far.
    """
    names = differing_parameters(history)
    rows = sorted((_row(each, names) for each in history), key=_order)
    ranked = sum(not row.failed and row.quality is not None for row in rows)
    return [row.changed(rank=place) if place <= ranked else row for place, row in enumerate(rows, start=1)]


def base_row(base: EpochResult) -> Row:
    """Return a row for the base model without a LoRA, as a baseline."""
    metrics = base.quantitative_metrics.mean
    return Row(run_name="base model", quality=base.quality, outcome="no LoRA", **_figures(metrics))


def differing_parameters(history: Sequence[RunHistory]) -> list[str]:
    """Return the settable parameters whose value differs between runs, in taxonomy order."""
    settings = [each.run.all_parameters for each in history]
    names = {name for one in settings for name in one if name not in PARAMETERS or not PARAMETERS[name].derived}
    return wording.in_taxonomy_order({name for name in names if len({_key(one.get(name)) for one in settings}) > 1})


def best_result(history: RunHistory) -> EpochResult | None:
    """Return the run's best epoch: the one the run names, else the one of highest quality so far; None without any."""
    trained = [epoch for epoch in history.epochs if epoch.epoch_number > 0]
    for epoch in trained:
        if epoch.epoch_number == history.run.best_epoch:
            return epoch
    measured = [epoch for epoch in trained if epoch.quality is not None]
    return max(measured, key=lambda epoch: epoch.quality or 0.0, default=None)


def training_seconds(history: RunHistory) -> float | None:
    """Return the seconds that the run, or its epochs so far, trained; None if nothing was timed."""
    if history.run.total_training_time is not None:
        return history.run.total_training_time
    timed = [epoch.seconds for epoch in history.epochs if epoch.seconds is not None]
    return sum(timed) if timed else None


@dataclass(frozen=True)
class _Leaderboard:
    """Lay the table out for the terminal's width; in a narrow one the settings get a table of their own below."""

    rows: tuple[Row, ...]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        wide = options.max_width >= _WIDE_COLUMNS
        yield self._figures(with_settings=wide, with_measures=options.max_width >= _NARROW_COLUMNS)
        if not wide and any(row.parameters for row in self.rows):
            yield Text()
            yield self._settings()

    def _figures(self, with_settings: bool, with_measures: bool) -> Table:
        table = Table(header_style="bold", box=None, pad_edge=False, collapse_padding=not with_settings)
        for heading in ("#", "run", "quality", "epoch"):
            table.add_column(heading, justify="left" if heading == "run" else "right", overflow="fold")
        table.add_column("outcome")
        for heading in (*(_MEASURES if with_measures else ()), "time"):
            table.add_column(heading, justify="right", no_wrap=True)
        if with_settings:
            table.add_column("settings", ratio=1)
        for row in self.rows:
            settings = [Text(_short_settings(row.parameters))] if with_settings else []
            cells = _cells(row)
            if not with_measures:
                del cells[-len(_MEASURES) - 1 : -1]
            table.add_row(*cells, *settings, style=_style(row))
        return table

    def _settings(self) -> Table:
        table = Table("run", "settings", header_style="bold", box=None, pad_edge=False)
        for row in self.rows:
            if row.parameters:
                table.add_row(Text(row.run_name), Text(_short_settings(row.parameters)), style=_style(row))
        return table


def rich_table(rows: Sequence[Row], base: Row | None = None) -> RenderableType:
    """Return the leaderboard for a terminal, with the base model last if given; narrow ones omit the measures."""
    return _Leaderboard((*rows, *([base] if base else [])))


def _cells(row: Row) -> list[Text]:
    figures = (row.colour, row.style, row.background, row.hair, row.crown, row.purity)
    return [
        Text(str(row.rank or wording.NONE)),
        Text(row.run_name),
        Text(wording.score(row.quality)),
        Text(str(row.best_epoch or wording.NONE)),
        Text(row.outcome),
        *(Text(wording.NONE if figure is None else f"{figure:.0f}") for figure in figures),
        Text(wording.duration(row.seconds)),
    ]


def _short_settings(parameters: Parameters) -> str:
    shown = dict(list(parameters.items())[:_MAX_PARAMETERS])
    hidden = len(parameters) - len(shown)
    return wording.settings(shown) + (f" and {hidden} more" if hidden else "")


def _style(row: Row) -> str:
    if row.number is None:
        return "dim"
    return "red" if row.failed else "bold green" if row.rank == 1 else ""


def _row(history: RunHistory, names: Sequence[str]) -> Row:
    run, best = history.run, best_result(history)
    return Row(
        run_name=run.run_name,
        campaign=run.campaign,
        number=run.number,
        quality=run.quality if run.quality is not None or best is None else best.quality,
        best_epoch=best.epoch_number if best else run.best_epoch,
        outcome=str(run.outcome or run.status),
        failed=run.outcome is not None and run.outcome.failed,
        failure=run.failure,
        parameters={name: run.all_parameters[name] for name in names if name in run.all_parameters},
        seconds=training_seconds(history),
        **_figures(best.quantitative_metrics.mean if best else None),
    )


def _figures(metrics: PictureMetrics | None) -> dict[str, Any]:
    if metrics is None:
        return {}
    return {
        "colour": metrics.colour,
        "style": metrics.style,
        "background": metrics.background_accuracy,
        "hair": metrics.hair_accuracy,
        "crown": metrics.crown_accuracy,
        "purity": metrics.pixel_art_purity,
    }


def _order(row: Row) -> tuple[bool, bool, float, str, int]:
    return row.failed, row.quality is None, -(row.quality or 0.0), row.campaign, row.number or 0


def _key(setting: object) -> tuple[str, object]:
    # True == 1 in Python, but not in TOML; 1 == 1.0 in both.
    return ("bool" if isinstance(setting, bool) else "value", setting)
