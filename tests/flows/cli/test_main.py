"""The command line as a person meets it: help, examples, and one sentence for every mistake."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from demo.portraits import write_dataset
from demo.workspace import lay_out
from flows.cli.main import app

COMMANDS = dict(typer.main.get_command(app).commands.items())  # type: ignore[attr-defined]
README = (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def pixelloop(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "flows.cli", *arguments], cwd=cwd, capture_output=True, text=True)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example_and_stands_in_the_readme(name: str) -> None:
    help_text = COMMANDS[name].help or ""
    assert "Example:" in help_text
    assert f"pixelloop {name}" in README


def test_the_version_is_printed(tmp_path: Path) -> None:
    told = pixelloop("--version", cwd=tmp_path)
    assert told.returncode == 0
    assert re.fullmatch(r"pixelloop \d+\.\d+\.\d+\n", told.stdout)


def test_the_promised_commands_are_there() -> None:
    promised = "demo run resume status dashboard report predict diagnose next compare".split()
    assert set(promised) <= set(COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["status", "--home", "nowhere"], "no pixelloop home at nowhere"),
        (["run", "missing.toml"], "missing.toml does not exist"),
        (["run", "broken.toml"], "unknown key campaign.nam"),
        (["runs", "--where", "network_dim big", "--home", "nowhere"], "network_dim big"),
        (["stattus"], "No such command"),
        (["import", "missing.toml", "--home", "nowhere"], "missing.toml does not exist"),
        (["import", "--home", "nowhere"], "nothing to import"),
        (["log", "1", "8", "8", "8", "--home", "nowhere"], "no pixelloop home at nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    (tmp_path / "broken.toml").write_text(
        '[campaign]\nnam = "x"\n[search]\nlearning_rate = {low = 1e-5, high = 1e-3}\n'
    )
    result = pixelloop(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert sentence in result.stderr
    assert "Traceback" not in result.stderr + result.stdout
    assert not (tmp_path / "pixelloop-home").exists()


@pytest.mark.parametrize(
    ("there", "instead", "sentence"),
    [
        ('base_model = "base"', 'base_model = "/nowhere/base"', "/nowhere/base does not exist"),
        ('base_model = "base"', 'base_model = "based"', "based does not exist"),
        ('base_model = "base"', 'base_model = "prompts.toml"', "neither a folder nor a .safetensors file"),
        ('base_model = "base"', 'base_model = "portraits"', "it has no model_index.json"),
        ('dataset = "portraits"', 'dataset = "pictures"', "pictures"),
        ('prompts = "prompts.toml"', 'prompts = "words.toml"', "words.toml does not exist"),
        ("[campaign]", 'rules = ["network_dims <= 32"]\n[campaign]', "did you mean network_dim"),
        ("[campaign]", "[[start]]\nnetwork_dim = 5\n[campaign]", "network_dim"),
        ("seed = 1\n", "full_bf16 = true\n", 'full_bf16 needs mixed_precision = "bf16"'),
        (
            "seed = 3\n",
            'trainer = "sd-scripts"\nsd_scripts = "nowhere"\n',
            "give the folder of your sd-scripts checkout",
        ),
    ],
)
def test_nothing_is_started_for_a_campaign_that_cannot_run(
    tmp_path: Path, there: str, instead: str, sentence: str
) -> None:
    file = lay_out(tmp_path)
    text = file.read_text()
    assert there in text
    file.write_text(text.replace(there, instead))
    result = pixelloop("run", str(file), "--home", "home", cwd=tmp_path)
    assert (result.returncode, sentence in result.stderr) == (2, True), result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "home").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no file here is always full")
def test_an_output_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    write_dataset(tmp_path / "portraits", 16, 7, 64)
    words = [sys.executable, "-m", "flows.cli", "audit", "portraits", "--json"]
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(words, cwd=tmp_path, stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (2, "pixelloop: No space left on device\n")


def test_an_audit_tells_what_would_stop_a_night(tmp_path: Path) -> None:
    write_dataset(tmp_path / "portraits", 16, 7, 64)
    clean = pixelloop("audit", "portraits", "--set", "shuffle_caption=true", "--set", "keep_tokens=1", cwd=tmp_path)
    assert clean.returncode == 0, clean.stderr
    assert "keep_tokens keeps in front: pixel art" in clean.stdout
    (tmp_path / "portraits" / "portrait_003.txt").unlink()
    broken = pixelloop("audit", "portraits", "--json", cwd=tmp_path)
    assert broken.returncode == 2
    found = json.loads(broken.stdout)
    assert [f["check"] for f in found["findings"] if f["level"] == "error"] == ["missing_caption"]


def test_an_audit_names_the_folder_it_stands_in_and_a_model_without_a_tokenizer(tmp_path: Path) -> None:
    write_dataset(tmp_path / "portraits", 16, 7, 64)
    here = pixelloop("audit", ".", cwd=tmp_path / "portraits")
    assert "16 pictures in portraits" in here.stdout
    lost = pixelloop("audit", "portraits", "--base-model", "nowhere", cwd=tmp_path)
    assert (lost.returncode, "nowhere has no folder 'tokenizer'" in lost.stderr) == (2, True)


@pytest.mark.e2e
def test_a_night_does_not_start_on_broken_data(tmp_path: Path) -> None:
    file = lay_out(tmp_path)
    (tmp_path / "portraits" / "portrait_003.txt").write_text("")
    result = pixelloop("run", str(file), "--home", str(tmp_path / "home"), cwd=tmp_path)
    assert result.returncode == 2
    assert "have an empty caption (portrait_003.png)" in result.stderr
