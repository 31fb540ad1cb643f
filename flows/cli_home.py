"""What commands open: a home, a campaign in it, a run of that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from schema.errors import NotFoundError

if TYPE_CHECKING:
    from flows.wiring import Context, Services
    from schema.runs import RunHistory


@contextlib.contextmanager
def opened_home(home: Path) -> Iterator[Services]:
    """The services of a home that exists.

    Raises:
        NotFoundError: it does not.
    """
    from flows import wiring
    from tasks.home import Home

    if not Home.at(home).exists:
        raise NotFoundError(
            f"no pixelloop home at {home}: give --home, or start one with 'pixelloop run campaign.toml'"
        )
    with wiring.session():
        yield wiring.open_home(str(home))


@contextlib.contextmanager
def opened_campaign(home: Path, campaign: str | None) -> Iterator[Context]:
    """A campaign by name, or the newest."""
    from flows import wiring

    with opened_home(home) as services:
        yield wiring.open_campaign(str(campaign_path(services, campaign)), str(home))


def campaign_path(services: Services, name: str | None) -> Path:
    """Path of a campaign's file.

    Raises:
        NotFoundError: its runs were made elsewhere.
    """
    record = services.campaign(name)
    if "file" not in record.settings:
        raise NotFoundError(
            f"campaign {record.name} holds runs made elsewhere, without a campaign.toml: "
            "start one with 'pixelloop run campaign.toml', or name another with --campaign"
        )
    return services.home.absolute(record.settings["file"])


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
