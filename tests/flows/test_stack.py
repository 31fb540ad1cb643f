"""What `pixelloop up` starts: it answers, listens on this machine alone, and `pixelloop down` ends all of it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from tests.flows.prefect_api import ask


def pixelloop(*words: str | Path) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "200"}
    command = [sys.executable, "-m", "flows.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def of_home(home: Path) -> list[psutil.Process]:
    """Everything that runs for a home: what names it, the database wherever its data lie, and all their children."""
    state = home / "postgres" / "state.json"
    data = str(home / "postgres" / json.loads(state.read_text())["data"]) if state.exists() else str(home)
    # As root the database's command line names its data by a file descriptor; its current folder is the data.
    named = [
        process
        for process in psutil.process_iter(["cmdline", "cwd"])
        if {str(home), data} & {*(process.info["cmdline"] or []), process.info["cwd"]}
        or str(home) in " ".join(process.info["cmdline"] or [])
    ]
    found = {p.pid: p for p in named}
    for process in named:
        with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended since, as a connection's backend does
            found |= {p.pid: p for p in process.children(recursive=True)}
    return list(found.values())


def listening(processes: list[psutil.Process]) -> dict[tuple[str, int], str]:
    """Addresses on which processes listen, with what each of them is."""
    found = {}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # what has ended listens no more
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM:
                    found[connection.laddr.ip, connection.laddr.port] = " ".join(process.cmdline())
    return found


@dataclass(frozen=True)
class Up:
    """A home where everything runs."""

    home: Path
    prefect: int
    dashboard: int
    told: dict[str, str]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    home, prefect, dashboard = tmp_path_factory.mktemp("up"), free_port(), free_port()
    ports = ("--prefect-port", str(prefect), "--dashboard-port", str(dashboard))
    result = pixelloop("up", "--home", home, *ports, "--json")
    assert result.returncode == 0, result.stderr + (home / "up.log").read_text()
    yield Up(home, prefect, dashboard, json.loads(result.stdout))
    if (home / "up.json").exists():
        pixelloop("down", "--home", home)


def test_all_of_it_answers(up: Up) -> None:
    assert up.told["prefect"] == f"http://127.0.0.1:{up.prefect}"
    assert httpx.get(f"{up.told['prefect']}/api/health").json() is True
    pools = ask(up.home / "prefect", f"{up.told['prefect']}/api", "POST", "/work_pools/filter", {})
    assert [pool["name"] for pool in pools] == ["gpu"]
    assert httpx.get(up.told["dashboard"], follow_redirects=True).is_success


def test_nothing_listens_beyond_this_machine(up: Up) -> None:
    places = listening(of_home(up.home))
    assert {up.prefect, up.dashboard} <= {port for _, port in places}
    assert any("postgres" in command for command in places.values())
    assert {address for address, _ in places} <= {"127.0.0.1", "::1"}, places


def test_up_twice_says_where_it_is(up: Up) -> None:
    again = pixelloop("up", "--home", up.home)
    assert again.returncode == 0
    assert f"http://127.0.0.1:{up.prefect}" in again.stdout


def test_a_port_in_use_is_one_sentence(up: Up, tmp_path: Path) -> None:
    for ports in (
        ("--prefect-port", up.prefect, "--dashboard-port", free_port()),
        ("--prefect-port", free_port(), "--dashboard-port", up.dashboard),
    ):
        result = pixelloop("up", "--home", tmp_path, *map(str, ports))
        assert result.returncode == 2
        taken = next(port for port in ports if port in (up.prefect, up.dashboard))
        assert f"port {taken} on 127.0.0.1 is in use" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
        assert of_home(tmp_path) == []


def test_down_ends_everything(up: Up) -> None:
    before = of_home(up.home)
    assert len(before) > 3
    result = pixelloop("down", "--home", up.home)
    assert result.returncode == 0, result.stderr
    _, left = psutil.wait_procs(before, timeout=5)  # the last of them says so before its interpreter ends
    assert [p for p in left if p.status() != psutil.STATUS_ZOMBIE] == []


def test_down_where_nothing_is_up_is_one_sentence(tmp_path: Path) -> None:
    result = pixelloop("down", "--home", tmp_path)
    assert result.returncode == 2
    assert "nothing is up in" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
