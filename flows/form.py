"""A campaign from the form in Prefect's UI, for those who have no campaign.toml yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit
from prefect import flow

from flows.campaign import campaign
from schema.campaign import CampaignFile, campaign_json, load_campaign
from tasks.home import Home, replace_text


@flow(name="form", flow_run_name="form {settings.campaign.name}")
def form(settings: CampaignFile, home: str, trials: int | None = None) -> str:
    """Run or resume a campaign whose settings are given here; they are kept as `campaigns/NAME.toml` in the home.

    Args:
        settings: what campaign.toml holds; its paths are absolute, or start at the home.
        home: folder of database, runs and reports.
        trials: how many to run instead of the budget.

    Returns:
        Why it ended.
    """
    place = Home.at(Path(home))
    file = place.campaign_file(settings.campaign.name)
    file.parent.mkdir(parents=True, exist_ok=True)
    there = settings.model_copy(update={"folder": place.root})
    located = settings.campaign.changed(
        dataset=str(there.dataset_dir), prompts=str(there.prompts_file), base_model=there.base_model
    )
    replace_text(file, tomlkit.dumps(_without_none(campaign_json(settings.changed(campaign=located)))))
    load_campaign(file)
    return campaign(str(file), str(place.root), trials)


def _without_none(value: Any) -> Any:
    """TOML knows no null: what is left out has its default."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return [_without_none(one) for one in value] if isinstance(value, list) else value
