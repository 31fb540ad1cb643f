"""prefect.yaml: what it names exists and is the flow itself; deployed as the docs say, a worker really runs it."""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint

from demo.workspace import lay_out
from flows.server import prefect_server

DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())[
    "deployments"
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_each_deployment_is_a_flow_that_takes_its_parameters(deployment: dict[str, Any]) -> None:
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    inspect.signature(flow.fn).bind(**deployment["parameters"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_flows_are_deployed_by_module_so_that_no_second_copy_is_loaded(deployment: dict[str, Any]) -> None:
    import flows.campaign

    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow is getattr(flows.campaign, deployment["name"])


Prefect = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def prefect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Prefect]:
    """The prefect command, against a server of the test's own, in a folder that holds prefect.yaml alone."""
    folder = tmp_path / "checkout"
    folder.mkdir()
    shutil.copy(Path(__file__).parents[2] / "prefect.yaml", folder)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
    with prefect_server(tmp_path / "prefect", lambda: f"sqlite+aiosqlite:///{tmp_path}/prefect.db", wait=240) as url:

        def run(*words: str) -> subprocess.CompletedProcess[str]:
            command = [sys.executable, "-m", "prefect", "--no-prompt", *words]
            environment = {**os.environ, "PREFECT_API_URL": url, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=480)
            assert done.returncode == 0, done.stdout + done.stderr
            return done

        yield run


@pytest.mark.e2e
def test_a_worker_runs_what_prefect_yaml_deploys(prefect: Prefect, tmp_path: Path) -> None:
    campaign = lay_out(tmp_path / "demo")
    text = campaign.read_text()
    for old, new in (("trials = 8", "trials = 1"), ("max_train_epochs = 5", "max_train_epochs = 1")):
        assert old in text
        text = text.replace(old, new)
    campaign.write_text(text.replace("low = 1e-5, high = 1e-1", "low = 1e-3, high = 5e-3"))
    for extra in sorted((tmp_path / "demo" / "portraits").iterdir())[48:]:
        extra.unlink()
    prefect("work-pool", "create", "gpu", "--type", "process")
    prefect("deploy", "--all")
    home = tmp_path / "home"
    prefect("deployment", "run", "campaign/campaign", "-p", f"campaign_file={campaign}", "-p", f"home={home}")
    prefect("worker", "start", "--pool", "gpu", "--run-once", "--prefetch-seconds", "60")
    assert (home / "report-demo.html").exists()
    assert (home / "best-demo.safetensors").exists()
    left = [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]
    assert left == []
