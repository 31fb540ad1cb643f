"""A campaign from elsewhere opens nothing outside the home, and starts nothing that nobody agreed to."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from demo.workspace import lay_out
from flows.runtime import wiring
from flows.runtime.campaign_files import campaign_path, known_campaigns, path_to_start
from flows.runtime.wiring import Services
from schema.errors import ConfigError, NotFoundError
from schema.runs import run_uid
from tasks.known_campaigns import KnownCampaigns
from tasks.store.embedded import EmbeddedPostgres
from tests.flows.cli.test_main import pixelloop
from tests.tasks.store.store_contract import make_run


@pytest.fixture
def services(postgres: EmbeddedPostgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Services]:
    """A home whose list of started campaigns was made before anything came from elsewhere."""
    monkeypatch.setenv("DATABASE_URL", postgres.ensure_database(f"files_{uuid.uuid4().hex[:12]}"))
    monkeypatch.setenv("PIXELLOOP_WARM_TRAINER", "false")
    with wiring.session():
        services = wiring.open_home(str(tmp_path / "home"))
        assert services.home.uid  # makes the home
        known_campaigns(services)
        yield services


def write_campaign(folder: Path, name: str = "demo", program: Path | None = None) -> Path:
    """A campaign file; with a program it trains with that python and a checkout beside it."""
    file = lay_out(folder)
    text = file.read_text().replace('name = "demo"', f'name = "{name}"')
    if program is not None:
        checkout = folder / "sd"
        checkout.mkdir(exist_ok=True)
        (checkout / "train_network.py").write_text("")
        text = text.replace(
            "[campaign]", f'[campaign]\ntrainer = "sd-scripts"\nsd_scripts = "sd"\nsd_scripts_python = "{program}"', 1
        )
    file.write_text(text)
    return file


def register(services: Services, file: str) -> None:
    services.store.save_campaign("demo", {"file": file}, "finished", "imported")


def started(folder: Path) -> Path:
    """A program that leaves a mark where it is started."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\ntouch {folder}/mark\n")
    program.chmod(0o755)
    return program


@pytest.mark.parametrize("where", ["absolute", "up", "link"])
def test_a_file_outside_the_home_is_not_opened(services: Services, tmp_path: Path, where: str) -> None:
    file = write_campaign(tmp_path / "downloads", program=started(tmp_path))
    (services.home.root / "link").symlink_to(file)
    register(services, {"absolute": str(file), "up": "../downloads/campaign.toml", "link": "link"}[where])
    with pytest.raises(NotFoundError, match=r"was not started in this home, and its file .* lies outside it"):
        campaign_path(services, "demo")
    if where != "absolute":
        return
    for words in (("resume",), ("report",), ("predict", "network_dim=8"), ("test", "keep_tokens 1 -> 2"), ("next",)):
        done = pixelloop(*words, "--home", str(services.home.root), cwd=tmp_path)
        assert (done.returncode == 0) == (words == ("next",)), done.stderr
        assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("file", [5, None, ["a"], "a\ue000", "", ".", "x" * 5000, "missing.toml", "home.json"])
def test_a_file_that_is_none_is_a_sentence(services: Services, file: object) -> None:
    services.store.save_campaign("demo", {"file": file}, "finished")
    with pytest.raises((NotFoundError, ConfigError)) as error:
        campaign_path(services, "demo")
    assert len(str(error.value)) < 700


def test_a_file_of_another_campaign_is_not_taken_for_an_imported_one(services: Services) -> None:
    write_campaign(services.home.root, name="mine")
    register(services, "campaign.toml")
    with pytest.raises(NotFoundError, match="its file is not here"):
        path_to_start(services, "demo", yes=True)


def test_a_file_that_was_started_here_may_lie_anywhere(services: Services, tmp_path: Path) -> None:
    file = write_campaign(tmp_path / "mine", program=started(tmp_path))
    known_campaigns(services).remember("demo", file)
    register(services, "/etc/evil.toml")  # by an import
    assert path_to_start(services, "demo", yes=False) == file
    moved = services.home.root.rename(tmp_path / "renamed")
    assert KnownCampaigns(services.home.at(moved)).file("demo") == file
    moved.rename(services.home.root)


def test_a_copy_of_a_home_trusts_what_its_original_on_this_machine_trusts(services: Services, tmp_path: Path) -> None:
    file, other = write_campaign(tmp_path / "mine"), write_campaign(tmp_path / "other")
    known_campaigns(services).remember("demo", file)
    copy = services.home.at(tmp_path / "copy")
    subprocess.run(["cp", "-a", str(services.home.root), str(copy.root)], check=True)
    assert KnownCampaigns(copy).file("demo") == file
    kept = json.loads((copy.root / "campaigns.json").read_text())
    kept["files"] |= {"demo": str(other), "evil": str(other)}  # somebody else packed the copy
    (copy.root / "campaigns.json").write_text(json.dumps(kept))
    assert [KnownCampaigns(copy).file(name) for name in ("demo", "evil")] == [None, None]
    (services.home.root / "campaigns.json").unlink()  # the original is gone
    assert KnownCampaigns(copy).file("demo") is None


def test_a_file_outside_the_home_is_used_once_somebody_agrees(services: Services, tmp_path: Path) -> None:
    file = write_campaign(tmp_path / "mine")
    register(services, str(file))
    with pytest.raises(ConfigError, match=r"its file .* lies outside it: look at it, and give --yes"):
        path_to_start(services, "demo", yes=False)
    with pytest.raises(NotFoundError, match="which asks once"):
        campaign_path(services, "demo")
    assert path_to_start(services, "demo", yes=True) == file
    assert campaign_path(services, "demo") == file


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"folder": 1}', "[" * 100_000, '{"files": {"demo": "x"}}'])
def test_a_broken_list_trusts_nothing(services: Services, tmp_path: Path, text: str) -> None:
    (services.home.root / "campaigns.json").write_text(text)
    assert known_campaigns(services).file("demo") is None


def test_a_home_of_an_earlier_version_goes_on_with_the_campaigns_that_ran_in_it(
    services: Services, tmp_path: Path
) -> None:
    (services.home.root / "campaigns.json").unlink()
    file = write_campaign(tmp_path / "mine")
    register(services, str(file))
    services.store.save_campaign("evil", {"file": "/tmp/evil.toml"}, "finished")
    own = make_run(0, "demo").changed(uid=run_uid(services.home.uid, "demo", 0))
    services.store.save_run(own)
    services.store.save_run(make_run(0, "evil"))
    for name in ("demo", "evil"):
        services.home.trial(name, 0).root.mkdir(parents=True)
    assert path_to_start(services, "demo", yes=False) == file
    assert known_campaigns(services).file("evil") is None


def test_a_program_starts_only_where_somebody_agrees(services: Services, tmp_path: Path) -> None:
    file = write_campaign(services.home.root, program=started(tmp_path))
    register(services, "campaign.toml")
    root = str(services.home.root)
    assert campaign_path(services, "demo") == file  # reading it starts nothing
    for words in (("resume",), ("test", "caption_dropout_rate 0.05 -> 0.3")):
        refused = pixelloop(*words, "--home", root, cwd=tmp_path)
        assert refused.returncode == 2
        assert f"starts {tmp_path}/python" in refused.stderr
        assert "give --yes" in refused.stderr
    assert answered(root, "n\n").returncode == 2
    assert not (tmp_path / "mark").exists()
    assert path_to_start(services, "demo", yes=True) == file
    assert path_to_start(services, "demo", yes=False) == file  # it is asked once


def answered(home: str, word: str) -> subprocess.CompletedProcess[str]:
    """Run 'resume' at a terminal, and answer its question."""
    ours, theirs = pty.openpty()
    words = [sys.executable, "-m", "flows.cli", "resume", "--home", home]
    with subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True) as process:
        os.close(theirs)
        shown = b""
        while b"Start it?" not in shown:
            assert select.select([ours], [], [], 60)[0], shown
            shown += os.read(ours, 4096)
        os.write(ours, word.encode())
        code = process.wait(60)
    os.close(ours)
    return subprocess.CompletedProcess(words, code, shown.decode(), "")


def test_an_import_makes_no_home_of_a_broken_file_and_brings_no_campaign_to_start(tmp_path: Path) -> None:
    (tmp_path / "broken.jsonl").write_text('{"pixelloop": "export", "version": 1}\n{"table": "campaigns", "row"')
    done = pixelloop("db", "import", "broken.jsonl", "--home", "new", cwd=tmp_path)
    assert done.returncode == 2
    assert "broken.jsonl cannot be read" in done.stderr
    assert not (tmp_path / "new").exists()


def test_rows_that_were_refused_are_told_until_they_are_stored_or_dropped(services: Services, tmp_path: Path) -> None:
    write_campaign(services.home.root)
    register(services, "campaign.toml")
    services.store.save_run(make_run(0, "demo"))
    refused = services.home.outbox / "refused.jsonl"
    (services.home.outbox / "waiting.jsonl").write_text('{"kind": "nosuch", "data": {}}\n')
    home = ("--home", str(services.home.root))
    told = pixelloop("log", "1", "5", "5", "5", *home, cwd=tmp_path)
    assert told.returncode == 2  # the run has no epoch 1, and that is said first
    status = pixelloop("status", "--json", *home, cwd=tmp_path)
    assert (status.returncode, json.loads(status.stdout)["refused_rows"]) == (0, 1)
    assert "1 rows could not be stored" in pixelloop("status", *home, cwd=tmp_path).stdout
    retried = pixelloop("db", "retry", *home, cwd=tmp_path)
    assert retried.returncode == 2
    assert str(refused) in retried.stderr
    assert "'nosuch' is no kind of row" in retried.stderr
    dropped = pixelloop("db", "retry", "--drop", "--json", *home, cwd=tmp_path)
    assert (dropped.returncode, json.loads(dropped.stdout)) == (0, {"dropped": 1, "refused": 0})
    assert "nosuch" in (services.home.outbox / "dropped.jsonl").read_text()


def test_an_import_tells_no_refused_run_new(services: Services, tmp_path: Path) -> None:
    import psycopg

    with psycopg.connect(services.database_url) as connection:
        connection.execute("alter table training_runs add constraint no_knights check (run_name <> 'knights-v7')")
    (tmp_path / "scores.csv").write_text("run_name,epoch,visual\nknights-v7,1,5\nknights-v8,1,5\n")
    done = pixelloop("import", "scores.csv", "--json", "--home", str(services.home.root), cwd=tmp_path)
    assert done.returncode == 2
    assert [run["end"] for run in json.loads(done.stdout)["runs"]] == ["refused", "new"]
    assert "refused.jsonl" in done.stderr
