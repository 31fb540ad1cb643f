"""Commands that look into data and history: audit, impact, diagnose."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from flows.cli.home import named_run, opened_campaign
from flows.cli.options import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption
from schema.errors import ConfigError, NotFoundError
from schema.parameters import parse_setting, with_defaults

if TYPE_CHECKING:
    from schema.findings import DataAudit, Diagnosis
    from schema.runs import RunHistory


_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
_VALUES = 8  # values of an attribute that fit a line of 120 characters

out = Console()


def audit(
    dataset: Annotated[Path, typer.Argument(help="Folder with pictures and captions.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Training parameter as name=value; may be repeated.")
    ] = None,
    base_model: Annotated[
        Path | None, typer.Option(help="Folder of the base model, whose tokenizer counts the captions' tokens.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check pictures and captions before training; exit code 2 if something would stop a night.

    Example: [bold]pixelloop audit portraits/ --set shuffle_caption=true --set keep_tokens=1[/]
    """
    from tasks.captions_audit.audit import audit_dataset, model_tokens
    from tasks.captions_audit.captions import least_tokens

    parameters = with_defaults(dict(parse_setting(text) for text in settings or []))
    counts = least_tokens if base_model is None else model_tokens(base_model)
    if counts is None:
        raise ConfigError(f"{base_model} has no folder 'tokenizer': give the folder of a diffusers model")
    found = audit_dataset(dataset, parameters, counts)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        _show(found)
    if found.errors:
        raise typer.Exit(2)


def _show(found: DataAudit) -> None:
    out.print(f"{found.pictures} pictures in {found.dataset}", highlight=False, markup=False)
    for one in found.findings:
        colour = _COLOURS[one.level]
        out.print(f"[{colour}]{one.level:8s}[/] {one.check}: {escape(one.sentence)}", highlight=False, soft_wrap=True)
        out.print(f"         {one.mend}", highlight=False, soft_wrap=True, markup=False)
    if not found.findings:
        out.print("nothing wrong was found")
    if found.protected:
        out.print(
            f"keep_tokens keeps in front: {', '.join(found.protected)}", highlight=False, soft_wrap=True, markup=False
        )
    table = Table("attribute", "values in the captions", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for attribute, values in found.balance.items():
        shown = [f"{value} {count}" for value, count in list(values.items())[:_VALUES]]
        table.add_row(attribute, ", ".join(shown) + (", ..." if len(values) > _VALUES else ""))
    out.print(table)


def impact(home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None, as_json: JsonOption = False) -> None:
    """Say which parameters moved what: quality, measures, failures, epochs to the best one, cost.

    All runs on the campaign's base model and data set count. Writes Markdown, JSON and a page with plots, and keeps the
    figures with the newest run (`parameter_analysis`).

    Example: [bold]pixelloop impact --home demo-run[/]
    """
    from optimizer.effects.effects import survey
    from tasks.reports.impact import write_impact
    from tasks.reports.markdown import impact_note

    with opened_campaign(home, campaign) as context:
        history = context.related()
        scope = f"campaign {context.name} and all runs on its model and data"
        found = survey(history, context.space)
        paths = write_impact(context.home.impact(context.name), scope, found, history)
        if history:
            context.store.save_parameter_analysis(history[-1].run.uid, found.effects)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=2))
        return
    out.print(impact_note(found, scope), markup=False, highlight=False, soft_wrap=True)
    for path in paths:
        out.print(f"{path.suffix[1:]:5s} {os.path.relpath(path)}", soft_wrap=True, highlight=False, markup=False)


def diagnose(
    name: Annotated[str, typer.Argument(help="Name or number of a run: demo-003 or 3.", show_default=False)],
    epoch: Annotated[int | None, typer.Option(help="One epoch instead of the whole run.", min=0)] = None,
    issue: Annotated[str | None, typer.Option(help="One issue, such as wrong_background.")] = None,
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Explain a run with what is known now: what is wrong, the likely causes and how sure they are, what to change.

    Example: [bold]pixelloop diagnose 3 --issue wrong_background --home demo-run[/]
    """
    from flows.analysis import diagnosed

    with opened_campaign(home, campaign) as context:
        run = named_run(context.services, name, campaign)
        found = _of_issue(diagnosed(context, run, epoch), issue, run.run.run_name)
    if as_json:
        print(json.dumps(_told(run, found).model_dump(mode="json"), indent=2))
        return
    from tasks.reports.terminal import diagnoses_view, diagnosis_view

    whole = epoch is None and issue is None
    out.print(diagnosis_view(_told(run, found)) if whole else diagnoses_view(found))


def _of_issue(found: Sequence[Diagnosis], issue: str | None, run_name: str) -> list[Diagnosis]:
    """All diagnoses, or those of one issue, whose name may be written as it is shown.

    Raises:
        NotFoundError: it was not found; the message lists those that were.
    """
    wanted = None if issue is None else issue.replace(" ", "_")
    chosen = [d for d in found if wanted in (None, d.issue)]
    if wanted is not None and not chosen:
        there = ", ".join(dict.fromkeys(d.issue for d in found)) or "none"
        raise NotFoundError(f"{run_name} has no issue {wanted}: there is {there}")
    return chosen


def _told(run: RunHistory, found: list[Diagnosis]) -> RunHistory:
    """The run with these diagnoses instead of those that were made when it ended."""
    return run.model_copy(update={"run": run.run.diagnosed(found)})
