"""Commands that take a home elsewhere: backup, restore."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.filesize import decimal
from rich.markup import escape

from flows.cli.home import command, opened_home
from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption
from tasks.backup.files import Choice

if TYPE_CHECKING:
    from flows.runtime.wiring import Services
    from tasks.backup.backup import Contents

out = Console()


def backup(
    file: Annotated[Path, typer.Argument(help="File to write.", show_default=False)],
    files: Annotated[
        Choice,
        typer.Option(help="none: rows and settings; best: also pictures, reports and each run's best LoRA; all: all."),
    ] = Choice.BEST,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write a whole home into one file: database, Optuna's study, Prefect's runs, settings, files. Campaigns may run.

    Example: [bold]pixelloop backup /backup/night.pixelloop --home /data/pixelloop[/]
    """
    from tasks.backup.backup import back_up

    with opened_home(home) as services:
        history = services.store.history()
        trials = {services.home.relative(services.home.trial(h.run.campaign, h.run.number).root)
                  for h in history if h.run.finished_at is None}  # fmt: skip
        best = {h.run.best_checkpoint for h in history if h.run.best_checkpoint is not None}
        elsewhere = _elsewhere(services)
        contents = back_up(services.home, file, files, services.embedded, elsewhere, best, trials)
    _show(contents, file, as_json)
    if not as_json:
        out.print(f"restore    {escape(command('restore', file, '--home', 'NEW'))}", soft_wrap=True)


def restore(
    file: Annotated[Path, typer.Argument(help="A file of 'pixelloop backup'.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    instead: Annotated[
        bool, typer.Option("--instead", help="The original is gone: take over its identity in a shared database.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new home from a backup, under any path and on any machine; an existing one is never overwritten.

    Example: [bold]pixelloop restore /backup/night.pixelloop --home /data/new[/], then pixelloop resume --home /data/new
    """
    from tasks.backup.backup import restore as made
    from tasks.home import Home

    contents = made(file, Home.at(home), instead)
    _show(contents, home, as_json)
    if not as_json:
        out.print(f"go on      {escape(command('resume', '--home', home))}", soft_wrap=True)


def _elsewhere(services: Services) -> str | None:
    """Name the database that the rows of runs lie in, if it is not the home's own."""
    if services.settings.supabase_url is not None:
        return "the Supabase project of SUPABASE_URL"
    return "the database of DATABASE_URL" if services.embedded is None else None


def _show(contents: Contents, place: Path, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"path": str(place), "runs": contents.runs, **asdict(contents)}, indent=2))
        return
    size = f"{contents.files} files, {decimal(contents.bytes)}"
    rows = f"{contents.runs} runs, {sum(contents.rows.values())} rows"
    out.print(f"{escape(str(place))}: {rows}, {size}", soft_wrap=True, highlight=False)
    if contents.elsewhere is not None:
        out.print(f"not in it  the rows of runs, which lie in {contents.elsewhere}: back that up by its own means",
                  soft_wrap=True)  # fmt: skip
