"""The command line: `pixelloop COMMAND`."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.ab import ab
from flows.cli.analysis import audit, diagnose, impact
from flows.cli.backup import backup, restore
from flows.cli.db import db
from flows.cli.doctor import doctor
from flows.cli.home import (
    as_it_is,
    command,
    named_run,
    opened_campaign,
    opened_home,
    refused_note,
    served_home,
)
from flows.cli.measure import measure, retest
from flows.cli.options import DEFAULT_HOME, AllOption, CampaignOption, HomeOption, JsonOption, RunArgument, YesOption
from flows.cli.paired import paired_test
from flows.cli.principles import principles
from flows.cli.queue import queue
from flows.cli.store import import_, log
from flows.cli.up import down, login, up
from schema.errors import NotFoundError, PixelloopError
from schema.states import CampaignStatus
from tasks.claims import Claim

if TYPE_CHECKING:
    from tasks.reports.leaderboard import Row

app = typer.Typer(
    help="Trains pixel-art LoRAs, measures every epoch, and learns why runs fail and what to try next.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_MOST_ROWS = 30
"""Rows of the leaderboard that are printed unless all are asked for: what fits a tall terminal."""

out = Console()
err = Console(stderr=True)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"pixelloop {version('pixelloop')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None: ...


@app.command()
def demo(
    home: HomeOption = Path("demo-run"),
    trials: Annotated[int | None, typer.Option(help="Trials to run instead of the campaign's budget.", min=1)] = None,
) -> None:
    """Run a small campaign for real: tiny Stable Diffusion, drawn portraits, every part of the loop.

    Example: [bold]pixelloop demo[/]
    """
    from demo.workspace import lay_out

    _run_campaign(lay_out(home), home, trials)


@app.command()
def run(
    campaign_file: Annotated[Path, typer.Argument(help="campaign.toml", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    trials: Annotated[int | None, typer.Option(help="Trials to run instead of the campaign's budget.", min=1)] = None,
) -> None:
    """Start a campaign; the same command again goes on where it stopped.

    Example: [bold]pixelloop run night.toml --home /data/pixelloop[/]
    """
    _run_campaign(campaign_file, home, trials)


@app.command()
def resume(
    name: Annotated[str | None, typer.Argument(help="Name of the campaign; the newest if left out.")] = None,
    home: HomeOption = DEFAULT_HOME,
    yes: YesOption = False,
) -> None:
    """Go on with a campaign that was interrupted or paused.

    Example: [bold]pixelloop resume --home demo-run[/]
    """
    from flows.runtime.campaign_files import path_to_start
    from tasks.home import Home

    with opened_home(home) as services:
        file = path_to_start(services, name, yes)
    place = Home.at(home)
    if place.paused.exists():
        place.paused.unlink()
        if not Claim.is_free(place.at_work):
            out.print("the pause is over: training goes on where it runs")
            return
    _run_campaign(file, home, None)


@app.command()
def pause(home: HomeOption = DEFAULT_HOME) -> None:
    """Let training wait: the trainer saves its state within seconds and gives the GPU back.

    Example: [bold]pixelloop pause --home demo-run[/], and later [bold]pixelloop resume --home demo-run[/]
    """
    from tasks.home import Home

    with opened_home(home):
        if Claim.is_free(Home.at(home).at_work):
            raise NotFoundError(f"nothing runs in {home}, so there is nothing to pause")
        Home.at(home).paused.touch()
    out.print(f"paused; go on with: [bold]{escape(command('resume', '--home', home))}[/]", soft_wrap=True)


@app.command()
def status(
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    show_all: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the leaderboard and what is running.

    Example: [bold]pixelloop status --home demo-run[/]
    """
    with opened_home(home) as services:
        record = services.campaign(campaign)
        history = as_it_is(services, services.store.history(record.name))
        ledger = services.ledger(record.name, history)
        refused = services.store.refused()
        state = record.status
        if state == CampaignStatus.RUNNING and services.embedded is not None and Claim.is_free(services.home.at_work):
            state = CampaignStatus.INTERRUPTED
    from tasks.home import Home
    from tasks.reports.leaderboard import leaderboard
    from tasks.reports.wording import gate

    rows = leaderboard(history)
    if as_json:
        values = {
            "runs": [row.model_dump(mode="json") for row in rows], "gate": ledger.model_dump(mode="json"),
            "refused_rows": len(refused),
        }  # fmt: skip
        _json({"campaign": record.name, "status": state, **values})
        return
    reason = f": {record.end_reason}" if record.end_reason else ""
    out.print(f"campaign [bold]{record.name}[/] {state}{reason}")
    _print_rows(rows, show_all)
    if gate(ledger):
        out.print(f"\ngate       {gate(ledger)}", soft_wrap=True)
    if refused:
        place = Home.at(home).outbox / "refused.jsonl"
        note = f"{len(refused)} rows could not be stored: see {place}, then 'pixelloop db retry'"
        out.print(f"\n[red]refused    {escape(note)}[/]", soft_wrap=True, highlight=False)


@app.command()
def runs(
    where: Annotated[
        list[str] | None, typer.Option(help="Condition such as 'network_dim > 32'; may be repeated.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    show_all: AllOption = False,
    as_json: JsonOption = False,
) -> None:
    """List runs of all campaigns, those that meet every condition.

    Example: [bold]pixelloop runs --where "network_dim > 32"[/]
    """
    from tasks.store.base import Condition

    conditions = [Condition.parse(text) for text in where or []]
    with opened_home(home) as services:
        found = {run.uid for run in services.store.find_runs(conditions)}
        history = as_it_is(services, [h for h in services.store.history() if h.run.uid in found])
    from tasks.reports.leaderboard import leaderboard

    rows = leaderboard(history)
    if as_json:
        _json([row.model_dump(mode="json") for row in rows])
    else:
        _print_rows(rows, show_all)


@app.command()
def dashboard(
    home: HomeOption = DEFAULT_HOME,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.", min=1, max=65535)] = 8080,
) -> None:
    """Open optuna-dashboard on a home: trials, curves, sample sheets, notes.

    Example: [bold]pixelloop dashboard --home demo-run[/], then open http://127.0.0.1:8080
    """
    with opened_home(home) as services:
        from tasks.dashboard.serve import serve

        def ready(url: str) -> None:
            out.print(f"optuna-dashboard on {url} (Ctrl-C ends it)")

        serve(services.optuna_url, services.home.artifacts, port=port, ready=ready)


@app.command()
def report(home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None) -> None:
    """Write the report anew and say where it lies.

    Example: [bold]pixelloop report --home demo-run[/]
    """
    with opened_campaign(home, campaign) as context:
        from flows.analysis import learn, show

        path = show(context, context.store.latest_analysis(context.name) or learn(context))
    out.print(f"report  {escape(os.path.relpath(path))}", soft_wrap=True)


@app.command()
def predict(
    settings: Annotated[list[str], typer.Argument(help="Parameters as name=value.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a setting would give, and whether the gate would let it run.

    Example: [bold]pixelloop predict learning_rate=0.001 network_dim=16 --home demo-run[/]
    """
    with opened_campaign(home, campaign) as context:
        parameters = context.space.complete(_settings(settings))
        prediction = context.surrogate(context.store.history()).predict(parameters)
        verdict = context.gate.judge(parameters, prediction, context.related(), number=0, skips_in_a_row=0)
    if as_json:
        _json({"prediction": prediction.model_dump(mode="json"), "verdict": verdict.model_dump(mode="json")})
        return
    from tasks.reports.terminal import prediction_panel

    out.print(prediction_panel(prediction, verdict))


@app.command("next")
def next_(home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None, as_json: JsonOption = False) -> None:
    """Show the experiments worth running next, with reasons.

    Example: [bold]pixelloop next --home demo-run[/]
    """
    with opened_home(home) as services:
        record = services.campaign(campaign)
        found = services.store.hypotheses(record.name)
    if as_json:
        _json([h.model_dump(mode="json") for h in found])
        return
    from tasks.reports.terminal import experiments_view

    out.print(experiments_view(found))


@app.command()
def compare(
    a: RunArgument,
    b: RunArgument,
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: what was set differently, and what came of it.

    Example: [bold]pixelloop compare 2 5 --home demo-run[/]
    """
    with opened_home(home) as services:
        first, second = named_run(services, a, campaign), named_run(services, b, campaign)
    if as_json:
        from schema.runs import difference

        _json({"a": first.run.run_name, "b": second.run.run_name, "parameters": difference(first.run, second.run)})
        return
    from tasks.reports.terminal import comparison_view

    out.print(comparison_view(first, second))


app.command()(up)
app.command()(login)
app.command()(down)
app.command()(measure)
app.command()(retest)
app.command("import")(import_)
app.command()(log)
app.command()(audit)
app.add_typer(db, name="db")
app.command()(impact)
app.add_typer(queue, name="queue")
app.add_typer(principles, name="principles")
app.command("test")(paired_test)
app.command()(diagnose)
app.command()(ab)
app.command()(backup)
app.command()(restore)
app.command()(doctor)


def main() -> NoReturn:
    """Entry point: errors of ours and of the disk are one sentence and exit code 2, Ctrl-C is 130."""
    from flows.runtime.interrupt import end_in_order
    from flows.runtime.prefect_environment import isolate, quiet_libraries

    end_in_order()
    try:
        isolate()
        quiet_libraries(Path.home() / ".prefect")
        code = _ended(app)
        if note := refused_note():
            err.print(f"[red]pixelloop:[/] {escape(note)}", soft_wrap=True, highlight=False)
        sys.exit(2 if note and not code else code)
    except PixelloopError as error:
        err.print(f"[red]pixelloop:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except OSError as error:
        if error.filename is None and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        told = escape(": ".join(str(part) for part in (error.filename, error.strerror) if part is not None))
        err.print(f"[red]pixelloop:[/] {told}", soft_wrap=True, highlight=False)
        sys.exit(2)


def _ended(command_line: Callable[[], object]) -> int | str | None:
    """Run the command line; return its exit code."""
    try:
        command_line()
    except SystemExit as end:
        return end.code
    return 0


def _run_campaign(campaign_file: Path, home: Path, trials: int | None) -> None:
    """Start everything a campaign needs, run it, and say where the results are."""
    from flows.runtime.prefect_server import check_start

    check_start()  # before the seconds that the imports take
    from flows.runtime.wiring import read_campaign
    from schema.settings import Settings
    from tasks.gpus import pick_device
    from tasks.home import Home

    name = read_campaign(campaign_file)[0].campaign.name  # what is wrong is told before anything is started
    pick_device(Settings().device)
    with served_home(home, out, ("resume", "--home", home)):
        from flows.campaign import campaign
        from flows.runtime.retry import patiently

        patiently(lambda: campaign(str(campaign_file.resolve()), str(Home.at(home).root), trials))
    status(home=home, campaign=name)
    _closing_words(home, name)


def _closing_words(home: Path, campaign: str) -> None:
    from tasks.home import Home

    place = Home.at(home)
    out.print(f"report     {escape(os.path.relpath(place.report(campaign)))}", soft_wrap=True)
    if place.best_lora(campaign).exists():
        out.print(f"best LoRA  {escape(os.path.relpath(place.best_lora(campaign)))}", soft_wrap=True)
    out.print(f"dashboard  {escape(command('dashboard', '--home', home))}", soft_wrap=True)


def _print_rows(rows: Sequence[Row], show_all: bool) -> None:
    """Print the leaderboard, its best rows alone unless all are asked for."""
    from tasks.reports.leaderboard import rich_table

    out.print(rich_table(rows if show_all else rows[:_MOST_ROWS]))
    if len(rows) > _MOST_ROWS and not show_all:
        out.print(f"and {len(rows) - _MOST_ROWS} more: add --all", highlight=False)


def _settings(texts: list[str]) -> dict[str, Any]:
    """Parameters given as name=value, each in its own type.

    Raises:
        ConfigError: no equals sign, unknown name or bad value.
    """
    from schema.parameters import parse_setting

    return dict(parse_setting(text) for text in texts)


def _json(data: object) -> None:
    print(json.dumps(data, indent=2, default=str))


if __name__ == "__main__":
    main()
