"""Write the report as one HTML file that works offline, with pictures and charts inside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from schema.findings import Analysis, GateLedger, Principle
from schema.runs import EpochResult, RunHistory
from tasks.home import replace_text
from tasks.reports import wording
from tasks.reports.view import build_report


def write_report(
    path: Path,
    campaign: str,
    history: Sequence[RunHistory],
    analysis: Analysis,
    ledger: GateLedger,
    base: EpochResult | None,
    home: Path,
    principles: Sequence[Principle] = (),
) -> Path:
    """Write the report of a campaign; the same input gives the same bytes.

    Args:
        path: the file to write, atomically.
        campaign: name of the campaign.
        history: its runs with their epochs.
        analysis: effects and next experiments.
        ledger: decisions of the gate.
        base: measures of the base model without a LoRA, if there are any.
        home: folder that the paths of the sample sheets are relative to.
        principles: rules of all campaigns on this model and data.

    Returns:
        `path`.
    """
    from plotly.offline import get_plotlyjs  # takes half a second

    report = build_report(campaign, history, analysis, ledger, base, home)
    # Rendered in pieces: as one string, a large page takes memory that the process does not return.
    page = environment().get_template("report.html.j2").generate(
        r=report, principles=principles, plotly=Markup(get_plotlyjs())
    )  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    return replace_text(path, page)


def environment() -> Environment:
    """Return the environment of the templates; values are escaped, and a missing one is an error."""
    environment = Environment(
        loader=PackageLoader("tasks.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        wording.score, wording.signed, wording.percent, wording.value, wording.settings,
        wording.p_value, wording.interval, wording.duration, wording.words, wording.count, wording.gate,
    ):  # fmt: skip
        environment.filters[function.__name__] = function
    return environment
