"""Which file a campaign goes on with, and what it may start.

A path in the database may come from an import, so it counts only inside the home. A file outside it counts where this
machine has started it before (`tasks.known_campaigns`).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from schema.campaign import load_campaign
from schema.errors import ConfigError, NotFoundError, StoreError, shown
from schema.runs import run_uid
from tasks.known_campaigns import KnownCampaigns

if TYPE_CHECKING:
    from flows.runtime.wiring import Services
    from tasks.store.base import CampaignRecord


def campaign_path(services: Services, name: str | None) -> Path:
    """Return the path of a campaign's file, to read it.

    Raises:
        NotFoundError: its runs were made elsewhere, and its file is not in this home.
    """
    return _located(services, services.campaign(name))[0]


def path_to_start(services: Services, name: str | None, yes: bool) -> Path:
    """Return the path of a campaign's file, to start what it names.

    Args:
        yes: the user agrees that a campaign from elsewhere starts its programs.

    Raises:
        NotFoundError: its runs were made elsewhere, and its file is not in this home.
        ConfigError: it came from elsewhere, would start a program, and the user has not agreed.
    """
    record = services.campaign(name)
    path, is_known = _located(services, record, may_ask=True)
    if is_known:
        return path
    file = load_campaign(path)
    told = f"campaign {record.name} was not started in this home before, and "
    if file.sd_scripts is not None:
        checkout, python = file.sd_scripts
        told += f"{path} starts {python} with {checkout}"
    elif not path.is_relative_to(services.home.root):
        told += f"its file {path} lies outside it"
    else:
        return path
    if not (yes or _agrees(told)):
        raise ConfigError(f"{told}: look at it, and give --yes if you trust it")
    known_campaigns(services).remember(record.name, path)
    return path


def known_campaigns(services: Services) -> KnownCampaigns:
    """Return what was started in this home.

    A home of an earlier version has no such list. It is made once from the campaigns whose runs lie in the home.
    """
    home, known = services.home, KnownCampaigns(services.home)
    if not KnownCampaigns.exist(home):
        for record in services.store.campaigns():
            if isinstance(record.settings.get("file"), str) and _has_run_here(services, record.name):
                known.remember(record.name, home.absolute(record.settings["file"]))
        known.begin()
    return known


def _has_run_here(services: Services, campaign: str) -> bool:
    home = services.home
    own = [r for r in services.store.runs(campaign) if r.uid == run_uid(home.uid, campaign, r.number)]
    return any(home.trial(campaign, run.number).root.is_dir() for run in own)


def _located(services: Services, record: CampaignRecord, may_ask: bool = False) -> tuple[Path, bool]:
    """Find a campaign's file, and say whether this machine has started it.

    Args:
        may_ask: the caller asks the user before it uses a file outside the home.
    """
    started = known_campaigns(services).file(record.name)
    if started is not None:
        return started, True
    file = record.settings.get("file")
    if not isinstance(file, str):
        raise NotFoundError(
            f"campaign {record.name} holds runs made elsewhere, without a campaign.toml: "
            "start one with 'pixelloop run campaign.toml', or name another with --campaign"
        )
    start = f"go on with 'pixelloop resume {record.name} --home {services.home.root}', which asks once"
    try:
        path = services.home.absolute(file) if may_ask else services.home.inside(file)
        is_there = path.is_file()
    except (StoreError, OSError, ValueError):  # a name may be too long for the file system
        raise NotFoundError(
            f"campaign {record.name} was not started in this home, and its file {shown(file)} lies outside it: {start}"
        ) from None
    start = f"start it with 'pixelloop run campaign.toml --home {services.home.root}', or name another with --campaign"
    if not is_there or load_campaign(path).campaign.name != record.name:
        raise NotFoundError(f"campaign {record.name} was not started in this home, and its file is not here: {start}")
    return path, False


def _agrees(told: str) -> bool:
    """Ask at the terminal. Without one nobody agrees."""
    if not sys.stdin.isatty():
        return False
    import typer

    return typer.confirm(f"{told}. Start it?", err=True)
