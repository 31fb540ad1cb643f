"""Campaigns and paired tests take turns in a home."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from rich.console import Console

from flows.loop import beside_no_test
from flows.runtime import progress
from tasks.claims import Claim
from tasks.home import Home


def test_a_campaign_waits_for_a_test_and_others_share_its_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    home = Home.at(tmp_path)
    monkeypatch.setattr(progress, "listener", progress.TerminalListener(Console(width=200)))
    test = Claim.take(home.at_work) or pytest.fail("not free")
    begun = time.monotonic()
    threading.Timer(0.5, test.release).start()
    with beside_no_test(home), beside_no_test(home):
        assert time.monotonic() - begun >= 0.5
        assert Claim.take(home.at_work) is None
    assert "a paired test runs in this home: the campaign waits for its end" in capsys.readouterr().out
    assert Claim.take(home.at_work) is not None
