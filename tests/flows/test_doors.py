"""What a web page in the user's browser, or a request by hand, can do to the servers of `pixelloop up`: nothing.

The pages are real ones in a real browser: one of a foreign origin, and one whose name was made to lead to our server
(DNS rebinding), which the browser takes for the server's own.
"""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from flows.runtime.prefect_login import VALID_FOR, one_time_link, password, redeem
from schema.errors import ConfigError
from tasks.dashboard.blind import PicturePair, open_blind
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove
from tests.flows.chromium import Browser, Page, chromium, until
from tests.flows.prefect_api import ask
from tests.flows.test_stack import free_port, listening, of_home, pixelloop

EVIL = "evil.example"
FOREIGN = """
async (prefect, dashboard, ballot, deployment, marker) => {
  const done = {};
  const attempt = async (name, work) => { done[name] = await work().catch(() => "refused"); };
  const read = (url, options = {}) => async () => {
    const answer = await fetch(url, options);
    return answer.ok ? await answer.text() : "refused";
  };
  const send = (url, method, data) => () =>
    fetch(url, {method, mode: "no-cors", body: new Blob([data])}).then(answer => answer.type);
  await attempt("events", () => new Promise((resolve) => {
    const socket = new WebSocket(prefect.replace("http", "ws") + "/api/events/out", ["prefect"]);
    const filter = {type: "filter", filter: {occurred: {since: "2020-01-01T00:00:00Z"}}};
    socket.onopen = () => socket.send(JSON.stringify({type: "auth", token: null}));
    socket.onmessage = (event) => { resolve(event.data); socket.send(JSON.stringify(filter)); };
    socket.onerror = socket.onclose = () => resolve("refused");
  }));
  const run = JSON.stringify({job_variables: {command: "/usr/bin/touch " + marker}});
  await attempt("run", send(`${prefect}/api/deployments/${deployment}/create_flow_run`, "POST", run));
  await attempt("variable", send(`${prefect}/api/variables/`, "POST", JSON.stringify({name: "planted", value: 1})));
  await attempt("clear", send(`${prefect}/api/admin/database/clear`, "POST", JSON.stringify({confirm: true})));
  await attempt("deployments", read(`${prefect}/api/deployments/filter`, {method: "POST", body: new Blob(["{}"])}));
  await attempt("health", read(`${prefect}/api/health`));
  await attempt("studies", read(`${dashboard}/api/studies`));
  await attempt("study", send(`${dashboard}/api/studies`, "POST",
    JSON.stringify({study_name: "planted", directions: ["maximize"]})));
  await attempt("ballot", read(ballot));
  await attempt("vote", () => fetch(`${ballot}vote`, {method: "POST", mode: "no-cors",
    body: new URLSearchParams({number: "0", choice: "left"})}).then(a => a.type));
  return done;
}
"""


@dataclass(frozen=True)
class House:
    """Everything that listens, with what shows whether somebody got in."""

    home: Path
    prefect: str
    dashboard: str
    ballot: str
    foreign: str
    votes: dict[str, str]

    def api(self, method: str, path: str, data: object = None) -> Any:
        return ask(self.home / "prefect", f"{self.prefect}/api", method, path, data)

    def state(self) -> dict[str, object]:
        return {
            "deployments": sorted(found["id"] for found in self.api("POST", "/deployments/filter", {})),
            "runs": self.api("POST", "/flow_runs/count", {}),
            "variables": self.api("POST", "/variables/count", {}),
            "studies": httpx.get(f"{self.dashboard}/api/studies").json(),
            "votes": dict(self.votes),
        }


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    folder = tmp_path_factory.mktemp("doors")
    home, prefect, dashboard = folder / "home", free_port(), free_port()
    (folder / "elsewhere.html").write_text("<!doctype html><title>elsewhere</title>")
    for name in "ab":
        (folder / f"{name}.png").write_bytes(b"picture")
    votes: dict[str, str] = {}
    handler = type("Quiet", (http.server.SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    elsewhere = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: handler(*a, directory=str(folder)))
    ballot = open_blind([PicturePair("queen", "a queen", folder / "a.png", folder / "b.png")], votes.__setitem__)
    started = pixelloop("up", "--home", home, "--prefect-port", str(prefect), "--dashboard-port", str(dashboard))
    try:
        assert started.returncode == 0, started.stderr
        with elsewhere, ballot:
            for server in (elsewhere, ballot):
                threading.Thread(target=server.serve_forever, daemon=True).start()
            foreign = f"http://{EVIL}:{elsewhere.server_address[1]}/elsewhere.html"
            yield House(
                home, f"http://127.0.0.1:{prefect}", f"http://127.0.0.1:{dashboard}", ballot.url, foreign, votes
            )
            for server in (elsewhere, ballot):
                server.shutdown()
    finally:
        pixelloop("down", "--home", home)
        remove(EmbeddedPostgres(home / "postgres"))


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("chromium"), f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as browser:
        yield browser


def attack(page: Page, house: House, prefect: str, dashboard: str, ballot: str, marker: Path) -> dict[str, str]:
    deployment = next(found["id"] for found in house.api("POST", "/deployments/filter", {}))
    words = json.dumps([prefect, dashboard, ballot, deployment, str(marker)])
    done: dict[str, str] = page.run(f"({FOREIGN})(...{words})")
    return done


@pytest.mark.e2e
def test_a_page_of_another_origin_reads_and_starts_nothing(house: House, browser: Browser, tmp_path: Path) -> None:
    before, page = house.state(), browser.page()
    page.open(house.foreign)
    done = attack(page, house, house.prefect, house.dashboard, house.ballot, tmp_path / "marker")
    opaque = {"run", "variable", "clear", "study", "vote"}  # the page sees no answer: what came of it shows below
    assert {name: told for name, told in done.items() if told != "refused"} == dict.fromkeys(opaque, "opaque")
    assert len(done) == 10
    assert house.state() == before
    assert not (tmp_path / "marker").exists()


@pytest.mark.e2e
def test_a_page_whose_name_leads_here_reads_and_starts_nothing(house: House, browser: Browser, tmp_path: Path) -> None:
    before, page = house.state(), browser.page()
    names = [url.replace("127.0.0.1", EVIL) for url in (house.prefect, house.dashboard, house.ballot)]
    for own in names:
        page.open(own)
        assert page.run("location.hostname") == EVIL
        done = attack(page, house, *names, tmp_path / "marker")
        assert done["deployments"] == done["studies"] == done["ballot"] == done["events"] == "refused"
    assert house.state() == before
    assert not (tmp_path / "marker").exists()


@pytest.mark.e2e
def test_a_one_time_link_opens_prefects_ui_once_at_any_port(house: House, browser: Browser) -> None:
    link = pixelloop("login", "--home", house.home).stdout.strip()
    assert link.startswith(f"{house.prefect}/login/")
    page = browser.page()
    page.open(link)
    until(lambda: "Deployments" in str(page.run("document.body.innerText")), "the UI opens")
    page.open(f"{house.prefect}/v2/deployments")
    until(lambda: "campaign" in str(page.run("document.body.innerText")), "the deployments show")
    page.open(f"{house.prefect}/v2/runs")
    until(lambda: "Run a task or flow" in str(page.run("document.body.innerText")), "the flow runs page shows")
    # The UI asks for settings of its own telemetry, which a machine without a network cannot reach.
    assert [problem for problem in page.problems() if "amplitude.com" not in problem] == []

    later = browser.page()
    later.open(link)
    assert "was used or has expired" in later.run("document.body.innerText")
    later.open(house.prefect)
    until(
        lambda: bool(later.run("document.querySelector('input[type=password]') !== null")), "it asks for the password"
    )


@pytest.mark.e2e
def test_nothing_that_listens_answers_a_foreign_name_or_page(house: House) -> None:
    found = {port: command for (_, port), command in listening(of_home(house.home)).items()}
    found[int(httpx.URL(house.ballot).port or 0)] = "votes"
    assert len(found) >= 4
    for port, command in found.items():
        host = f"127.0.0.1:{port}"
        for headers in (
            {"Host": f"{EVIL}:{port}"}, {"Host": host, "Origin": f"http://{EVIL}"}, {"Host": host, "Origin": "null"},
            {"Host": host, "Origin": "http://127.0.0.1:1"}, {"Host": host, "Sec-Fetch-Site": "cross-site"},
        ):  # fmt: skip
            for method, path in (("GET", "/"), ("GET", "/api/health"), ("POST", "/api/studies"), ("OPTIONS", "/api/")):
                if "postgres" in command or "worker start" in command:  # no web server: it hangs up
                    with pytest.raises(httpx.HTTPError):
                        httpx.request(method, f"http://{host}{path}", headers=headers, timeout=10)
                    continue
                answer = httpx.request(method, f"http://{host}{path}", headers=headers)
                assert answer.status_code == 403, (command, headers, method, path)
                assert "access-control-allow-origin" not in answer.headers


@pytest.mark.e2e
def test_prefect_wants_the_password_and_a_csrf_token(house: House) -> None:
    user, _, secret = password(house.home / "prefect").partition(":")
    for path in ("/admin/version", "/csrf-token?client=me", "/variables/name/any", "/collections/views/flow"):
        assert httpx.get(f"{house.prefect}/api{path}").status_code == 401, path
    filter_ = f"{house.prefect}/api/deployments/filter"
    assert httpx.post(filter_, json={}, auth=(user, secret)).status_code == 403
    assert httpx.post(filter_, json={}, auth=(user, "guessed"), headers={"Prefect-Csrf-Token": "x"}).is_client_error
    assert len(house.api("POST", "/deployments/filter", {})) == 2


@pytest.mark.e2e
@pytest.mark.parametrize("path", ["events/out", "events/in", "logs/out", "task_runs/subscriptions/scheduled",
                                  "work_pools/gpu/workers/connect"])  # fmt: skip
def test_every_websocket_wants_the_password_and_our_own_origin(house: House, path: str) -> None:
    url = f"{house.prefect.replace('http', 'ws')}/api/{path}"
    known = password(house.home / "prefect")
    for origin in (f"http://{EVIL}", "null", "http://localhost:1"):
        with pytest.raises(InvalidStatus), connect(url, subprotocols=["prefect"], origin=origin, proxy=None):  # type: ignore[list-item, arg-type]
            pass
    for token in (None, "", "guessed"):
        with connect(url, subprotocols=["prefect"], proxy=None) as socket:  # type: ignore[list-item]
            socket.send(json.dumps({"type": "auth", "token": token}))
            with pytest.raises(ConnectionClosed):
                socket.recv(20)
    with connect(url, subprotocols=["prefect"], origin=house.prefect, proxy=None) as socket:  # type: ignore[list-item, arg-type]
        socket.send(json.dumps({"type": "auth", "token": known}))
        assert json.loads(socket.recv(20))["type"] == "auth_success"
    with contextlib.suppress(InvalidStatus, ConnectionClosed), connect(url, proxy=None) as socket:  # no subprotocol
        socket.send(json.dumps({"type": "auth", "token": None}))
        with pytest.raises(ConnectionClosed):
            socket.recv(20)


@pytest.mark.e2e
def test_no_file_gives_the_password_away(house: House) -> None:
    secret = password(house.home / "prefect").encode()
    for path in house.home.rglob("*"):
        if path.is_file() and (house.home / "postgres") not in path.parents and secret in path.read_bytes():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    shown = subprocess.run(["ps", "-eo", "args"], capture_output=True).stdout
    assert secret not in shown


def test_a_password_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    first = password(tmp_path / "prefect")
    file = tmp_path / "prefect" / "password"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)
    assert password(tmp_path / "prefect") == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert password(tmp_path / "other") != first
    file.write_text("")
    with pytest.raises(ConfigError, match="holds no password: delete it"):
        password(tmp_path / "prefect")


def test_a_link_works_once_and_not_for_long(tmp_path: Path) -> None:
    token = one_time_link(tmp_path, "http://127.0.0.1:1").rpartition("/")[2]
    late = one_time_link(tmp_path, "http://127.0.0.1:1").rpartition("/")[2]
    assert [redeem(tmp_path, token), redeem(tmp_path, token), redeem(tmp_path, "../password")] == [True, False, False]
    (file,) = (tmp_path / "links").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert late not in file.name
    old = time.time() - VALID_FOR - 1
    os.utime(file, (old, old))
    assert not redeem(tmp_path, late)
    assert list((tmp_path / "links").iterdir()) == []
