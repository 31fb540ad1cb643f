"""Notices that cannot be sent say so without the address: tokens stand in it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from flows.runtime import notifications, progress
from schema.campaign import NotifySettings
from schema.settings import Settings
from tests.flows.conftest import NOBODY

SECRET = "s3cret-Of_A_kind"
PLACES = {
    "nobody there": f"json://user:{SECRET}@127.0.0.1:9/{SECRET}",
    "unknown service": f"nosuch://{SECRET}@host",
    "no scheme": f"hooks.example/services/{SECRET}",
    "a bare token": SECRET,
    "a token first": f"{SECRET}:host",
    "a malformed one": f"slack://{SECRET}",
    "a block of nobody": "block:slack-webhook/nobody",
}


@pytest.mark.parametrize("name", PLACES)
def test_no_word_about_a_notice_holds_its_address(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    api: Callable[[str], None],
) -> None:
    told: list[str] = []
    monkeypatch.setenv("PIXELLOOP_NOTIFY", PLACES[name])
    api(NOBODY)
    monkeypatch.setattr(progress, "listener", SimpleNamespace(message=told.append))
    context: Any = SimpleNamespace(
        services=SimpleNamespace(settings=Settings()), file=SimpleNamespace(notify=NotifySettings())
    )
    with caplog.at_level(logging.INFO):
        notifications.notify(context, "end", "a night", "has ended")
    assert "a notice could not be sent" in told[0]
    printed = capfd.readouterr()
    assert SECRET not in "".join(told) + caplog.text + printed.out + printed.err
