"""What the caller's environment and current folder may do to a command: what is documented, and no more."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from demo.workspace import lay_out
from flows.runtime.prefect_environment import API_URL, PASSWORD, isolate, server_environment, variables
from flows.runtime.prefect_server import prefect_server
from schema.errors import ConfigError
from tasks.store.embedded import EmbeddedPostgres
from tests.conftest import remove
from tests.flows.chromium import until
from tests.flows.prefect_api import ask
from tests.flows.test_stack import free_port

PROGRAM = Path(sys.executable).with_name("pixelloop")
NOBODY = "http://127.0.0.1:9"
SOCKS = {"all_proxy": "socks5://127.0.0.1:9", "ALL_PROXY": "socks5://127.0.0.1:9"}
HTTP = {name: NOBODY for key in ("http_proxy", "https_proxy") for name in (key, key.upper())}


def pixelloop(*words: str | Path, cwd: Path, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    environment |= {"COLUMNS": "200", "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [str(PROGRAM), *map(str, words)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=timeout
    )


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A folder with packages named as ours, and settings of another Prefect."""
    folder = tmp_path / "hostile"
    for name in ("tasks", "flows", "schema", "optimizer", "demo", "prefect"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text(f"raise SystemExit('the wrong {name}')")
    (folder / ".env").write_text(f"PREFECT_API_URL={NOBODY}\nPREFECT_API_KEY=wrong\nPREFECT_SERVER_UI_ENABLED=false\n")
    (folder / "prefect.toml").write_text(f'[api]\nurl = "{NOBODY}"\n[server.api]\nauth_string = "a:b"\nport = 1\n')
    return folder


@pytest.mark.e2e
def test_everything_starts_whatever_the_caller_has_set(hostile: Path, tmp_path: Path) -> None:
    """Proxies that lead nowhere, another Prefect's settings, a profile that is no TOML, packages named as ours."""
    home, own, prefect = tmp_path / "home", tmp_path / "me", free_port()
    (own / ".prefect").mkdir(parents=True)
    (own / ".prefect" / "profiles.toml").write_text("active = [broken")
    ports = ("--prefect-port", str(prefect), "--dashboard-port", str(free_port()))
    found = pixelloop(
        "up", "--home", home, *ports, cwd=hostile, HOME=str(own), **HTTP, **SOCKS, NO_PROXY="intranet.example",
        PYTHONINSPECT="", PYTHONSTARTUP=str(hostile / "tasks" / "__init__.py"),
        PREFECT_API_AUTH_STRING="x:y", PREFECT_SERVER_API_AUTH_STRING="a:b", PREFECT_API_KEY="wrong",
        PREFECT_PROFILE="nowhere", PREFECT_API_URL="", PREFECT_UI_API_URL=NOBODY, PREFECT_SERVER_API_PORT="1",
        PREFECT_SERVER_DATABASE_CONNECTION_URL="sqlite+aiosqlite:////nowhere/prefect.db", PREFECT_HOME="/proc/prefect",
        PREFECT_CLIENT_CUSTOM_HEADERS="no JSON", PREFECT_TEST_MODE="1", PREFECT_LOGGING_SETTINGS_PATH="/nowhere",
    )  # fmt: skip
    try:
        assert found.returncode == 0, found.stdout + found.stderr
        url = f"http://127.0.0.1:{prefect}/api"
        assert len(ask(home / "prefect", url, "POST", "/deployments/filter", {})) == 2
        said = found.stdout + found.stderr + (home / "up.log").read_text()
        assert "Traceback" not in said
        assert "WARNING" not in said
        until(lambda: worker_is_ready(home, url), "the worker asks for work")
    finally:
        pixelloop("down", "--home", home, cwd=hostile)
        remove(EmbeddedPostgres(home / "postgres"))


def worker_is_ready(home: Path, url: str) -> bool:
    workers = ask(home / "prefect", url, "POST", "/work_pools/gpu/workers/filter", {})
    return [worker["status"] for worker in workers] == ["ONLINE"]


@pytest.mark.parametrize(
    ("environment", "sentence"),
    [
        ({"PREFECT_API_URL": f"{NOBODY}/api"}, f"PREFECT_API_URL names {NOBODY}/api, where no Prefect server answers"),
        ({"PREFECT_API_URL": "nonsense"}, "PREFECT_API_URL names nonsense"),
        ({"PREFECT_API_URL": "http://me:SECRET@127.0.0.1:9/api"}, "PREFECT_API_URL names http://127.0.0.1:9/api"),
        ({"PREFECT_API_URL": "http://[::1/api"}, "PREFECT_API_URL names"),
        ({"PREFECT_API_URL": "http://192.0.2.1/api"}, "PREFECT_API_URL names http://192.0.2.1/api"),
        ({"PREFECT_LOGGING_LEVEL": "LOUD"}, "PREFECT_LOGGING_LEVEL=LOUD: use one of DEBUG"),
        ({"PIXELLOOP_PUBLIC_URLS": "night"}, "PIXELLOOP_PUBLIC_URLS: 'night' is no address"),
        ({"PREFECT_SERVER_UI_API_URL": "night"}, "PREFECT_SERVER_UI_API_URL: 'night' is no address"),
    ],
)
def test_a_variable_that_makes_the_start_impossible_is_named(
    tmp_path: Path, environment: dict[str, str], sentence: str
) -> None:
    campaign, home = lay_out(tmp_path / "demo"), tmp_path / "home"
    found = pixelloop("run", campaign, "--home", home, cwd=tmp_path, **environment)
    assert found.returncode == 2, found.stdout + found.stderr
    assert not home.exists()
    assert sentence in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1
    assert "SECRET" not in found.stdout + found.stderr


@pytest.mark.parametrize("file", ["prefect.toml", "pyproject.toml", "profiles.toml"])
def test_a_broken_file_of_prefects_is_one_sentence(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text("active = [broken")
    found = pixelloop(
        "report", "--home", tmp_path / "home", cwd=tmp_path, PREFECT_API_URL=f"{NOBODY}/api",
        PREFECT_PROFILES_PATH=str(tmp_path / "profiles.toml"),
    )  # fmt: skip
    assert found.returncode == 2
    assert f"{file} is not valid TOML, and Prefect reads it" in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_the_users_own_server_is_asked_for_four_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:

    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections and says nothing
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        monkeypatch.setenv(API_URL, address)
        began = time.monotonic()
        with (
            pytest.raises(ConfigError, match="where no Prefect server answers"),
            prefect_server(tmp_path, lambda: "never asked"),
        ):
            pass
        assert time.monotonic() - began < 6


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Sets variables, and takes back whatever a test changes."""
    before = dict(os.environ)
    monkeypatch.chdir(tmp_path)
    yield os.environ.update
    os.environ.clear()
    os.environ.update(before)


def test_a_server_of_the_users_own_keeps_its_settings(clean: Callable[..., None]) -> None:
    clean({API_URL: "http://prefect.example/api", PASSWORD: "me:secret", "PREFECT_API_KEY": "key"})
    before = {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")}
    isolate()
    assert {name: value for name, value in os.environ.items() if name.startswith("PREFECT_")} == before


def test_without_one_only_documented_variables_are_left(clean: Callable[..., None]) -> None:
    clean({"PREFECT_API_KEY": "key", PASSWORD: "me:secret", "PREFECT_SERVER_UI_API_URL": "https://night.example/api"})
    os.environ.pop(API_URL, None)
    isolate()
    assert {name for name in os.environ if name.startswith("PREFECT_")} <= {
        "PREFECT_SERVER_UI_API_URL", "PREFECT_PROFILES_PATH", "PREFECT_LOGGING_LEVEL", "PREFECT_SERVER_LOGGING_LEVEL",
    }  # fmt: skip


def test_the_server_hears_nothing_of_another_database(clean: Callable[..., None], tmp_path: Path) -> None:
    clean({"PGSSLMODE": "require", "PGHOST": "elsewhere", "PREFECT_SERVER_API_HOST": "0.0.0.0"})
    found = server_environment(tmp_path, "postgresql+asyncpg://x", 4200, "user:secret")
    assert not [name for name in found if name.startswith("PG")]
    assert found["PREFECT_SERVER_API_HOST"] == "127.0.0.1"


def test_variables_are_as_before_after_the_block(clean: Callable[..., None]) -> None:
    clean({PASSWORD: "mine:secret"})
    os.environ.pop(API_URL, None)
    with variables({API_URL: "http://127.0.0.1:1/api", PASSWORD: "home:secret"}):
        assert os.environ[PASSWORD] == "home:secret"
    assert (os.environ.get(API_URL), os.environ[PASSWORD]) == (None, "mine:secret")


@pytest.mark.e2e
def test_a_server_starts_whatever_libpq_and_prefect_are_told(
    postgres: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    database = postgres.ensure_database("prefect_environment")
    for name, value in {
        "PGSSLMODE": "require", "PGOPTIONS": "-c default_transaction_read_only=on", "PGHOST": "192.0.2.1",
        "PGTARGETSESSIONATTRS": "standby", "PREFECT_SERVER_API_AUTH_STRING": "a:b", "http_proxy": NOBODY,
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    for name in ("no_proxy", "NO_PROXY", API_URL):
        monkeypatch.delenv(name, raising=False)
    with prefect_server(tmp_path / "prefect", lambda: database, wait=240) as url:
        assert ask(tmp_path / "prefect", url, "POST", "/flow_runs/count", {}) == 0
        assert os.environ[PASSWORD] != "a:b"
    assert PASSWORD not in os.environ
