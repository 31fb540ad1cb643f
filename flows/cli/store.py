"""Commands that add to the history: runs of earlier days, and a person's scores."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from flows.cli.home import named_run, opened_home, opened_or_made
from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption
from flows.runtime.secret_blocks import open_settings
from schema.errors import ConfigError, NotFoundError, RowRefusedError

if TYPE_CHECKING:
    from flows.runtime.wiring import Services
    from schema.runs import TrainingRun
    from tasks.history.facts import Fact, Found
    from tasks.history.merge import Imported

out = Console()
err = Console(stderr=True)


def import_(
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Files, folders, or addresses of databases with your tables.", show_default=False),
    ] = None,
    own_tables: Annotated[
        bool, typer.Option(help="Also the rows that your two tables in this database had before pixelloop.")
    ] = False,
    base_model: Annotated[
        str | None, typer.Option(help="Base model of all these runs, as a campaign names it.")
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="Folder of their data set, if it is still as it was.", exists=True)
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Take over runs of earlier days: LoRA files, kohya's TOML, the GUI's JSON, TensorBoard events, tables of scores.

    Every value keeps its source; where two differ, both are shown. Importing twice changes nothing. Decisions count a
    run fully where base model and data set are those of the campaign, and little otherwise: name them if you know.

    Example: [bold]pixelloop import old-loras/ scores.csv --base-model ~/models/sd15 --dataset knights/[/]
    """
    from tasks.history.merge import CAMPAIGN, assemble
    from tasks.history.read import read_all

    settings = open_settings()
    options = _options(base_model, dataset)
    if not paths and not own_tables:
        raise ConfigError("nothing to import: name files, folders or databases, or give --own-tables")
    found, unread = read_all(paths, settings.supabase_key) if paths else ([], [])
    with opened_or_made(home) as services:
        if own_tables:
            found += _own(services)
        imported, notes = assemble(found, services.store.history(), options, datetime.now(UTC))
        ends = [_kept(services, run) for run in imported]
        if imported:
            services.store.save_campaign(CAMPAIGN, {}, "finished", "taken over by 'pixelloop import'")
    if as_json:
        _json(_as_data(imported, ends, [*unread, *notes]))
    else:
        _show(imported, ends, [*unread, *notes])


def log(
    epoch: Annotated[int, typer.Argument(help="Epoch, from 1.", min=0, show_default=False)],
    visual: Annotated[float, typer.Argument(help="How good the pictures look, 0-10.", min=0, max=10)],
    style: Annotated[float, typer.Argument(help="How well they match the style, 0-10.", min=0, max=10)],
    prompt: Annotated[float, typer.Argument(help="How well they do what the prompts say, 0-10.", min=0, max=10)],
    words: Annotated[str | None, typer.Argument(help="What you saw.")] = None,
    run: Annotated[str | None, typer.Option("--run", "-r", help="Name or number; the newest if left out.")] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Keep what you see in an epoch's pictures; said again, the new word takes the place of the old one.

    Example: [bold]pixelloop log 7 8 9 7 "background right at last" --run demo-003[/]
    """
    from tasks.history.facts import EpochFound, Found
    from tasks.history.merge import assemble

    with opened_home(home, writes=True) as services:
        rated = _run(services, run)
        said = EpochFound(epoch, visual=visual, style=style, prompt=prompt, words=words)
        found = Found("pixelloop log", rated.run_name, epochs=(said,))
        (result,), _ = assemble([found], services.store.history(), [], datetime.now(UTC))
        known = [e.epoch_number for e in (*result.before.epochs, *result.epochs)] if result.before else []
        if epoch not in known:
            raise NotFoundError(
                f"run {rated.run_name} has no epoch {epoch}: it has {', '.join(map(str, known)) or 'none'}"
            )
        result.keep(services.store)
    rating = result.ratings[0]
    if as_json:
        _json({"run": rated.run_name, **rating.model_dump(mode="json"), "quality": rating.quality})
    else:
        out.print(f"{rated.run_name} epoch {epoch}: {rating.quality:.0f} of 100 by your scores")


def _kept(services: Services, run: Imported) -> str:
    """Save a run; ``new``, ``changed``, ``unchanged``, or ``refused`` where the database refuses a row of it."""
    before = len(services.store.refused())
    try:
        end = run.keep(services.store)
    except RowRefusedError:
        return "refused"
    return end if len(services.store.refused()) == before else "refused"


def _options(base_model: str | None, dataset: Path | None) -> list[Fact]:
    """What is said for all runs at once."""
    from tasks.history.facts import Fact, Source
    from tasks.training.dataset import dataset_fingerprint

    said = []
    if base_model is not None:
        place = Path(base_model).expanduser()
        said.append(("base_model", str(place.resolve()) if place.exists() else base_model))
    if dataset is not None:
        said.append(("dataset", dataset_fingerprint(dataset.resolve())))
    return [Fact(name, value, Source.OPTION, "command line") for name, value in said]


def _own(services: Services) -> list[Found]:
    from tasks.history.database import read_postgres, read_supabase

    settings = services.settings
    if settings.supabase_url is not None and settings.supabase_key is not None:
        return read_supabase(settings.supabase_url, settings.supabase_key)
    return read_postgres(services.database_url)


def _run(services: Services, name: str | None) -> TrainingRun:
    """A run by its name or number as everywhere, or the newest of all campaigns."""
    if name is not None:
        return named_run(services, name, None).run
    runs = services.store.runs()
    if not runs:
        raise NotFoundError(f"no run in {services.home.root}: there is none yet")
    return runs[-1]


def _as_data(imported: Sequence[Imported], ends: Sequence[str], notes: Sequence[str]) -> dict[str, Any]:
    return {"runs": [_run_data(i, end) for i, end in zip(imported, ends, strict=True)], "notes": list(notes)}


def _run_data(imported: Imported, end: str) -> dict[str, Any]:
    shown = {"uid", "run_name", "base_model", "dataset", "quality", "best_epoch", "outcome", "sources"}
    return {
        **imported.run.model_dump(mode="json", include=shown),
        "parameters": imported.run.all_parameters,
        "epochs": len(imported.epochs),
        "ratings": len(imported.ratings),
        "conflicts": [conflict.sentence for conflict in imported.conflicts],
        "end": end,
    }


def _show(imported: Sequence[Imported], ends: Sequence[str], notes: Sequence[str]) -> None:
    table = Table(box=None, header_style="bold", padding=(0, 1, 0, 0), pad_edge=False)
    for heading in ("run", "", "quality", "epochs", "base model", "data set", "parameters from"):
        table.add_column(heading, overflow="fold")
    for i, end in zip(imported, ends, strict=True):
        words = Counter(told.partition(":")[0] for told in i.run.sources.values())
        quality = "-" if i.run.quality is None else f"{i.run.quality:.0f}"
        epochs = str(len(i.epochs) or len(i.ratings))
        sources = ", ".join(f"{word} {n}" for word, n in words.most_common())
        table.add_row(i.run.run_name, end, quality, epochs, Path(i.run.base_model).name, i.run.dataset, sources)
    out.print(table)
    for conflict in (c for i in imported for c in i.conflicts):
        out.print(f"conflict  {conflict.sentence}", soft_wrap=True, highlight=False, markup=False)
    for note in notes:
        out.print(f"note      {note}", soft_wrap=True, highlight=False, markup=False)


def _json(data: object) -> None:
    print(json.dumps(data, indent=2, default=str))
