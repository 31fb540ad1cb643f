"""Commands that keep everything running on one machine: up, down."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Annotated

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import typer
from rich.console import Console
from rich.markup import escape

from flows.cli_home import command
from flows.cli_options import DEFAULT_HOME, HomeOption, JsonOption
from schema.errors import NotFoundError, PixelloopError

if TYPE_CHECKING:
    from tasks.home import Home

_START, _END = 180.0, 120.0

out = Console()


def up(
    home: HomeOption = DEFAULT_HOME,
    prefect_port: Annotated[int, typer.Option(help="Port of Prefect on 127.0.0.1.", min=1, max=65535)] = 4200,
    dashboard_port: Annotated[int, typer.Option(help="Port of optuna-dashboard there.", min=1, max=65535)] = 8080,
    foreground: Annotated[bool, typer.Option(help="Stay in this terminal, as a service manager wants it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Start database, Prefect server, a worker with the campaign deployed, and optuna-dashboard.

    Example: [bold]pixelloop up --home /data/pixelloop[/], then campaigns start in Prefect's UI
    """
    from flows.up import check_ports, running
    from tasks.home import Home

    place = Home.at(home)
    _ = place.uid
    if running(place) is None:
        check_ports({"prefect": prefect_port, "dashboard": dashboard_port})
    words = [sys.executable, "-m", "flows.up", str(place.root), str(prefect_port), str(dashboard_port)]
    if foreground:
        raise typer.Exit(subprocess.call(words))
    if running(place) is None:
        with place.up_log.open("ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        _wait_until_up(place, process)
    told = running(place) or {}
    if as_json:
        print(json.dumps(told, indent=2))
        return
    out.print(f"Prefect    {told['prefect']}", soft_wrap=True)
    out.print(f"dashboard  {told['dashboard']}", soft_wrap=True)
    out.print(f"a campaign PREFECT_API_URL={told['prefect']}/api prefect deployment run campaign/campaign "
              "-p campaign_file=/path/of/campaign.toml", soft_wrap=True, highlight=False)  # fmt: skip
    out.print(f"end it     {escape(command('down', '--home', home))}", soft_wrap=True)


def down(home: HomeOption = DEFAULT_HOME) -> None:
    """End what 'pixelloop up' has started; a campaign that runs saves its state first.

    Example: [bold]pixelloop down --home /data/pixelloop[/]
    """
    from flows.up import running
    from tasks.home import Home

    place = Home.at(home)
    told = running(place)
    if told is None:
        raise NotFoundError(f"nothing is up in {home}: 'pixelloop up' starts it")
    process = psutil.Process(int(told["pid"]))
    process.terminate()
    try:
        process.wait(_END)
    except psutil.TimeoutExpired:
        raise PixelloopError(f"process {told['pid']} does not end: see {place.up_log}") from None
    out.print("everything has ended")


def _wait_until_up(place: Home, process: subprocess.Popen[bytes]) -> None:
    from flows.up import running

    until = time.monotonic() + _START
    while running(place) is None:
        if process.poll() is not None or time.monotonic() > until:
            told = place.up_log.read_text(errors="replace").strip().splitlines()[-1:]
            raise PixelloopError(f"it does not start: {''.join(told)} (see {place.up_log})")
        time.sleep(0.2)
