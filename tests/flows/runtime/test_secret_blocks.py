"""Secrets in Prefect's blocks, with a real server."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.runtime.notifications import send
from flows.runtime.prefect_server import prefect_server
from flows.runtime.secret_blocks import open_settings
from schema.errors import ConfigError
from tests.flows.conftest import NOBODY
from tests.flows.webhook import webhook

SECRET = "postgresql://user:s3cret-Of_A_kind@127.0.0.1:9/postgres"


def test_a_plain_value_is_taken_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", SECRET)
    url = open_settings().database_url
    assert url is not None
    assert url.get_secret_value() == SECRET


@pytest.mark.e2e
def test_a_named_block_gives_its_value_and_takes_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: Callable[[str], None]
) -> None:
    monkeypatch.setenv("DATABASE_URL", "block:database-url")
    with prefect_server(tmp_path / "prefect", lambda: f"sqlite+aiosqlite:///{tmp_path}/prefect.db", wait=240) as url:
        api(url)
        from prefect.blocks.notifications import CustomWebhookNotificationBlock
        from prefect.blocks.system import Secret

        with pytest.raises(ConfigError, match="DATABASE_URL names the Secret block database-url, which cannot be"):
            open_settings()
        Secret(value=SECRET).save("database-url", _sync=True)  # type: ignore[call-arg]
        settings = open_settings()
        with webhook() as (hook, heard):
            CustomWebhookNotificationBlock(name="hook", url=hook, json_data={"told": "{{subject}}: {{body}}"}).save(
                "night",
                _sync=True,  # type: ignore[call-arg]
            )
            send("block:custom-webhook/night", "campaign demo has ended", "it is 07:30")
            assert heard == [{"told": "campaign demo has ended: it is 07:30"}]
    assert settings.database_url is not None
    assert settings.database_url.get_secret_value() == SECRET
    assert SECRET not in repr(settings)


def test_without_a_server_it_is_one_sentence(monkeypatch: pytest.MonkeyPatch, api: Callable[[str], None]) -> None:
    monkeypatch.setenv("SUPABASE_KEY", "block:supabase-key")
    api(NOBODY)
    with pytest.raises(ConfigError, match="SUPABASE_KEY names the Secret block supabase-key") as error:
        open_settings()
    assert "\n" not in str(error.value)
    assert "Traceback" not in "".join(traceback.format_exception_only(error.value))
