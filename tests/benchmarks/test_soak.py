"""The soak benchmark in small: three kills and two copies, so that it cannot rot."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest


@pytest.mark.e2e
def test_three_kills_lose_nothing() -> None:
    words = [sys.executable, "-m", "benchmarks.soak", "--kills", "3", "--copies", "2", "--workers", "2", "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads(done.stdout.splitlines()[-1])
    assert figures["kills"] == 3
    assert [figures[name] for name in ("rows_lost", "rows_doubled", "zombie_trials", "orphans")] == [0, 0, 0, 0]
    assert [figures[name] for name in ("copies", "restores", "rows_wrong_database")] == [2, 1, 0]
    assert figures["epochs_repeated"] <= figures["kills"]
