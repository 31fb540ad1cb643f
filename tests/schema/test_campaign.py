from __future__ import annotations

from pathlib import Path

import pytest

from schema.campaign import Choices, Range, load_campaign
from schema.errors import ConfigError

GOOD = """
[campaign]
name = "night"
base_model = "base"
dataset = "portraits"
[search]
learning_rate = { low = 1e-5, high = 1e-3, log = true }
lr_scheduler = { choices = ["cosine", "constant"] }
[fixed]
max_train_epochs = 10
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "campaign.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_campaign_is_read_with_its_space(tmp_path: Path) -> None:
    file = load_campaign(write(tmp_path, GOOD))
    assert file.search["learning_rate"] == Range(low=1e-5, high=1e-3, log=True)
    assert file.search["lr_scheduler"] == Choices(choices=("cosine", "constant"))
    assert file.budget.trials == 15


def test_relative_paths_start_at_the_files_folder(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    file = load_campaign(write(tmp_path, GOOD))
    assert file.base_model == str(tmp_path / "base")
    assert file.dataset_dir == tmp_path / "portraits"


def test_a_base_model_that_is_no_path_is_a_hub_id(tmp_path: Path) -> None:
    text = GOOD.replace('"base"', '"stable-diffusion-v1-5/stable-diffusion-v1-5"')
    assert load_campaign(write(tmp_path, text)).base_model == "stable-diffusion-v1-5/stable-diffusion-v1-5"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("max_train_epochs = 10", "max_train_epoch = 10"), "did you mean .*max_train_epochs"),
        (("[fixed]", "[fixd]"), "unknown key fixd: did you mean fixed"),
        (("low = 1e-5", "low = 1e-2"), "low must be below high"),
        (("low = 1e-5", "low = 0.0"), "logarithmic range must start above 0"),
        (
            ("max_train_epochs = 10", "learning_rate = 1e-4"),
            "toml: learning_rate stands in both .search. and .fixed.",
        ),
        (("max_train_epochs = 10", "network_dim = 0"), "network_dim must lie in"),
        (('choices = ["cosine", "constant"]', 'choices = ["cosine", "cubic"]'), "lr_scheduler must be one of"),
        (("lr_scheduler =", "cache_latents ="), "cannot be searched"),
        (('name = "night"', 'name = "My Night"'), "campaign.name: use up to 60 lowercase letters"),
        (('name = "night"', 'name = "night\\n"'), "campaign.name: use up to 60 lowercase letters"),
        (
            ('name = "night"', 'name = "night"\nsampler = "bayes"'),
            "sampler: .*'model', 'tpe', 'gp' or 'random'",
        ),
        (("low = 1e-5", "lo = 1e-5"), "search: learning_rate: unknown key lo: did you mean low"),
        (("low = 1e-5, ", ""), "search: learning_rate: low is missing"),
        (("low = 1e-5", "low = 1"), "search: learning_rate: low must be below high"),
        (('choices = ["cosine", "constant"]', 'choices = ["cosine"]'), "search: lr_scheduler: choices: .*at least 2"),
        (('choices = ["cosine", "constant"]', 'choices = ["cosine", "cosine"]'), "'cosine' stands twice"),
        (('{ choices = ["cosine", "constant"] }', '"cosine"'), "lr_scheduler needs { low = ..., high = ... } or"),
        (("[search]", '[budget]\nuntil = "07:30Z"\n[search]'), "budget.until: .* give 07:30, without a zone"),
        (("[search]", "[effort]\nquick = true\n[search]"), "effort.quick: known are few_prompts, min_chance$"),
        (('name = "night"', ""), "campaign.name is missing"),
        (('name = "night"', 'name = "night"\ntrainer = "sd-scripts"'), "needs sd_scripts: give the folder"),
        (('name = "night"', 'name = "night"\ntrainer = "sdscripts"'), "campaign.trainer"),
        (('name = "night"', 'name = "night"\nevaluation = "later"'), "campaign.evaluation"),
        (("[search]", "[search"), "not valid TOML"),
    ],
)
def test_every_mistake_is_one_sentence_naming_file_and_key(
    tmp_path: Path, change: tuple[str, str], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence) as error:
        load_campaign(write(tmp_path, GOOD.replace(*change)))
    assert "campaign.toml" in str(error.value)
    assert "\n" not in str(error.value)


def test_sd_scripts_runs_in_the_environment_beside_its_checkout_or_the_one_that_is_named(tmp_path: Path) -> None:
    assert load_campaign(write(tmp_path, GOOD)).sd_scripts is None
    beside = tmp_path / "sd-scripts" / ".venv" / "bin" / "python"
    beside.parent.mkdir(parents=True)
    beside.touch()
    chosen = GOOD.replace("[search]", 'trainer = "sd-scripts"\nsd_scripts = "sd-scripts"\n[search]')
    assert load_campaign(write(tmp_path, chosen)).sd_scripts == (tmp_path / "sd-scripts", beside)
    named = chosen.replace("[search]", 'sd_scripts_python = "other/bin/python"\n[search]')
    assert load_campaign(write(tmp_path, named)).sd_scripts == (
        tmp_path / "sd-scripts",
        tmp_path / "other" / "bin" / "python",
    )


def test_a_missing_file_is_said_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        load_campaign(tmp_path / "nowhere.toml")
