"""What is started again, how soon, and when no more."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from flows.runtime import restarts
from flows.runtime.restarts import Restarts
from schema.errors import PixelloopError
from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove
from tests.flows.chromium import until
from tests.flows.test_stack import free_port, of_home, pixelloop


def test_pauses_grow_and_end_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    now, said = [0.0], list[str]()
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now[0])
    counted = Restarts("the Prefect worker", "up.log", said.append)
    pauses = []
    for code in (-9, 1, 1, 1):
        counted.started()
        now[0] += 1
        pauses.append(counted.died(code))
    assert pauses == sorted(set(pauses))
    assert said[0] == f"the Prefect worker died of SIGKILL: next start in {pauses[0]:g} s"
    with pytest.raises(
        PixelloopError, match=r"ended with code 1, 5 times in a row: it is not started again, see up.log"
    ):
        counted.died(1)


def test_one_that_lived_for_long_is_started_as_if_it_were_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(restarts.time, "monotonic", lambda: now[0])
    counted = Restarts("it", "log", lambda _: None)
    for _ in range(20):
        counted.started()
        now[0] += 61
        assert counted.died(-9) == 1


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    if (home / "up.json").exists():
        pixelloop("down", "--home", home)
    remove(EmbeddedPostgres(home / "postgres"))


def start(home: Path) -> None:
    ports = ("--prefect-port", str(free_port()), "--dashboard-port", str(free_port()))
    started = pixelloop("up", "--home", home, *ports)
    assert started.returncode == 0, started.stderr + (home / "up.log").read_text()


def find(home: Path, word: str) -> list[psutil.Process]:
    found = []
    for process in of_home(home):
        with contextlib.suppress(psutil.NoSuchProcess):
            if word in " ".join(process.cmdline()):
                found.append(process)
    return found


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=0)[1]


@pytest.mark.e2e
def test_up_gives_up_a_worker_that_dies_at_once_and_a_killed_up_is_followed_by_the_next(home: Path) -> None:
    start(home)
    (keeper,) = (p for p in of_home(home) if p.cmdline()[2:4] == ["-m", "flows.stack"])
    (server,) = find(home, "flows.runtime.prefect_app")
    server.kill()
    until(
        lambda: "the Prefect server died of SIGKILL: next start in 1 s" in (home / "up.log").read_text(), "it says so"
    )
    until(lambda: find(home, "flows.runtime.prefect_app") not in ([], [server]), "the server is started again")
    everything = of_home(home)
    keeper.kill()
    until(lambda: gone(find(home, "worker start") + find(home, "flows.runtime.prefect_app")), "nothing is left of it")

    start(home)  # the ordinary next command; it ends what is left of the database's connections by itself
    (keeper,) = (p for p in of_home(home) if p.cmdline()[2:4] == ["-m", "flows.stack"])
    for _ in range(5):
        until(lambda: bool(find(home, "worker start")) or not keeper.is_running(), "a worker runs")
        for worker in find(home, "worker start"):
            worker.kill()
            worker.wait(30)
    until(lambda: gone([keeper]), "up ends")
    said = (home / "up.log").read_text()
    assert "the Prefect worker died of SIGKILL: next start in 8 s" in said
    assert "pixelloop: the Prefect worker died of SIGKILL, 5 times in a row: it is not started again" in said
    assert "Traceback" not in said
    until(lambda: of_home(home) == [], "nothing is left")
    assert not (home / "up.json").exists()
    assert gone(everything)


@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_dashboard_that_is_ended_leaves_nothing(home: Path, number: signal.Signals) -> None:
    (home / "prefect").mkdir(parents=True)
    _ = Home.at(home).uid
    words = [sys.executable, "-m", "flows.cli", "dashboard", "--home", str(home), "--port", str(free_port())]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as shown:
        assert shown.stdout is not None
        assert "optuna-dashboard on" in shown.stdout.readline()
        shown.send_signal(number)
        _, errors = shown.communicate(timeout=60)
    assert "Traceback" not in errors
    if number == signal.SIGKILL:  # the next command ends the database
        assert "no campaign" in pixelloop("status", "--home", home).stderr
    assert of_home(home) == []
