"""Commands that keep everything running on one machine: up, down."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import time
from typing import TYPE_CHECKING, Annotated

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.home import command
from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption
from schema.errors import NotFoundError, PixelloopError
from tasks.child_process import child_environment, module_command

if TYPE_CHECKING:
    from tasks.home import Home

_START, _END = 180.0, 120.0  # seconds; far above a first start on a busy machine, and twice a trainer's grace

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
    from flows.runtime.prefect_server import check_start
    from flows.stack import check_ports, running
    from tasks.home import Home

    place = Home.at(home)
    check_start()
    _ = place.uid
    if running(place) is None:
        check_ports({"prefect": prefect_port, "dashboard": dashboard_port})
    words = module_command("flows.stack", place.root, prefect_port, dashboard_port)
    if foreground:  # in place of this process, so that a service manager's signals reach it
        os.chdir(place.root)
        os.execve(words[0], words, child_environment())
    if running(place) is None:
        with place.up_log.open("ab") as log:
            process = subprocess.Popen(
                words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env=child_environment(), cwd=place.root,
            )  # fmt: skip
        _wait_until_up(place, process)
    told = running(place) or {}
    if as_json:
        print(json.dumps(told, indent=2))
        return
    out.print(f"Prefect    {told['prefect']}", soft_wrap=True)
    out.print(f"dashboard  {told['dashboard']}", soft_wrap=True)
    out.print(f"sign in    {escape(command('login', '--home', home))}", soft_wrap=True)
    secret = f'PREFECT_API_AUTH_STRING="$(cat {shlex.quote(str(place.prefect / "password"))})"'
    out.print(f"a campaign PREFECT_API_URL={told['prefect']}/api {secret} "
              "prefect deployment run campaign/campaign -p campaign_file=/path/of/campaign.toml",
              soft_wrap=True, highlight=False, markup=False)  # fmt: skip
    out.print(f"end it     {escape(command('down', '--home', home))}", soft_wrap=True)


def login(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Print a link that signs your browser in to Prefect's UI: it works once, within ten minutes.

    Example: [bold]pixelloop login --home /data/pixelloop[/]
    """
    from flows.runtime.prefect_login import one_time_link
    from flows.runtime.prefect_server import running_server
    from flows.stack import running
    from tasks.home import Home

    place = Home.at(home)
    address = (running(place) or {}).get("prefect") or running_server(place.prefect)
    if address is None:
        raise NotFoundError(f"no Prefect server runs in {home}: 'pixelloop up' starts one, and so does a campaign")
    link = one_time_link(place.prefect, address)
    if as_json:
        print(json.dumps({"link": link}))
        return
    out.print(link, soft_wrap=True, highlight=False, markup=False)


def down(home: HomeOption = DEFAULT_HOME) -> None:
    """End what 'pixelloop up' has started; a campaign that runs saves its state first.

    Example: [bold]pixelloop down --home /data/pixelloop[/]
    """
    from flows.stack import running
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
    from flows.stack import running

    until = time.monotonic() + _START
    while running(place) is None:
        if process.poll() is not None or time.monotonic() > until:
            told = place.up_log.read_text(errors="replace").strip().splitlines()[-1:]
            raise PixelloopError(f"it does not start: {''.join(told)} (see {place.up_log})")
        time.sleep(0.2)
