"""prefect.yaml: what it names exists and is the flow itself; deployed as the docs say, a worker really runs it."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import yaml
from prefect import Flow
from prefect.flows import load_flow_from_entrypoint
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from demo.workspace import lay_out
from flows.runtime import wiring
from flows.runtime.orphaned_runs import tidy
from flows.runtime.prefect_login import password
from flows.runtime.prefect_server import prefect_server
from schema.campaign import campaign_json, load_campaign
from schema.runs import RunStatus
from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres
from tasks.training.events import StepEvent, StoppedEvent, read_events
from tests.conftest import remove
from tests.flows.prefect_api import ask

DEPLOY = Path(__file__).parents[2] / "deploy"
DEPLOYMENTS: list[dict[str, Any]] = yaml.safe_load((Path(__file__).parents[2] / "prefect.yaml").read_text())[
    "deployments"
]


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_each_deployment_is_a_flow_that_takes_its_parameters(deployment: dict[str, Any]) -> None:
    flow: Flow[..., Any] = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    inspect.signature(flow.fn).bind_partial(**deployment["parameters"])


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda d: d["name"])
def test_flows_are_deployed_by_module_so_that_no_second_copy_is_loaded(deployment: dict[str, Any]) -> None:
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = load_flow_from_entrypoint(deployment["entrypoint"], use_placeholder_flow=False)
    assert flow is getattr(importlib.import_module(module), name)


@dataclass(frozen=True)
class Prefect:
    """The prefect command, against a server of the test's own, in a folder that holds prefect.yaml alone."""

    folder: Path
    url: str

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            self._command(words), cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=480
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(self._command(words), cwd=self.folder, env=self._environment)

    def run(self, campaign: Path, home: Path) -> None:
        self("deployment", "run", "campaign/campaign", "-p", f"campaign_file={campaign}", "-p", f"home={home}")

    def states(self) -> dict[str, str]:
        """State of each campaign by its id, the oldest first."""
        found = self.ask("POST", "/flow_runs/filter", {"sort": "EXPECTED_START_TIME_ASC"})
        return {run["id"]: run["state_type"] for run in found if run["deployment_id"] is not None}

    def set_state(self, run: str, state: str) -> None:
        """What a button in Prefect's UI, or a worker, does."""
        words = {"state": {"type": state, "name": state.capitalize()}}
        self.ask("POST", f"/flow_runs/{run}/set_state", words)

    def ask(self, method: str, path: str, data: object = None) -> Any:
        return ask(self.folder.parent / "prefect", self.url, method, path, data)

    def speaking(self) -> contextlib.AbstractContextManager[object]:
        """Prefect's clients in this process ask the server."""
        known = password(self.folder.parent / "prefect")
        return temporary_settings({PREFECT_API_URL: self.url, PREFECT_API_AUTH_STRING: known})

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, "PREFECT_API_URL": self.url, "OMP_NUM_THREADS": "1", "PREFECT_WORKER_QUERY_SECONDS": "2"}

    @staticmethod
    def _command(words: tuple[str, ...]) -> list[str]:
        return [sys.executable, "-m", "prefect", "--no-prompt", *words]


@pytest.fixture(scope="module")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prefect]:
    """As the docs say: a work pool is made and everything deployed."""
    folder = tmp_path_factory.mktemp("deployed")
    (folder / "checkout").mkdir()
    shutil.copy(Path(__file__).parents[2] / "prefect.yaml", folder / "checkout")
    database = f"sqlite+aiosqlite:///{folder}/prefect.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PREFECT_HOME", str(folder / "prefect"))
        patch.setenv("PREFECT_LOGGING_LEVEL", "WARNING")
        with prefect_server(folder / "prefect", lambda: database, wait=240) as url:
            deployed = Prefect(folder / "checkout", url)
            deployed("work-pool", "create", "gpu", "--type", "process")
            deployed("deploy", "--all")
            yield deployed


def small_campaign(folder: Path, epochs: int) -> Path:
    campaign = lay_out(folder)
    text = campaign.read_text()
    for old, new in (("trials = 8", "trials = 1"), ("max_train_epochs = 5", f"max_train_epochs = {epochs}")):
        assert old in text
        text = text.replace(old, new)
    campaign.write_text(text.replace("low = 1e-5, high = 1e-1", "low = 1e-3, high = 5e-3"))
    for extra in sorted((folder / "portraits").iterdir())[48:]:
        extra.unlink()
    return campaign


@pytest.mark.e2e
def test_a_worker_runs_what_prefect_yaml_deploys(prefect: Prefect, tmp_path: Path) -> None:
    home = tmp_path / "home"
    prefect.run(small_campaign(tmp_path / "demo", epochs=1), home)
    prefect("worker", "start", "--pool", "gpu", "--run-once", "--prefetch-seconds", "60")
    assert (home / "report-demo.html").exists()
    assert (home / "best-demo.safetensors").exists()
    left = [p for p in psutil.process_iter(["cmdline"]) if str(home) in " ".join(p.info["cmdline"] or [])]
    assert left == []


@pytest.mark.e2e
def test_a_flow_that_is_cancelled_or_killed_leaves_no_trainer_and_is_gone_on_with(
    prefect: Prefect, tmp_path: Path
) -> None:
    home, campaign = tmp_path / "home", small_campaign(tmp_path / "demo", epochs=50)
    events = home / "runs" / "demo" / "000" / "events.jsonl"
    worker = prefect.start("worker", "start", "--pool", "gpu", "--prefetch-seconds", "60")
    try:
        run, running = training(prefect, campaign, home, worker)
        prefect.set_state(run, "CANCELLING")
        wait_for(lambda: prefect.states()[run] == "CANCELLED")
        wait_for(lambda: not any(map(alive, running)))
        assert isinstance([event for event, _ in read_events(events)][-1], StoppedEvent)
        with wiring.session():
            assert wiring.open_home(str(home)).store.run("demo", 0).status is RunStatus.INTERRUPTED

        run, running = training(prefect, campaign, home, worker)
        forked_from = next(process for process in running if "tasks.training.forkserver" in process.cmdline())
        psutil.Process(forked_from.ppid()).kill()
        wait_for(lambda: prefect.states()[run] == "CRASHED")
        wait_for(lambda: not any(map(alive, running)))
        trained = events.stat().st_size
        wait_for(lambda: events.stat().st_size > trained)  # by itself: the crash triggers another run

        running = psutil.Process(worker.pid).children(recursive=True)
        (run,) = (run for run, state in prefect.states().items() if state == "RUNNING")
        for process in (psutil.Process(worker.pid), *running):  # as in a power cut: nobody is left to tell
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        assert prefect.states()[run] == "RUNNING"
        with prefect.speaking():
            assert tidy(Home.at(home)) >= 2
        assert prefect.states()[run] == "CRASHED"
        wait_for(lambda: list(prefect.states().values())[-1] == "SCHEDULED")  # for the worker of tomorrow
    finally:
        worker.kill()
        worker.wait()
        remove(EmbeddedPostgres(home / "postgres"))
    assert [folder.name for folder in sorted(home.glob("runs/demo/0*"))] == ["000"]


@pytest.mark.e2e
def test_a_run_that_never_began_is_not_run_again(prefect: Prefect, tmp_path: Path) -> None:
    """Where no container can be started, each would crash at once and bring the next."""
    prefect.run(tmp_path / "campaign.toml", tmp_path / "home")
    known = prefect.states()
    prefect.set_state(list(known)[-1], "CRASHED")
    time.sleep(15)
    assert prefect.states().keys() == known.keys()


@pytest.mark.e2e
def test_a_run_that_was_cancelled_and_whose_process_is_gone_is_not_run_again(prefect: Prefect, tmp_path: Path) -> None:
    """Prefect takes seconds to write down that it is cancelled; the next campaign of the home may begin meanwhile."""
    prefect.run(tmp_path / "campaign.toml", tmp_path / "home")
    run = list(prefect.states())[-1]
    for state in ("PENDING", "RUNNING", "CANCELLING"):
        prefect.set_state(run, state)
    home = Home.at(tmp_path / "home")
    home.flow_runs.mkdir(parents=True)
    (home.flow_runs / run).touch()
    with prefect.speaking():
        assert tidy(home) == 1
    assert prefect.states()[run] == "CANCELLED"


@pytest.mark.e2e
def test_a_campaign_may_come_from_a_form(prefect: Prefect, tmp_path: Path) -> None:
    home, campaign = tmp_path / "home", small_campaign(tmp_path / "demo", epochs=1)
    file = load_campaign(campaign)
    where = {"base_model": file.base_model, "dataset": str(file.dataset_dir), "prompts": str(file.prompts_file)}
    settings = campaign_json(file.changed(campaign=file.campaign.changed(**where)))
    prefect("deployment", "run", "form/form", "--params", json.dumps({"settings": settings, "home": str(home)}))
    prefect("worker", "start", "--pool", "gpu", "--run-once", "--prefetch-seconds", "60")
    assert (home / "best-demo.safetensors").exists()
    kept = load_campaign(home / "campaigns" / "demo.toml")
    assert (kept.search, kept.fixed, kept.budget) == (file.search, file.fixed, file.budget)


@pytest.mark.e2e
@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_pools_of_containers_take_their_templates(prefect: Prefect, kind: str) -> None:
    prefect("work-pool", "create", kind, "--type", kind, "--base-job-template", str(DEPLOY / f"{kind}.json"))
    kept = prefect.ask("GET", f"/work_pools/{kind}")["base_job_template"]
    assert "gpu" in json.dumps(kept)


def test_what_belongs_to_a_job_of_kubernetes_does_not_stand_in_its_pod() -> None:
    """A server drops unknown fields without a word, or refuses them."""
    template = json.loads((DEPLOY / "kubernetes.json").read_text())
    job = template["job_configuration"]["job_manifest"]["spec"]
    assert {"completions", "parallelism", "backoffLimit"} <= job.keys()
    assert not job.keys() & job["template"]["spec"].keys()


def training(
    prefect: Prefect, campaign: Path, home: Path, worker: subprocess.Popen[bytes]
) -> tuple[str, list[psutil.Process]]:
    """Run the deployment until it trains: the flow run, and the processes of the worker."""
    events = home / "runs" / "demo" / "000" / "events.jsonl"
    before = sum(1 for _ in read_events(events))
    prefect.run(campaign, home)
    wait_for(lambda: any(isinstance(e, StepEvent) for e, _ in list(read_events(events))[before:]))
    return list(prefect.states())[-1], psutil.Process(worker.pid).children(recursive=True)


def wait_for(moment: Callable[[], bool], seconds: float = 300) -> None:
    until = time.monotonic() + seconds
    while not moment():
        assert time.monotonic() < until, "it does not happen"
        time.sleep(0.2)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
