"""A night that is paused, goes on, and ends at a time of day, with words to a webhook; every part real."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from demo.workspace import lay_out
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove
from tests.flows.test_night import command, environment, pixelloop
from tests.flows.webhook import webhook

pytestmark = pytest.mark.e2e
PATIENCE = 240.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("knights and kings")
    campaign = lay_out(folder)
    text = campaign.read_text().replace("trials = 8", "trials = 50")
    assert "max_train_epochs = 5" in text
    campaign.write_text(text.replace("max_train_epochs = 5", "max_train_epochs = 50"))  # it ends with no test
    yield folder
    remove(EmbeddedPostgres(folder / "postgres"))


def until(true: Callable[[], bool]) -> None:
    ends = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.1)


def kinds(events: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in events.read_text().splitlines()]


def test_a_pause_frees_the_machine_until_resume(folder: Path) -> None:
    events = folder / "runs" / "demo" / "000" / "events.jsonl"
    words = command("run", str(folder / "campaign.toml"), "--home", str(folder))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment(), cwd=folder) as night:
        until(lambda: events.exists() and "step" in kinds(events))
        paused = pixelloop(folder, "pause")
        assert f"resume --home '{folder}'" in paused.stdout  # as a shell takes it
        until(lambda: kinds(events)[-1] == "stopped")
        length = events.stat().st_size
        time.sleep(3)
        assert events.stat().st_size == length
        assert night.poll() is None
        resumed = pixelloop(folder, "resume")
        assert (resumed.returncode, "goes on where it runs" in resumed.stdout) == (0, True)
        until(lambda: events.stat().st_size > length)
        night.send_signal(signal.SIGINT)
        out = night.communicate(timeout=PATIENCE)[0]
    assert night.returncode == 130
    assert "paused; go on with" in out
    assert "interrupted; go on with" in out
    assert out.count(f"resume --home '{folder}'") == 1
    assert "the pause is over" in out


def test_a_night_ends_at_its_hour_with_a_word(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = datetime.now() + timedelta(seconds=45)
    campaign = folder / "campaign.toml"
    campaign.write_text(campaign.read_text().replace("trials = 50", f'trials = 50\nuntil = "{ends:%H:%M:%S}"'))
    with webhook() as (address, heard):
        monkeypatch.setenv("PIXELLOOP_NOTIFY", f"{address.replace('http', 'json')} nowhere://at-all")
        night = pixelloop(folder, "resume")
    assert night.returncode == 0, night.stderr
    assert datetime.now() >= ends
    assert f"campaign demo ended: it is {ends:%H:%M}" in night.stdout
    assert "Apprise does not know: nowhere" in night.stdout, night.stdout
    assert heard[-1]["title"] == "campaign demo has ended"
    assert "report-demo.html" in heard[-1]["message"]
    status = json.loads(pixelloop(folder, "status", "--json").stdout)
    assert status["status"] == "finished"
    assert "interrupted" in {run["outcome"] for run in status["runs"]}
