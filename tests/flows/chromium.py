"""A headless Chromium, driven by its DevTools protocol."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import ClientConnection, connect

WAIT = 60.0


@contextlib.contextmanager
def chromium(folder: Path, *options: str) -> Iterator[Browser]:
    """Start a browser with a profile of its own; skip the test where none is installed."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium here: install Debian's package chromium")
    words = [
        program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--no-proxy-server",
        "--disable-dev-shm-usage", "--remote-debugging-port=0", f"--user-data-dir={folder}", *options, "about:blank",
    ]  # fmt: skip
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            ready = folder / "DevToolsActivePort"
            until(lambda: ready.exists() and len(ready.read_text().split()) == 2, "Chromium starts")
            port, path = ready.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None, proxy=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()


def until(moment: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + WAIT
    while not moment():
        assert time.monotonic() < end, f"not within {WAIT:g} s: {what}"
        time.sleep(0.1)


class Browser:
    """Opens pages, each in a context of its own, so that they share neither cookies nor storage."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._numbers = socket, itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def page(self) -> Page:
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        return page

    def call(self, method: str, session: str | None = None, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message if session is None else {**message, "sessionId": session}))
        while True:
            answer = json.loads(self._socket.recv(WAIT))
            if answer.get("id") == number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)


class Page:
    """One tab."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: object) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def open(self, url: str) -> None:
        self.run("window.left = true")
        self.call("Page.navigate", url=url)
        until(lambda: bool(self.run("!window.left && document.readyState == 'complete'")), url)

    def run(self, script: str) -> Any:
        """Value of a script's last expression; of a promise, what it resolves to."""
        for _ in range(3):  # a page that changes its address meanwhile takes the script with it
            with contextlib.suppress(AssertionError):
                done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
                assert "exceptionDetails" not in done, done
                return done["result"].get("value")
        raise AssertionError(f"the script fails: {script}")

    def problems(self) -> list[str]:
        """Errors in the console, exceptions, and answers of 400 and above."""
        found = []
        for event in self._browser.events:
            if event.get("sessionId") != self._session:
                continue
            method, data = event["method"], event.get("params", {})
            if method == "Runtime.exceptionThrown":
                found.append(json.dumps(data["exceptionDetails"])[:300])
            elif method == "Runtime.consoleAPICalled" and data["type"] == "error":
                found.append(json.dumps(data["args"])[:300])
            elif method == "Log.entryAdded" and data["entry"]["level"] == "error":
                found.append(f"{data['entry']['text']} {data['entry'].get('url', '')}")
            elif method == "Network.responseReceived" and data["response"]["status"] >= 400:
                found.append(f"{data['response']['status']} {data['response']['url']}")
        return found
