"""Commands that look into data and history: audit, impact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from schema.parameters import parse_setting, with_defaults

if TYPE_CHECKING:
    from schema.findings import DataAudit

_COLOURS = {"error": "red", "warning": "yellow", "note": "dim"}
_VALUES = 8

out = Console()


def audit(
    dataset: Annotated[Path, typer.Argument(help="Folder with pictures and captions.", show_default=False)],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Training parameter as name=value; may be repeated.")
    ] = None,
    base_model: Annotated[
        Path | None, typer.Option(help="Folder of the base model, whose tokenizer counts the captions' tokens.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Check pictures and captions before training; exit code 2 if something would stop a night.

    Example: [bold]pixelloop audit portraits/ --set shuffle_caption=true --set keep_tokens=1[/]
    """
    from tasks.captions_audit.audit import audit_dataset, model_tokens
    from tasks.captions_audit.captions import least_tokens

    parameters = with_defaults(dict(parse_setting(text) for text in settings or []))
    counts = (model_tokens(base_model) if base_model else None) or least_tokens
    found = audit_dataset(dataset, parameters, counts)
    if as_json:
        print(json.dumps(found.model_dump(mode="json"), indent=2))
    else:
        _show(found)
    if found.errors:
        raise typer.Exit(2)


def _show(found: DataAudit) -> None:
    out.print(f"{found.pictures} pictures in {found.dataset}", highlight=False)
    for one in found.findings:
        colour = _COLOURS[one.level]
        out.print(f"[{colour}]{one.level:8s}[/] {one.check}: {one.sentence}", highlight=False, soft_wrap=True)
        out.print(f"         {one.mend}", highlight=False, soft_wrap=True)
    if not found.findings:
        out.print("nothing wrong was found")
    if found.protected:
        out.print(f"keep_tokens keeps in front: {', '.join(found.protected)}", highlight=False, soft_wrap=True)
    table = Table("attribute", "values in the captions", box=None, header_style="bold", padding=(0, 1, 0, 0))
    for attribute, values in found.balance.items():
        shown = [f"{value} {count}" for value, count in list(values.items())[:_VALUES]]
        table.add_row(attribute, ", ".join(shown) + (", ..." if len(values) > _VALUES else ""))
    out.print(table)
