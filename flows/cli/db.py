"""Commands around the database: bring it up to date, move its rows, send again what it refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.home import opened_home, opened_or_made
from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption

out = Console()
db = typer.Typer(
    help="The database: bring it up to date, move it.\n\nExample: [bold]pixelloop db export night.jsonl.gz[/]",
    no_args_is_help=True,
)


@db.command("migrate")
def db_migrate(
    url: Annotated[
        str | None, typer.Option(help="postgresql://... of a hosted database; this home's if left out.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Bring a database up to date: pixelloop's tables are made, or added to yours; nothing is removed.

    The Data API makes no tables, so a Supabase project needs this once, or 'supabase db push'. Take the address of the
    session pooler (port 5432) from the project's settings.

    Example: [bold]pixelloop db migrate --url postgresql://postgres.abc@aws-1.pooler.supabase.com:5432/postgres[/]
    """
    from flows.runtime import wiring
    from tasks.store.migrate import migrate

    if url is not None:
        applied = migrate(url)
    else:
        with wiring.session():
            applied = migrate(wiring.open_home(str(home)).database_url)
    if as_json:
        _json({"applied": applied})
    else:
        out.print("\n".join(f"applied  {name}" for name in applied) or "up to date")


@db.command("export")
def db_export(
    file: Annotated[Path, typer.Argument(help="File to write; compressed if it ends in .gz.", show_default=False)],
    campaign: Annotated[str | None, typer.Option("--campaign", "-c", help="One campaign only.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Write all rows into one file that any other pixelloop database takes.

    Example: [bold]pixelloop db export night.jsonl.gz --campaign night[/]
    """
    from tasks.store.portable import export

    with opened_home(home) as services:
        if campaign is not None:
            services.campaign(campaign)  # an unknown name is an error
        counts = export(services.tables, file, campaign)
    _counted(counts, as_json)


@db.command("import")
def db_import(
    file: Annotated[Path, typer.Argument(help="A file of 'pixelloop db export'.", show_default=False)],
    name: Annotated[str | None, typer.Option("--as", help="Another name for the file's one campaign.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take over all rows of such a file; those that are here already are replaced by the file's.

    Runs of an import are evidence: they count in their campaign's budget, and new runs get the numbers after theirs.
    They are continued only in the home that made them.

    Example: [bold]SUPABASE_URL=... SUPABASE_KEY=... pixelloop db import night.jsonl.gz[/]
    """
    from flows.runtime.campaign_files import known_campaigns
    from tasks.store.portable import read_export, renamed, restore

    rows = read_export(file)  # a broken file makes no home
    if name is not None:
        rows = renamed(rows, name, file)
    with opened_or_made(home) as services:
        known_campaigns(services)  # made before foreign rows name files
        counts = restore(services.tables, rows)
    _counted(counts, as_json)


@db.command("retry")
def db_retry(
    drop: Annotated[
        bool, typer.Option("--drop", help="Forget them instead: they move to outbox/dropped.jsonl.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Send the rows once more that the database refused, after you have removed the reason.

    Example: [bold]pixelloop db retry --home demo-run[/]
    """
    with opened_home(home, writes=True) as services:
        before = len(services.store.refused())
        if drop:
            services.store.drop_refused()
        else:
            services.store.retry()
        left = len(services.store.refused())
    if as_json:
        _json({"dropped" if drop else "stored": before - left, "refused": left})
    else:
        out.print(f"{'dropped' if drop else 'stored'}  {before - left}\nrefused {left}")


def _counted(counts: dict[str, int], as_json: bool) -> None:
    if as_json:
        _json(counts)
    else:
        out.print("\n".join(f"{table:18} {n}" for table, n in counts.items() if n) or "no rows")


def _json(data: object) -> None:
    print(json.dumps(data, indent=2, default=str))
