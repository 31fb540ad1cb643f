from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import optuna
import pytest

from schema.errors import ConfigError, StoreUnavailableError
from tasks.dashboard.annotate import annotate_study, annotate_trial
from tasks.dashboard.serve import DashboardServer, open_server
from tasks.reports.charts import quality_curves
from tasks.reports.markdown import campaign_note, trial_note
from tests.tasks.reports import factory

ROOT = Path(__file__).parents[3]


@pytest.fixture
def server(study: optuna.Study, storage_url: str, artifact_dir: Path, sheets: list[Path]) -> Iterator[DashboardServer]:
    """A dashboard on a free port over an annotated study."""
    night = factory.night()
    annotate_trial(study, 0, artifact_dir, trial_note(night[0].run, night[0].epochs), sheets)
    study.tell(0, 66.0)
    chart = quality_curves(night, None, "night-001")
    annotate_study(study, campaign_note(night, factory.analysis(), factory.ledger()), {"quality-curves": chart})
    with open_server(storage_url, artifact_dir, port=0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def get(server: DashboardServer, path: str) -> bytes:
    with urllib.request.urlopen(server.url.rstrip("/") + path, timeout=30) as response:
        body: bytes = response.read()
    return body


def detail(server: DashboardServer) -> dict[str, Any]:
    study_id = json.loads(get(server, "/api/studies"))["study_summaries"][0]["study_id"]
    found: dict[str, Any] = json.loads(get(server, f"/api/studies/{study_id}?after=0"))
    return found | {"id": study_id}


def test_the_page_and_its_script_are_served(server: DashboardServer) -> None:
    assert b"<html" in get(server, "/dashboard").lower()


def test_notes_and_charts_are_in_the_api(server: DashboardServer) -> None:
    study = detail(server)
    assert study["note"]["body"].startswith("# night")
    assert [graph["id"] for graph in study["plotly_graph_objects"]] == ["quality-curves"]
    [trial] = study["trials"]
    assert "## Epochs" in trial["note"]["body"]
    assert trial["note"]["body"].startswith("![epoch-003.png](/artifacts/")


def test_the_picture_in_the_note_is_served_as_it_was_drawn(server: DashboardServer, sheets: list[Path]) -> None:
    [trial] = detail(server)["trials"]
    address = trial["note"]["body"].split("(", 1)[1].split(")", 1)[0]
    assert get(server, address) == sheets[2].read_bytes()
    assert sorted(artifact["filename"] for artifact in trial["artifacts"]) == [sheet.name for sheet in sheets]


def test_it_listens_on_this_machine_only(server: DashboardServer) -> None:
    assert server.server_address[0] == "127.0.0.1"


@pytest.mark.parametrize("path", ["/dashboard", "/api/studies"])
def test_it_answers_to_names_of_this_machine_alone(server: DashboardServer, path: str) -> None:
    for host in ("localhost", f"localhost:{server.server_port}", "LOCALHOST:9999", "[::1]:80"):
        assert httpx.get(server.url.rstrip("/") + path, headers={"Host": host}).status_code == 200
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1.evil.example", "", "localhost:80:80"):
        refused = httpx.get(server.url.rstrip("/") + path, headers={"Host": host})
        assert refused.status_code == 403
        assert "open this server at the address that pixelloop printed" in refused.text


def test_a_port_in_use_is_one_sentence_unless_any_port_will_do(storage_url: str, artifact_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use"):
            open_server(storage_url, artifact_dir, port=port)
        with open_server(storage_url, artifact_dir, port=port, free_port=True) as server:
            assert server.server_port not in (0, port)


def test_a_host_of_another_machine_is_refused(storage_url: str, artifact_dir: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on 192\.0\.2\.1:8080"):
        open_server(storage_url, artifact_dir, host="192.0.2.1")


def test_a_database_that_cannot_be_opened_is_named_without_its_password(artifact_dir: Path) -> None:
    url = "postgresql+psycopg://user:secret@127.0.0.1:1/none?connect_timeout=2"
    with pytest.raises(StoreUnavailableError, match=r"cannot open postgresql\+psycopg://user:\*\*\*@") as caught:
        open_server(url, artifact_dir, port=0)
    assert "secret" not in str(caught.value)


def test_ctrl_c_ends_it_quietly(storage_url: str, study: optuna.Study, artifact_dir: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tasks.dashboard.serve import serve\n"
        "serve(sys.argv[1], Path(sys.argv[2]), port=0, ready=lambda url: print(url, flush=True))"
    )
    command = [sys.executable, "-c", program, storage_url, str(artifact_dir)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in errors
