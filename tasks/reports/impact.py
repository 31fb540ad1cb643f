"""Write the impact report: Markdown for people, JSON for programs, one HTML page with the plots."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from schema.findings import ImpactReport
from schema.runs import RunHistory
from tasks.home import replace_text
from tasks.reports.charts import impact_map, importance_bars, parameter_scatter
from tasks.reports.html import environment
from tasks.reports.leaderboard import leaderboard
from tasks.reports.markdown import impact_note

_MAX_SCATTERS = 6  # plots of quality against one parameter. Chosen by hand: the page stays short


def write_impact(folder: Path, scope: str, report: ImpactReport, history: Sequence[RunHistory]) -> list[Path]:
    """Write impact.md, impact.json and impact.html; the same input gives the same bytes.

    Args:
        folder: created if it is missing.
        scope: which runs the report is about, as text.
        report: the impact report.
        history: its runs, for the plots.

    Returns:
        The paths of the three files.
    """
    from plotly.offline import get_plotlyjs  # takes half a second

    note = impact_note(report, scope)
    page = environment().get_template("impact.html.j2")
    texts = {
        "impact.md": note,
        "impact.json": json.dumps(report.model_dump(mode="json"), indent=2) + "\n",
        "impact.html": page.render(
            scope=scope, note=note, charts=impact_charts(report, history), plotly=Markup(get_plotlyjs())
        ),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        replace_text(folder / name, text)
    return [folder / name for name in texts]


def impact_charts(report: ImpactReport, history: Sequence[RunHistory]) -> list[tuple[str, dict[str, Any]]]:
    """Return titles and figures: importance, all outcomes, and quality against the most important parameters."""
    if not report.outcomes:
        return []
    rows = leaderboard(history)
    chosen = sorted(report.importance, key=lambda name: -report.importance[name])[:_MAX_SCATTERS]
    return [
        ("Share of quality's variation", importance_bars(report.importance)),
        ("Share of each outcome's variation, * is no chance", impact_map(report.effects)),
        *((f"Quality against {name}", parameter_scatter(rows, name)) for name in chosen),
    ]
