"""Build charts as plain plotly figures: dictionaries of data and layout, without a theme's colours.

The report draws them with plotly.js, the dashboard through `plotly.graph_objects.Figure`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from schema.findings import ParameterEffect
from schema.parameters import PARAMETERS, ParameterValue
from schema.runs import EpochResult, RunHistory
from tasks.reports import wording
from tasks.reports.leaderboard import Row
from tasks.reports.predictions import check_predictions
from tasks.reports.progression import progressions

Figure = dict[str, Any]
"""A plotly figure: ``{"data": [...], "layout": {...}}``."""

_PALETTE = (
    "#3b82c4",
    "#d9822b",
    "#2f9e6e",
    "#b0579b",
    "#c0504d",
    "#8a7cc9",
    "#6f8f2f",
    "#3aa5a5",
    "#a07850",
    "#7d8794",
)
"""Ten hues that are readable on white and on near-black."""


def quality_curves(history: Sequence[RunHistory], base: EpochResult | None, best: str | None) -> Figure:
    """Plot quality over epochs, one line a run: the best is thick, failed ones dashed, the base model dotted."""
    data = [_curve(each, place, best) for place, each in enumerate(history) if each.curve]
    last = max((x for line in data for x in line["x"]), default=1)
    if base is not None and base.quality is not None:
        data.append(_line([0, last], [base.quality, base.quality], "base model", "#7d8794", 1.5, "dot", mode="lines"))
    layout = _layout("epoch", "quality", legend=True)
    layout["xaxis"] |= {"tickformat": "d", "dtick": max(1, last // 10)}
    return {"data": data, "layout": layout}


def measure_curves(epochs: Sequence[EpochResult]) -> Figure:
    """Plot every measure of one run over its epochs, one line each."""
    numbers = [epoch.epoch_number for epoch in epochs]
    data = [
        _line(numbers, list(row.figures), row.measure, _PALETTE[place % len(_PALETTE)], 1.5, "solid")
        for place, row in enumerate(progressions(epochs))
    ]
    layout = _layout("epoch", "0-100", legend=True)
    layout["xaxis"] |= {"tickformat": "d", "dtick": max(1, len(numbers) // 10)}
    return {"data": data, "layout": layout}


def parameter_scatter(rows: Sequence[Row], name: str) -> Figure:
    """Plot quality against one parameter; failed runs are crosses, at 0 if they have no quality."""
    kinds = ((False, "runs", "circle", _PALETTE[0]), (True, "failed", "x", _PALETTE[4]))
    data = [_points(rows, name, failed, label, symbol, colour) for failed, label, symbol, colour in kinds]
    layout = _layout(name, "quality", legend=False)
    if _is_numeric([row.parameters.get(name) for row in rows]):
        if name in PARAMETERS and PARAMETERS[name].log:
            layout["xaxis"] |= _log_axis([float(x) for trace in data for x in trace["x"]])
    else:
        layout["xaxis"]["type"] = "category"
    return {"data": [trace for trace in data if trace["x"]], "layout": layout}


def calibration(history: Sequence[RunHistory]) -> Figure:
    """Plot each run's quality against its prediction, with the interval; points on the line were exact."""
    checks = check_predictions(history)
    predicted = [check.prediction.quality for check in checks]
    measured = [check.actual for check in checks]
    ends = [min([*predicted, *measured], default=0.0), max([*predicted, *measured], default=100.0)]
    points = {
        "type": "scatter", "mode": "markers", "name": "runs", "x": predicted, "y": measured,
        "marker": {"size": 9, "color": [_PALETTE[0] if check.in_interval else _PALETTE[4] for check in checks]},
        "error_x": {
            "type": "data", "symmetric": False, "thickness": 1, "color": _PALETTE[9],
            "array": [check.prediction.high - check.prediction.quality for check in checks],
            "arrayminus": [check.prediction.quality - check.prediction.low for check in checks],
        },
        "text": [check.run_name for check in checks],
    }  # fmt: skip
    exact = {
        "type": "scatter", "mode": "lines", "name": "exact", "x": ends, "y": ends,
        "line": {"color": _PALETTE[9], "width": 1.5, "dash": "dot"},
    }  # fmt: skip
    return {"data": [points, exact], "layout": _layout("predicted quality, with its interval", "quality", legend=False)}


def importance_bars(importance: Mapping[str, float]) -> Figure:
    """Plot the share of quality's variation by parameter, the largest on top."""
    ranked = sorted(importance.items(), key=lambda pair: pair[1])
    bars = {
        "type": "bar", "orientation": "h", "marker": {"color": _PALETTE[0]},
        "x": [100 * share for _, share in ranked], "y": [name for name, _ in ranked],
    }  # fmt: skip
    return {"data": [bars], "layout": _layout("share of quality's variation, %", "", legend=False)}


def impact_map(effects: Sequence[ParameterEffect]) -> Figure:
    """Plot the share of each outcome's variation by parameter; a star marks significant effects."""
    tested = [e for e in effects if e.importance is not None and e.p_value is not None]
    parameters = list(dict.fromkeys(e.parameter for e in tested))
    outcomes = list(dict.fromkeys(e.outcome for e in tested))
    cells = {(e.parameter, e.outcome): e for e in tested}
    grid = [[cells.get((p, o)) for o in outcomes] for p in parameters]
    figure = {
        "type": "heatmap", "x": outcomes, "y": parameters, "zmin": 0, "zmax": 100, "colorscale": "Blues",
        "z": [[None if e is None else 100 * (e.importance or 0) for e in row] for row in grid],
        "text": [["*" if e and e.verdict.is_claim else "" for e in row] for row in grid],
        "texttemplate": "%{text}",
    }  # fmt: skip
    return {"data": [figure], "layout": _layout("", "", legend=False)}


def _curve(history: RunHistory, place: int, best: str | None) -> Figure:
    run = history.run
    failed = run.outcome is not None and run.outcome.failed
    points = [(epoch, quality) for epoch, quality in history.curve if epoch > 0]
    width, dash = (4.0, "solid") if run.run_name == best else (1.5, "dash" if failed else "solid")
    epochs, qualities = [p[0] for p in points], [p[1] for p in points]
    line = _line(epochs, qualities, run.run_name, _PALETTE[place % len(_PALETTE)], width, dash)
    return line | {"zorder": 1 if run.run_name == best else 0}  # draw the best run on top


def _line(
    x: list[int],
    y: Sequence[float | None],
    name: str,
    colour: str,
    width: float,
    dash: str,
    mode: str = "lines+markers",
) -> Figure:
    line = {"color": colour, "width": width, "dash": dash}
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y, "line": line, "marker": {"size": 6}}


def _points(rows: Sequence[Row], name: str, failed: bool, label: str, symbol: str, colour: str) -> Figure:
    shown = [r for r in rows if r.failed == failed and r.parameters.get(name) is not None]
    shown = [r for r in shown if r.quality is not None or failed]
    marker = {"size": 9, "symbol": symbol, "color": colour, "opacity": 0.85}
    # cliponaxis: markers of failed runs lie on the axis and would be cut in half.
    return {
        "type": "scatter", "mode": "markers", "name": label, "marker": marker, "cliponaxis": False,
        "x": [_coordinate(r.parameters[name]) for r in shown],
        "y": [r.quality or 0.0 for r in shown],
        "text": [f"{r.run_name}: {r.outcome}" for r in shown],
        "hovertemplate": "%{text}<br>%{x}<br>quality %{y:.1f}<extra></extra>",
    }  # fmt: skip


def _coordinate(setting: ParameterValue) -> ParameterValue:
    return wording.value(setting) if isinstance(setting, bool) else setting


def _is_numeric(settings: Sequence[ParameterValue]) -> bool:
    return all(isinstance(s, int | float) and not isinstance(s, bool) for s in settings if s is not None)


def _log_axis(values: Sequence[float]) -> Figure:
    """Return a log axis: labels at 1, 2 and 5 over a short span, at powers of ten over a long one, to fit."""
    low, high = min(values, default=1.0), max(values, default=1.0)
    short = low <= 0 or high / low < 30
    return {"type": "log", "dtick": "D2" if short else 1, "tickformat": "~e" if high < 0.01 else "~g"}


def _layout(x: str, y: str, legend: bool) -> Figure:
    return {
        "xaxis": {"title": {"text": x}, "automargin": True, "zeroline": False},
        "yaxis": {"title": {"text": y}, "automargin": True, "zeroline": False, "rangemode": "tozero"},
        "showlegend": legend,
        "legend": {"orientation": "h", "y": -0.25},
        "margin": {"l": 10, "r": 10, "t": 10, "b": 10},
        "hovermode": "closest",
    }
