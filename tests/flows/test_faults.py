"""Faults of the machine, each of them real: what a user sees, and what is kept.

The table in docs/operations.md names for each fault the test that shows it; those of the trainer alone are in
tests/tasks/training, kills of every process at random moments in benchmarks/soak.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from demo.workspace import lay_out
from tasks.training.events import EpochEvent, Event, StoppedEvent, read_events

PICTURES, EPOCHS = 12, 3


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *map(str, words)]


def pixelloop(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **environment}
    return subprocess.run(command(*words), capture_output=True, text=True, env=variables, timeout=400)


def small_campaign(folder: Path) -> Path:
    campaign = lay_out(folder)
    text = campaign.read_text().replace("trials = 8", "trials = 1").replace("num_repeats = 4", "num_repeats = 12")
    text = text.replace("max_train_epochs = 5", f"max_train_epochs = {EPOCHS}")
    campaign.write_text(text.replace("low = 1e-5, high = 1e-1", "low = 1e-3, high = 5e-3"))
    for extra in sorted((folder / "portraits").iterdir())[2 * PICTURES :]:
        extra.unlink()
    return campaign


def left_running(home: Path) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]


def events_of(folder: Path) -> list[Event]:
    return [event for event, _ in read_events(folder / "events.jsonl")]


@pytest.mark.e2e
def test_a_night_of_faults_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    """One trial: the disk is full, then SIGTERM comes, then its state is torn, and in the end it is whole."""
    campaign, home = small_campaign(tmp_path / "demo"), tmp_path / "home"
    home.mkdir()
    (home / "runs").symlink_to(small_disk)
    full = pixelloop("run", campaign, "--home", home)
    assert full.returncode == 2, full.stdout + full.stderr
    assert "demo-000 waits: the disk is full" in full.stderr
    assert "Traceback" not in full.stdout + full.stderr
    assert left_running(home) == []

    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    trial = home / "runs" / "demo" / "000"
    ended, output = terminated(home, lambda: any(isinstance(e, EpochEvent) for e in events_of(trial)))
    assert ended == 130, output
    assert "pixelloop resume" in output
    assert "Traceback" not in output
    assert isinstance(events_of(trial)[-1], StoppedEvent)
    assert left_running(home) == []

    (trial / "state" / "training.pt").write_bytes(b"torn")
    resumed = pixelloop("resume", "--home", home)
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "training.pt is broken" in resumed.stdout
    row = json.loads(pixelloop("status", "--home", home, "--json").stdout)["runs"][0]
    assert row["outcome"] == "ok"
    assert {e.epoch for e in events_of(trial) if isinstance(e, EpochEvent)} == set(range(1, EPOCHS + 1))


def terminated(home: Path, moment: Callable[[], bool]) -> tuple[int, str]:
    """Resume, send SIGTERM at a moment, and wait for the end."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(
        command("resume", "--home", home), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    while not moment() and process.poll() is None:
        time.sleep(0.05)
    process.terminate()
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@pytest.mark.parametrize(
    ("home", "environment", "sentence"),
    [
        ("/proc/pixelloop", {}, "/proc/pixelloop"),
        ("campaign.toml/home", {}, "Not a directory"),
        ("home", {"PIXELLOOP_DEVICE": "cuda"}, "cuda is wanted, but"),
        ("home", {"PIXELLOOP_DEVICE": "gpu"}, "there is no device gpu"),
        ("home", {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}, "the database cannot be reached"),
    ],
)
def test_what_cannot_start_says_why_in_one_sentence(
    tmp_path: Path, home: str, environment: dict[str, str], sentence: str
) -> None:
    campaign = lay_out(tmp_path)
    result = pixelloop("run", campaign, "--home", tmp_path / home, **environment)
    assert result.returncode == 2, result.stdout + result.stderr
    assert sentence in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.stdout + result.stderr
    assert left_running(tmp_path) == []
