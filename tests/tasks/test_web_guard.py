"""Which requests a server on this machine answers; a real browser's are in tests/browser."""

from __future__ import annotations

import pytest

from schema.errors import ConfigError
from tasks.web_guard import WebGuard

GUARD = WebGuard()
PUBLIC = WebGuard(frozenset({"https://night.example.org"}))
HOST = "127.0.0.1:4311"


@pytest.mark.parametrize("host", ["127.0.0.1:4311", "localhost:4311", "LOCALHOST:9000", "[::1]:4311", "localhost"])
def test_names_of_this_machine_pass(host: str) -> None:
    assert GUARD.refusal("GET", [host], []) is None
    assert GUARD.refusal("POST", [host], [f"http://{host}"], site="same-origin") is None


@pytest.mark.parametrize(
    "hosts",
    [[], [""], ["evil.example"], ["evil.example:4311"], ["127.0.0.1.evil.example"], ["localhost:4311:4311"],
     ["localhost."], ["127.0.0.1@evil.example"], ["127.0.0.1\n"], ["127.1"], ["127.0.0.1:٤"], [HOST, "evil.example"],
     [HOST, HOST], ["night.example.org"]],
)  # fmt: skip
def test_every_other_name_is_refused(hosts: list[str]) -> None:
    assert GUARD.refusal("GET", hosts, []) is not None


@pytest.mark.parametrize(
    "origin",
    ["null", "", "http://evil.example", "http://127.0.0.1", "http://127.0.0.1:8080", "http://localhost:4311",
     "https://127.0.0.1:4311", "http://127.0.0.1:4311.evil.example", "http://127.0.0.1:4311/", "file://",
     "chrome-extension://abc"],
)  # fmt: skip
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS"])
def test_every_other_origin_is_refused(method: str, origin: str) -> None:
    assert GUARD.refusal(method, [HOST], [origin]) is not None


@pytest.mark.parametrize("site", ["cross-site", "same-site", "something-new"])
def test_another_site_may_open_a_page_but_neither_write_load_nor_embed(site: str) -> None:
    assert GUARD.refusal("GET", [HOST], [], site=site, mode="navigate", dest="document") is None
    assert GUARD.refusal("POST", [HOST], [], site=site, mode="navigate", dest="document") is not None
    assert GUARD.refusal("GET", [HOST], [], site=site, mode="navigate", dest="iframe") is not None
    assert GUARD.refusal("GET", [HOST], [], site=site, mode="no-cors", dest="image") is not None
    assert GUARD.refusal("DELETE", [HOST], [], site=site, mode="no-cors") is not None


@pytest.mark.parametrize("site", ["", "none", "same-origin"])
def test_programs_and_the_users_own_address_bar_pass(site: str) -> None:
    assert GUARD.refusal("GET", [HOST], [], site=site, mode="navigate", dest="document") is None


def test_a_proxys_public_name_passes_with_and_without_its_own_host_header() -> None:
    for host in ("night.example.org", HOST):
        assert PUBLIC.refusal("POST", [host], ["https://night.example.org"], site="same-origin") is None
    assert PUBLIC.refusal("POST", ["night.example.org"], ["http://night.example.org"]) is not None
    assert PUBLIC.refusal("POST", ["night.example.org"], ["http://evil.example"]) is not None


def test_public_addresses_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIXELLOOP_PUBLIC_URLS", "https://Night.example.org:443/ui, http://studies.example:81")
    monkeypatch.setenv("PREFECT_SERVER_UI_API_URL", "https://prefect.example/api")
    own = {"https://night.example.org", "http://studies.example:81"}
    assert WebGuard.from_environment().public == own
    assert WebGuard.from_environment("PREFECT_SERVER_UI_API_URL").public == own | {"https://prefect.example"}
    monkeypatch.setenv("PREFECT_SERVER_UI_API_URL", "/api")
    assert WebGuard.from_environment("PREFECT_SERVER_UI_API_URL").public == own


@pytest.mark.parametrize(
    "address", ["night.example.org", "ftp://x", "https://", "https://a:b@c", "https://a:port", "*"]
)
def test_what_is_no_address_is_refused_by_name(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("PIXELLOOP_PUBLIC_URLS", address)
    with pytest.raises(ConfigError, match=r"PIXELLOOP_PUBLIC_URLS: .* is no address"):
        WebGuard.from_environment()
