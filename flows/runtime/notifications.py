"""Words to a person who is not looking: by mail, chat, webhook, or a notification block of Prefect."""

from __future__ import annotations

import logging
import re
from typing import Any, Literal

from rich.markup import escape

from flows.runtime import progress
from flows.runtime.secret_blocks import BLOCK
from flows.runtime.wiring import Context
from schema.errors import ConfigError
from schema.runs import Outcome, TrainingRun

Kind = Literal["end", "best", "trouble"]

_TROUBLE = (Outcome.CRASHED, Outcome.HUNG, Outcome.BAD_DATA)


def notify(context: Context, kind: Kind, subject: str, body: str) -> None:
    """Send a notice where the campaign wants this kind; what keeps it from going out is told and costs nothing else."""
    places = context.services.settings.notify
    if places is None or kind not in context.file.notify.on:
        return
    # Apprise's log, of Prefect's blocks too, holds the tokens of addresses that it does not like.
    logging.getLogger("apprise").setLevel(logging.CRITICAL + 1)
    for place in places.get_secret_value().split():
        try:
            send(place, subject, body)
        except Exception as error:  # noqa: BLE001 - whatever a chat's server or its client may raise
            told = str(error) if isinstance(error, ConfigError) else type(error).__name__  # others may hold the address
            progress.listener.message(f"[yellow]a notice could not be sent[/]: {escape(told)}")


def notify_of_trial(context: Context, run: TrainingRun, best_before: float | None) -> None:
    """A notice of a new best run, or of one that says something is wrong with the machine or the data."""
    if run.outcome in _TROUBLE:
        notify(context, "trouble", f"{run.run_name}: {run.outcome}", progress.describe(run))
    elif run.quality is not None and (best_before is None or run.quality > best_before):
        notify(context, "best", f"{run.run_name} is the best so far: {run.quality:.1f}", progress.describe(run))


def send(place: str, subject: str, body: str) -> None:
    """Send words to an address as Apprise has it, or to ``block:TYPE/NAME`` of Prefect.

    Raises:
        ConfigError: no place that anybody knows, or it did not take them.
        ValueError: no such block.
    """
    if place.startswith(BLOCK):
        from prefect.blocks.core import Block

        block: Any = Block.load(place.removeprefix(BLOCK), _sync=True)  # type: ignore[call-arg]
        block.notify(body=body, subject=subject, _sync=True)
        return
    from apprise import Apprise

    sender = Apprise()
    if not sender.add(place):
        raise ConfigError(f"PIXELLOOP_NOTIFY has an address that Apprise does not know: {_shown(place)}")
    if not sender.notify(body=body, title=subject):
        raise ConfigError(f"{_shown(place)} did not take it")


def _shown(place: str) -> str:
    """What may be told of an address: tokens stand in all of it but the scheme."""
    scheme = re.match(r"[a-z][a-z0-9+.-]*://", place)
    return f"{scheme[0] if scheme else ''}..."
