"""What commands open: a home, a campaign in it, a run of that."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape

from schema.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from rich.console import Console

    from flows.runtime.progress import Listener
    from flows.runtime.wiring import Context, Services
    from schema.runs import RunHistory, TrainingRun
    from tasks.claims import Claim


_written: list[Path] = []
"""Homes that this command has written to: at its end the rows are counted that could not be stored."""


@contextlib.contextmanager
def opened_or_made(home: Path) -> Iterator[Services]:
    """Yield the services of a home to write to; it is made if it is missing.

    Raises:
        ConfigError: its identity is broken.
    """
    from flows.runtime import wiring
    from tasks.home import Home

    _ = Home.at(home).uid  # makes it
    _written.append(home)
    with wiring.session():
        yield wiring.open_home(str(home))


def refused_note() -> str | None:
    """Say how many rows could not be stored in the homes that this command has written to; None without any."""
    from tasks.home import Home
    from tasks.store.spool import refused_rows

    for folder in (Home.at(home).outbox for home in _written):
        if rows := refused_rows(folder):
            count = "1 row was" if len(rows) == 1 else f"{len(rows)} rows were"
            return (
                f"{count} refused and set aside in {folder / 'refused.jsonl'}, the last one because: "
                f"{rows[-1].sentence}; remove the reason and send them again with 'pixelloop db retry', "
                "or forget them with 'pixelloop db retry --drop'"
            )
    return None


@contextlib.contextmanager
def opened_home(home: Path, writes: bool = False) -> Iterator[Services]:
    """Yield the services of a home that exists.

    Args:
        writes: the command adds rows, so those that cannot be stored are reported at its end.

    Raises:
        NotFoundError: it does not exist.
    """
    from flows.runtime import wiring
    from tasks.home import Home

    if not Home.at(home).exists:
        raise NotFoundError(
            f"no pixelloop home at {home}: give --home, or start one with 'pixelloop run campaign.toml'"
        )
    if writes:
        _written.append(home)
    with wiring.session():
        yield wiring.open_home(str(home))


@contextlib.contextmanager
def opened_campaign(home: Path, campaign: str | None, writes: bool = False) -> Iterator[Context]:
    """Yield a campaign by name, or the newest; see `opened_home`."""
    from flows.runtime import wiring
    from flows.runtime.campaign_files import campaign_path

    with opened_home(home, writes) as services:
        yield wiring.open_campaign(str(campaign_path(services, campaign)), str(home))


@contextlib.contextmanager
def served_home(home: Path, console: Console, go_on: Sequence[object]) -> Iterator[None]:
    """Start the database and the Prefect server that flows run in, and print what happens.

    Args:
        home: is made if it is missing.
        console: of the terminal.
        go_on: words of the command that goes on after an interruption.
    """
    from flows.runtime import interrupt, progress, wiring
    from flows.runtime.prefect_server import check_start, prefect_server
    from flows.stack import running
    from tasks.home import Home

    _written.append(home)
    interrupt.listen()
    check_start()
    own = os.environ.get("PREFECT_API_URL")
    up = running(Home.at(home))
    with progress.TerminalListener(console) as listener, _interrupt_explained(listener, go_on), wiring.session():
        progress.listener = listener
        listener.message(f"pixelloop in [bold]{escape(str(home))}[/]: starting database and Prefect server")
        services = wiring.open_home(str(home))
        with prefect_server(
            Home.at(home).prefect, services.prefect_url, revive=services.revive, report=_warning(listener),
            joined=None if up is None else f"{up['prefect']}/api",
        ) as url:  # fmt: skip
            dashboard = escape(command("dashboard", "--home", home))
            listener.message(f"Prefect: {url.removesuffix('/api')}   dashboard: {dashboard}")
            if own is None:
                listener.message(f"sign in to Prefect: {escape(command('login', '--home', home))}")
            from prefect.exceptions import TerminationSignal  # Prefect only now, with its address set

            try:
                yield
            except TerminationSignal:
                raise KeyboardInterrupt from None


@contextlib.contextmanager
def _interrupt_explained(listener: Listener, go_on: Sequence[object]) -> Iterator[None]:
    """Say how to go on after Ctrl-C, during the start as well."""
    try:
        yield
    except KeyboardInterrupt:
        listener.message(f"interrupted; go on with: [bold]{escape(command(*go_on))}[/]")
        raise


def as_it_is(services: Services, history: Sequence[RunHistory]) -> list[RunHistory]:
    """Return the history with runs as interrupted that nobody runs any more, as after a kill or in a restored home."""
    from schema.runs import RunStatus
    from tasks.claims import Claim

    home = services.home

    def is_left(run: TrainingRun) -> bool:
        running = run.status is RunStatus.RUNNING and home.owns(run)
        return running and Claim.is_free(home.trial(run.campaign, run.number).claim)

    return [
        h.model_copy(update={"run": h.run.changed(status=RunStatus.INTERRUPTED)}) if is_left(h.run) else h
        for h in history
    ]


def _warning(listener: Listener) -> Callable[[str], None]:
    return lambda message: listener.message(f"[yellow]{escape(message)}[/]")


def alone_at_work(home: Path) -> Claim:
    """A home for a paired test alone: a campaign beside it would take its halves, and slow them.

    Raises:
        ConfigError: a campaign, or another test, is at work in it.
    """
    from tasks.claims import Claim
    from tasks.home import Home

    held = Claim.take(Home.at(home).at_work)
    if held is None:
        raise ConfigError(f"a campaign or another test is at work in {home}: wait for its end, or interrupt it first")
    return held


def command(*words: object) -> str:
    """Return a command of this program, quoted for a shell."""
    return shlex.join([program(), *map(str, words)])


def program() -> str:
    """The program as it can be called from here: its name, or its path where no environment is activated."""
    beside = Path(sys.executable).with_name("pixelloop")
    if shutil.which("pixelloop") or not beside.exists():
        return "pixelloop"
    return min(str(beside), os.path.relpath(beside), key=len)


def named_run(services: Services, name: str, campaign: str | None) -> RunHistory:
    """A run by its name or number: of a campaign, or of the newest, or by its name of any.

    Raises:
        NotFoundError: there is none; the message lists those that exist.
    """
    record = services.campaign(campaign)
    history = services.store.history(record.name)
    for found in history:
        if name in (found.run.run_name, str(found.run.number)):
            return found
    for found in services.store.history() if campaign is None else ():
        if name == found.run.run_name:
            return found
    known = ", ".join(h.run.run_name for h in history) or "none yet"
    raise NotFoundError(f"no run {name} in campaign {record.name}: there is {known}")
