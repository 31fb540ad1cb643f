"""Docs that are run cannot rot."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import psycopg
import pytest

from schema.campaign import CampaignFile, GateSettings
from schema.prompts import PromptSuite
from tasks.store.postgres import PostgresStore
from tasks.training.kohya import read_kohya
from tests.tasks.store.store_contract import make_epoch, make_run

DOCS = Path(__file__).parent.parent / "docs"


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def filled(postgres_url: str) -> str:
    store = PostgresStore(postgres_url)
    for number, rank in ((0, 16), (1, 64)):
        run = make_run(number, campaign="demo", network_dim=rank).changed(quality=40.0 + number)
        store.save_run(run)
        store.save_epoch(make_epoch(run, 1))
        store.save_epoch(make_epoch(run, 2))
    store.close()
    return postgres_url


def test_the_three_questions_are_answered_by_the_database(filled: str) -> None:
    above, different, by_epoch = blocks("queries.md", "sql")
    with psycopg.connect(filled) as connection:
        assert connection.execute(above.encode()).fetchall() == [("demo-001", "64", None, 41.0)]
        assert connection.execute(different.encode()).fetchall() == [("network_dim", 16, 64)]
        assert [row[:2] for row in connection.execute(by_epoch.encode()).fetchall()] == [(1, 50.0), (2, 50.0)]


def test_the_files_for_a_real_model_are_valid() -> None:
    campaign, prompts, sd_scripts = blocks("gpu.md", "toml")
    file = CampaignFile.model_validate(tomllib.loads(campaign))
    assert file.rules
    assert CampaignFile.model_validate(tomllib.loads(campaign.replace("[campaign]", f"[campaign]\n{sd_scripts}")))
    suite = PromptSuite.model_validate(tomllib.loads(prompts))
    assert suite.prompts[0].expectation.background == ("#22aa44",)


def test_the_settings_of_the_search_are_valid() -> None:
    (settings,) = blocks("search.md", "toml")
    named = settings.replace("[campaign]", '[campaign]\nname = "night"\nbase_model = "base"\ndataset = "data"')
    assert CampaignFile.model_validate(tomllib.loads(named)).gate == GateSettings()


def test_kohyas_files_are_valid(tmp_path: Path) -> None:
    for name, text in zip(("train", "dataset"), blocks("training.md", "toml"), strict=True):
        (tmp_path / f"{name}.toml").write_text(text)
    files = {"config_file": str(tmp_path / "train.toml"), "dataset_config": str(tmp_path / "dataset.toml")}
    config, notes = read_kohya(files)
    assert not notes
    assert config.integer("conv_dim") == 8
    assert config.subsets[0].parameters["train_batch_size"] == 4


def test_links_between_pages_lead_somewhere() -> None:
    for page in [*DOCS.parent.glob("*.md"), *DOCS.rglob("*.md")]:
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
