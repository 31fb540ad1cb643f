"""Keep everything running that one machine needs: database, Prefect server, a worker, the dashboard.

``python -m flows.stack HOME PREFECT_PORT DASHBOARD_PORT`` is the process that does. It restarts what dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from flows.runtime import wiring
from flows.runtime.prefect_environment import isolate
from flows.runtime.prefect_server import prefect_server
from flows.runtime.restarts import Restarts
from schema.errors import ConfigError, PixelloopError
from tasks.child_process import child_environment, module_command
from tasks.claims import Claim
from tasks.gpus import visible
from tasks.home import Home, replace_text

POOL = "gpu"
_LOOK = 1.0  # seconds between looks: quick for a person, nothing for a CPU
_WORKER_GRACE = 60.0
"""Seconds for a worker's campaigns to save their state."""


def running(home: Home) -> dict[str, Any] | None:
    """Process id and addresses of what runs in a home: ``pid``, ``prefect``, ``dashboard``; None where nothing does."""
    if Claim.is_free(home.up_claim):
        return None
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(home.up_state.read_text())
        return found
    return None  # it is just starting


def main() -> None:
    """Keep everything running until SIGTERM or Ctrl-C."""
    place, prefect_port, dashboard_port = Home.at(Path(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3])
    ended = threading.Event()

    def end(_number: int, _frame: FrameType | None) -> None:
        ended.set()

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGINT, end)
    claim = Claim.take(place.up_claim)
    if claim is None:
        sys.exit(f"pixelloop is up already in {place.root}: 'pixelloop down' ends it")
    with claim:
        place.up_state.unlink(missing_ok=True)  # of one that was killed
        try:
            isolate()
            _keep_up(place, prefect_port, dashboard_port, ended)
        except PixelloopError as error:
            print(f"pixelloop: {error}", file=sys.stderr)
            sys.exit(2)
        finally:
            place.up_state.unlink(missing_ok=True)


def check_ports(ports: Mapping[str, int]) -> None:
    """Look before anything is started, which takes half a minute.

    Args:
        ports: of ``prefect`` and ``dashboard``.

    Raises:
        ConfigError: a port is in use, or may not be opened.
    """
    from tasks.dashboard.serve import DashboardServer, listen

    for name, port in ports.items():
        try:
            listen(DashboardServer, "127.0.0.1", port, free_port=False).server_close()
        except ConfigError as error:
            raise ConfigError(str(error).replace("another --port", f"another --{name}-port")) from None


def _keep_up(place: Home, prefect_port: int, dashboard_port: int, ended: threading.Event) -> None:
    with wiring.session():
        services = wiring.open_home(str(place.root))
        with (
            prefect_server(
                place.prefect, services.prefect_url, revive=services.revive, port=prefect_port, report=_report
            ) as url,
            _dashboard(services, dashboard_port) as dashboard,
        ):
            from flows.runtime.orphaned_runs import tidy  # Prefect only now, with its address set

            _deploy(place)
            tidy(place)  # after a power cut: what died is told to Prefect, which then runs it again
            told = {"pid": os.getpid(), "prefect": url.removesuffix("/api"), "dashboard": dashboard}
            replace_text(place.up_state, json.dumps(told))
            _work(place, ended)


def _report(message: str) -> None:
    print(f"pixelloop: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def _dashboard(services: wiring.Services, port: int) -> Iterator[str]:
    from tasks.dashboard.serve import open_server

    with open_server(services.optuna_url, services.home.artifacts, port=port) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.url
        server.shutdown()


def _deploy(home: Home) -> None:
    """Make the work pool and the two deployments as prefect.yaml has them, or bring them up to date."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.events import DeploymentEventTrigger
    from prefect.exceptions import ObjectAlreadyExists
    from prefect.types.entrypoint import EntrypointType

    from flows.campaign import campaign
    from flows.form import form

    with get_client(sync_client=True) as client, contextlib.suppress(ObjectAlreadyExists):
        client.create_work_pool(WorkPoolCreate(name=POOL, type="process"))
    again = DeploymentEventTrigger(
        expect={"prefect.flow-run.Crashed"},
        match={"prefect.resource.id": "prefect.flow-run.*", "prefect.run-count": "!0"},  # it had begun
        match_related={"prefect.resource.role": "deployment", "prefect.resource.name": campaign.name},
        parameters={name: _of_the_crashed(name) for name in ("campaign_file", "home")},
    )
    for flow in (campaign, form):
        deployment = flow.to_deployment(
            flow.name,
            parameters={"home": str(home.root)},
            concurrency_limit=ConcurrencyLimitConfig(
                limit=max(len(visible()), 1), collision_strategy=ConcurrencyLimitStrategy.ENQUEUE
            ),
            triggers=[again] if flow is campaign else None,
            entrypoint_type=EntrypointType.MODULE_PATH,
        )
        deployment.apply(work_pool_name=POOL)  # type: ignore[union-attr]


def _of_the_crashed(parameter: str) -> dict[str, str]:
    return {"__prefect_kind": "jinja", "template": f"{{{{ flow_run.parameters['{parameter}'] }}}}"}


def _work(place: Home, ended: threading.Event) -> None:
    """Keep a worker until the end; a campaign it runs then saves its state and ends.

    Raises:
        PixelloopError: the worker died at once several times in a row.
    """
    command = module_command("flows.runtime.served", "worker", "start", "--pool", POOL, "--type", "process")
    restarts = Restarts("the Prefect worker", str(place.up_log), _report)
    while not ended.is_set():
        # A folder of its own: Prefect reads .env, prefect.toml and pyproject.toml of the current one.
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, start_new_session=True, env=child_environment(), cwd=place.prefect
        )
        restarts.started()
        while worker.poll() is None and not ended.wait(_LOOK):
            pass
        if worker.poll() is None:
            worker.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(_WORKER_GRACE)
            worker.kill()
            worker.wait()
        elif not ended.is_set():
            ended.wait(restarts.died(worker.returncode))


if __name__ == "__main__":
    main()
