"""A night in small, every part real: Postgres, Prefect, trainer process, diffusion model, metrics, Optuna.

One campaign of two trials with two epochs each is started, interrupted by Ctrl-C in the middle of its first
trial, resumed, and then looked at from all sides.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import psycopg
import pytest
import torch

from demo.workspace import lay_out
from tests.flows.test_stack import listening, of_home

pytestmark = pytest.mark.e2e
TRIALS, EPOCHS = 2, 2
TOKEN = "s3cret-Of_A_kind"
NOTIFY = f"json://someone:{TOKEN}@127.0.0.1:9/{TOKEN}"
"""Where nobody listens: each notice of the night fails, which is told."""


@dataclass(frozen=True)
class Night:
    """What the campaign left behind."""

    folder: Path
    interrupted: subprocess.CompletedProcess[str]
    resumed: subprocess.CompletedProcess[str]
    listened: dict[tuple[str, int], str]

    def pixelloop(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return pixelloop(self.folder, *arguments)

    def json(self, *arguments: str) -> object:
        result = self.pixelloop(*arguments, "--json")
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "flows.cli", *arguments]


def environment() -> dict[str, str]:
    return {"PIXELLOOP_NOTIFY": NOTIFY, **os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def pixelloop(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    words = command(*arguments, "--home", str(folder))
    return subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=folder, timeout=300)


def interrupt_when(folder: Path, sign: Path) -> tuple[subprocess.CompletedProcess[str], dict[tuple[str, int], str]]:
    """Start the campaign and press Ctrl-C as soon as a file is there; also, where its processes listened then."""
    words = command("run", str(folder / "campaign.toml"), "--home", str(folder))
    process = subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment(), cwd=folder
    )
    while not sign.exists() and process.poll() is None:
        time.sleep(0.05)
    listened = listening(of_home(folder))
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=120)
    return subprocess.CompletedProcess(words, process.returncode, out, err), listened


@pytest.fixture(scope="module")
def night(tmp_path_factory: pytest.TempPathFactory) -> Night:
    folder = tmp_path_factory.mktemp("night")
    campaign = lay_out(folder)
    text = campaign.read_text()
    for old, new in (("trials = 8", f"trials = {TRIALS}"), ("max_train_epochs = 5", f"max_train_epochs = {EPOCHS}")):
        assert old in text
        text = text.replace(old, new)
    campaign.write_text(text.replace("low = 1e-5, high = 1e-1", "low = 1e-3, high = 5e-3"))
    for extra in sorted((folder / "portraits").iterdir())[48:]:  # 24 pictures are enough here
        extra.unlink()
    interrupted, listened = interrupt_when(folder, folder / "runs" / "demo" / "000" / "samples" / "epoch-001.png")
    return Night(folder, interrupted, pixelloop(folder, "resume"), listened)


def rows(night: Night, sql: str) -> list[tuple[object, ...]]:
    """Ask the database directly; the home's server is started for it."""
    from flows.runtime import wiring

    with wiring.session():
        services = wiring.open_home(str(night.folder))
        with psycopg.connect(services.database_url) as connection:
            return connection.execute(sql.encode()).fetchall()


def test_ctrl_c_ends_with_the_command_that_goes_on(night: Night) -> None:
    assert night.interrupted.returncode == 130, night.interrupted.stderr
    assert "pixelloop resume" in night.interrupted.stdout
    assert "Traceback" not in night.interrupted.stdout + night.interrupted.stderr


def test_resume_finishes_and_shows_the_leaderboard(night: Night) -> None:
    assert night.resumed.returncode == 0, night.resumed.stdout + night.resumed.stderr
    assert "resuming demo-000" in night.resumed.stdout
    for number in range(TRIALS):
        assert f"demo-{number:03d}" in night.resumed.stdout
    assert "report" in night.resumed.stdout


def test_nothing_of_a_running_campaign_listens_beyond_this_machine(night: Night) -> None:
    assert len(night.listened) >= 2, night.listened  # Postgres and the Prefect server
    assert {address for address, _ in night.listened} <= {"127.0.0.1", "::1"}, night.listened


def test_no_secret_stands_in_anything_that_a_night_leaves_behind(night: Night, tmp_path: Path) -> None:
    told = night.interrupted.stdout + night.interrupted.stderr + night.resumed.stdout + night.resumed.stderr
    assert "a notice could not be sent" in told
    kept = tmp_path / "everything.jsonl"
    assert night.pixelloop("db", "export", str(kept)).returncode == 0
    told += json.dumps(night.json("status")) + kept.read_text()
    state = night.folder / "postgres" / "state.json"
    assert state.stat().st_mode & 0o077 == 0
    place = json.loads(state.read_text())
    for secret in (TOKEN, place["password"]):
        assert secret not in told
        data = night.folder / "postgres" / place["data"]  # with Prefect's and Optuna's tables, and the server's log
        files = [p for folder in (night.folder, data.parent) for p in folder.rglob("*") if p.is_file() and p != state]
        assert len(files) > 1000
        assert [p for p in files if secret.encode() in p.read_bytes()] == []
    assert [p for p in files if b"demo-001" in p.read_bytes()]  # the database's files are readable


def test_no_row_is_lost_or_doubled(night: Night) -> None:
    found = rows(
        night,
        """select r.number, r.outcome, e.epoch_number from training_runs r
           join epoch_results e on e.training_run_id = r.id order by 1, 3""",
    )
    assert found == [(number, "ok", epoch) for number in range(TRIALS) for epoch in range(1, EPOCHS + 1)]


def test_every_parameter_and_measurement_is_kept(night: Night) -> None:
    (parameters, metrics) = rows(
        night,
        """select r.all_parameters, e.quantitative_metrics from training_runs r
           join epoch_results e on e.training_run_id = r.id limit 1""",
    )[0]
    assert {"learning_rate", "network_dim", "train_batch_size", "total_steps"} <= set(parameters)
    assert len(metrics["pictures"]) == 8
    assert metrics["mean"]["background_accuracy"] is not None


def test_what_the_parameters_did_is_kept_with_each_run(night: Night) -> None:
    kept = rows(night, "select number, jsonb_array_length(parameter_analysis) > 0 from training_runs order by number")
    assert kept == [(number, True) for number in range(TRIALS)]


def test_optuna_holds_the_same_trials(night: Night) -> None:
    states = rows(night, "select number, state from optuna.trials order by number")
    complete = [number for number, state in states if state == "COMPLETE"]
    assert complete == list(range(TRIALS))
    assert not [state for _, state in states if state == "RUNNING"]


def test_sheets_report_and_best_lora_lie_in_the_home(night: Night) -> None:
    for number in range(TRIALS):
        assert (night.folder / "runs" / "demo" / f"{number:03d}" / "samples" / "epoch-002.png").exists()
    report = (night.folder / "report-demo.html").read_text(encoding="utf-8")
    assert "demo-001" in report
    assert "data:image/png;base64," in report


def test_the_lora_loads_in_plain_diffusers_and_changes_the_picture(night: Night) -> None:
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(night.folder / "base", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        seed = torch.Generator().manual_seed(1)
        return pipe(
            "pixel art, portrait of a character", num_inference_steps=4, generator=seed, output_type="pt"
        ).images

    before = draw()
    pipe.load_lora_weights(night.folder / "best-demo.safetensors")
    assert (draw() - before).abs().mean() > 0.01
    pipe.unload_lora_weights()
    assert torch.equal(draw(), before)


def test_status_names_every_run_with_its_quality(night: Night) -> None:
    found = night.json("status")
    assert isinstance(found, dict)
    assert {row["run_name"] for row in found["runs"]} == {"demo-000", "demo-001"}


def test_runs_can_be_asked_for_by_a_condition(night: Night) -> None:
    everything = night.json("runs", "--where", "network_dim > 0")
    nothing = night.json("runs", "--where", "network_dim > 32", "--where", "network_dim < 16")
    assert isinstance(everything, list)
    assert len(everything) == TRIALS
    assert nothing == []


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "learning_rate=0.002", "network_dim=8"),
        ("diagnose", "demo-000"),
        ("next",),
        ("principles",),
        ("ab", "0:1", "1:1"),
        ("compare", "0", "1"),
        ("report",),
    ],
)
def test_the_commands_answer_from_the_finished_campaign(night: Night, arguments: tuple[str, ...]) -> None:
    result = night.pixelloop(*arguments)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


def test_a_persons_blind_votes_between_two_checkpoints_are_counted(night: Night) -> None:
    words = command("ab", "0:1", "1:1", "--vote", "--home", str(night.folder))
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment(), cwd=night.folder) as process:
        assert process.stdout is not None
        told = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline())
        assert told is not None
        page = httpx.get(told[0]).text
        while found := dict(re.findall(r'name="(token|number)" value="([^"]*)"', page)):
            page = httpx.post(f"{told[0]}vote", data={**found, "choice": "tie"}).text
        assert "0 for demo-000 epoch" in process.stdout.read()
    assert process.returncode == 0
    verdict = night.json("ab", "1:1", "0:1")
    assert isinstance(verdict, dict)
    assert (verdict["votes"]["ties"], verdict["votes"]["better"]) == (8, None)


def test_an_unknown_run_is_one_sentence_naming_the_known_ones(night: Night) -> None:
    result = night.pixelloop("diagnose", "77")
    assert result.returncode == 2
    assert "demo-000, demo-001" in result.stderr


def test_a_hunch_about_a_fixed_parameter_is_run_and_judged(night: Night) -> None:
    hunch = "caption_dropout_rate 0.05 -> 0.3"
    plan = night.json("test", hunch, "--plan")
    assert isinstance(plan, dict)
    assert [half["caption_dropout_rate"] for half in plan["planned"]] == [0.3, 0.3, 0.05, 0.3]
    told = night.json("test", hunch, "--worth", "200")  # three pairs exclude such a gain
    assert isinstance(told, dict)
    assert (told["verdict"]["state"], told["verdict"]["pairs"], len(told["pairs"])) == ("refuted", 3, 3)
    halves = rows(
        night,
        """select all_parameters->>'caption_dropout_rate', all_parameters->>'seed', epochs_done, verdict->>'rule'
           from training_runs where number >= 2 order by number""",
    )
    wanted = [("0.3", "1"), ("0.3", "1"), ("0.05", "2"), ("0.3", "2")]
    assert halves == [(share, seed, EPOCHS, "paired_test") for share, seed in wanted]


def test_halves_differ_from_the_campaigns_own_runs_in_nothing_but_what_is_tested(night: Night) -> None:
    unset = "select count(*) from training_runs where all_parameters->>'noise_offset' is not null"
    assert rows(night, unset) == [(0,)]


def test_nothing_is_left_running(night: Night) -> None:
    import psutil

    mine = [p for p in psutil.process_iter(["cmdline"]) if str(night.folder) in " ".join(p.info["cmdline"] or [])]
    assert mine == []
