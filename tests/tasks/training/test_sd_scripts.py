"""The launcher of sd-scripts, against recorded streams.

The real sd-scripts needs a checkout and an environment of its own. Here a small script stands in its place, in a
process of its own: it prints what sd-scripts 0.10 was seen to print, to the same streams and with the same
carriage returns, and writes real safetensors files and states where sd-scripts writes them.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest

from schema.errors import ConfigError
from schema.parameters import ParameterValue
from schema.runs import Outcome
from tasks.training import sd_scripts
from tasks.training.config import TrainingConfig
from tasks.training.events import (
    EpochEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    StartedEvent,
    StepEvent,
    StoppedEvent,
    read_events,
)
from tasks.training.sd_scripts import SdScriptsProcess, is_complete

SCRIPT = """
import json, math, os, subprocess, sys, time, tomllib, zipfile
from pathlib import Path
import numpy as np
from safetensors.numpy import save, save_file

WAYS = {ways!r}
here = Path(__file__).parent
args = dict(zip(sys.argv[1::2], sys.argv[2::2]))
c = tomllib.loads(Path(args["--config_file"]).read_text("utf-8"))
seen = {{"args": args, "cwd": os.getcwd(), "env": dict(os.environ), "pid": os.getpid()}}
(here / "seen.json").write_text(json.dumps(seen))
out, name, epochs = Path(c["output_dir"]), c["output_name"], c["max_train_epochs"]
out.mkdir(parents=True, exist_ok=True)

def log(text):
    sys.stderr.write("2026-11-23 10:00:00 INFO     " + text + " " * 40 + "train_network.py:1\\n")

def bar(done, total, postfix):
    percent = 100 * done // total
    sys.stderr.write(f"\\rsteps: {{percent:3d}}%|█████     | {{done}}/{{total}} [00:01<00:01,  4.62s/it{{postfix}}]")

def weights(epoch):
    up = np.full((4, 2), 0.0 if "zero" in WAYS else 0.5, np.float16)
    if "weights_nan" in WAYS and epoch == 2:
        up[0, 0] = np.nan
    return {{"lora_unet_a.lora_up.weight": up, "lora_unet_a.lora_down.weight": np.ones((2, 4), np.float16),
            "lora_unet_a.alpha": np.array(2, np.float16)}}

def save_model(file, epoch):
    print(f"\\nsaving checkpoint: {{file}}")
    meta = {{"ss_epoch": str(epoch - 1 if "short" in WAYS else epoch)}}
    data = save(weights(epoch), meta)
    with open(file, "wb") as target:
        target.write(data[:-8])
        target.flush()
        if "slow_file" in WAYS:
            time.sleep(0.5)
            (here / "half.txt").write_text(str(time.time()))
        target.write(data[-8:])

def save_state(folder):
    log(f"saving state at {{folder}}")
    folder.mkdir(exist_ok=True)
    (folder / "train_state.json").write_text("{{}}")
    save_file(weights(1), folder / "model.safetensors")
    with zipfile.ZipFile(folder / "random_states_0.pkl", "w") as file:
        file.writestr("a", "b")

log(f"Loading settings from {{args['--config_file']}}...")
if "no_data" in WAYS:
    log("No data found. Please verify arguments (train_data_dir must be the parent of folders with images)")
    sys.exit(0)
if "child" in WAYS:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (here / "child.txt").write_text(str(child.pid))
batches = 2
print("running training / 学習開始")
print("  num train images * repeats / 学習画像の数×繰り返し回数: 6")
print("  num reg images / 正則化画像の数: 0")
print(f"  num batches per epoch / 1epochのバッチ数: {{batches}}")
print(f"  num epochs / epoch数: {{epochs}}")
print("  batch size per device / バッチサイズ: 3")
print("  gradient accumulation steps / 勾配を合計するステップ数 = 1")
print(f"  total optimization steps / 学習ステップ数: {{epochs * batches}}")
start = int(args.get("--initial_epoch", 1))
done, loss = 0, 0.0
bar(0, epochs * batches, "")
for epoch in range(start, epochs + 1):
    print(f"\\nepoch {{epoch}}/{{epochs}}\\n")
    for _ in range(batches):
        time.sleep(0.02)
        done += 1
        bar(done, epochs * batches, f", avr_loss={{loss:.3g}}" if done > 1 else "")
        loss = math.nan if "nan" in WAYS and done == 3 else 1 / done
        bar(done, epochs * batches, f", avr_loss={{loss:.3g}}")
    if "oom" in WAYS and epoch == 2:
        sys.stderr.write("\\nTraceback (most recent call last):\\n  File ...\\n")
        sys.stderr.write("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\\n")
        sys.exit(1)
    if "error" in WAYS:
        raise AssertionError("bucket_reso_steps is 32. it must be divisible by 64.")
    if "validation" in WAYS:
        sys.stderr.write("\\repoch validation steps: 100%|██| 4/4 [00:00<00:00, val_epoch_avg_loss=0.25, timestep=800]")
    if epoch < epochs:
        save_model(out / f"{{name}}-{{epoch:06d}}.safetensors", epoch)
        save_state(out / f"{{name}}-{{epoch:06d}}-state")
    if "hang" in WAYS or ("nan" in WAYS and done > 3):
        time.sleep(60)
if "no_file" not in WAYS:
    save_state(out / f"{{name}}-state")
    save_model(out / f"{{name}}.safetensors", epochs)
log("model saved.")
"""

Launch = Callable[..., SdScriptsProcess]


def checkout(tmp_path: Path, *ways: str) -> Path:
    """A folder with the script in place of sd-scripts', which goes the given ways."""
    folder = tmp_path / "sd-scripts"
    folder.mkdir(exist_ok=True)
    (folder / "train_network.py").write_text(SCRIPT.format(ways=ways), "utf-8")
    return folder


@pytest.fixture
def launch(tmp_path: Path, configuration: Callable[..., TrainingConfig]) -> Launch:
    """A launcher of a script that goes the given ways; all on one trial's folder."""
    (tmp_path / "trial").mkdir()

    def build(*ways: str, **changes: ParameterValue) -> SdScriptsProcess:
        return SdScriptsProcess(
            configuration(**changes), tmp_path / "trial", "cpu", 1, checkout(tmp_path, *ways), Path(sys.executable)
        )

    return build


def run(process: SdScriptsProcess, stop_after_epoch: int | None = None) -> list[Event]:
    events = []
    with process as trainer:
        for event in trainer.follow():
            events.append(event)
            if isinstance(event, EpochEvent) and event.epoch == stop_after_epoch:
                trainer.stop()
    return events


def kinds(events: list[Event]) -> list[str]:
    return [e.kind for e in events if not isinstance(e, StepEvent)]


def failure(events: list[Event]) -> FailedEvent:
    assert isinstance(events[-1], FailedEvent), events
    assert sum(isinstance(e, FailedEvent | FinishedEvent | StoppedEvent) for e in events) == 1
    return events[-1]


def seen(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "sd-scripts" / "seen.json").read_text())
    return found


def gone(pid: int) -> bool:
    """Ended, or at most waiting for somebody to take note of it."""
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "not within the time"
        time.sleep(0.02)


def test_a_run_tells_its_life(launch: Launch, tmp_path: Path) -> None:
    events = run(launch())
    assert kinds(events) == ["started", "epoch", "epoch", "epoch", "finished"]
    started = events[0]
    assert isinstance(started, StartedEvent)
    assert started.derived == {"steps_per_epoch": 2, "total_steps": 6, "num_images": 5}
    epochs = [e for e in events if isinstance(e, EpochEvent)]
    assert [(e.epoch, e.step) for e in epochs] == [(1, 2), (2, 4), (3, 6)]
    assert [e.loss for e in epochs] == pytest.approx([1 / 2, 1 / 4, 1 / 6], abs=1e-3)
    names = ["px-000001.safetensors", "px-000002.safetensors", "px.safetensors"]
    assert [Path(e.checkpoint).name for e in epochs] == names
    assert all(is_complete(Path(e.checkpoint)) for e in epochs)
    assert any(isinstance(e, StepEvent) for e in events)
    assert isinstance(events[-1], FinishedEvent)
    assert events[-1].step == 6
    assert events == [event for event, _ in read_events(tmp_path / "trial" / "events.jsonl")]


def test_the_log_keeps_words_and_leaves_out_the_bar(launch: Launch, tmp_path: Path) -> None:
    run(launch())
    log = (tmp_path / "trial" / "trainer.log").read_text("utf-8")
    assert "epoch数: 3" in log
    assert "model saved." in log
    assert "avr_loss" not in log


def test_it_runs_in_the_checkout_with_a_session_and_environment_of_its_own(
    launch: Launch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    run(launch())
    found = seen(tmp_path)
    assert found["cwd"] == str(tmp_path / "sd-scripts")
    assert set(found["args"]) == {"--config_file", "--dataset_config"}
    wanted = {"PYTHONUNBUFFERED": "1", "COLUMNS": "400", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    assert wanted.items() <= found["env"].items()
    assert found["env"]["CUDA_VISIBLE_DEVICES"] == ""


def test_a_validation_loss_is_passed_on(launch: Launch) -> None:
    epochs = [e for e in run(launch("validation", validation_split=0.2)) if isinstance(e, EpochEvent)]
    assert [e.validation_loss for e in epochs] == [0.25] * 3


def test_a_loss_that_is_no_number_ends_the_process_at_once(launch: Launch, tmp_path: Path) -> None:
    begun = time.monotonic()
    failed = failure(run(launch("nan")))
    assert time.monotonic() - begun < 20  # left alone, it would go on for a minute
    assert failed.outcome is Outcome.DIVERGED
    assert "the loss is nan at step 3" in failed.sentence
    assert gone(seen(tmp_path)["pid"])


def test_weights_that_are_not_finite_are_found_behind_a_finite_loss(launch: Launch) -> None:
    events = run(launch("weights_nan"))
    assert kinds(events) == ["started", "epoch", "failed"]
    assert failure(events).outcome is Outcome.DIVERGED
    assert "px-000002.safetensors" in failure(events).sentence


@pytest.mark.parametrize(
    ("way", "outcome", "words"),
    [
        ("no_data", Outcome.BAD_DATA, "found no pictures in"),
        ("no_file", Outcome.CRASHED, "left no whole"),
        ("short", Outcome.CRASHED, "is of epoch 2, not of 3"),
        ("zero", Outcome.CRASHED, "nothing was learnt"),
        ("oom", Outcome.OUT_OF_MEMORY, "lower train_batch_size"),
        ("error", Outcome.CRASHED, "must be divisible by 64"),
    ],
)
def test_what_the_exit_code_does_not_tell(launch: Launch, way: str, outcome: Outcome, words: str) -> None:
    failed = failure(run(launch(way)))
    assert failed.outcome is outcome
    assert words in failed.sentence
    assert "\n" not in failed.sentence


def test_a_killed_process_is_a_crash(launch: Launch) -> None:
    events = []
    with launch("hang") as trainer:
        for event in trainer.follow():
            events.append(event)
            if isinstance(event, EpochEvent):
                os.kill(trainer.pid, signal.SIGKILL)
    assert failure(events).outcome is Outcome.CRASHED
    assert "SIGKILL" in failure(events).sentence


def test_stop_ends_the_process_and_its_children(launch: Launch, tmp_path: Path) -> None:
    events = run(launch("hang", "child"), stop_after_epoch=1)
    assert kinds(events) == ["started", "epoch", "stopped"]
    child = int((tmp_path / "sd-scripts" / "child.txt").read_text())
    wait_until(lambda: gone(child) and gone(seen(tmp_path)["pid"]))


def test_leaving_the_block_ends_the_process(launch: Launch, tmp_path: Path) -> None:
    with launch("hang") as trainer:
        wait_until(lambda: (tmp_path / "sd-scripts" / "seen.json").exists())
        assert not gone(trainer.pid)
    assert gone(trainer.pid)


def test_a_file_counts_only_when_it_is_whole(launch: Launch, tmp_path: Path) -> None:
    events = run(launch("slow_file"))
    assert kinds(events) == ["started", "epoch", "epoch", "epoch", "finished"]
    last = [e for e in events if isinstance(e, EpochEvent)][-1]
    assert last.at > float((tmp_path / "sd-scripts" / "half.txt").read_text())


def test_stopped_and_started_again_it_goes_on_after_its_last_state(launch: Launch, tmp_path: Path) -> None:
    first = launch("hang")
    with first as trainer:
        state = tmp_path / "trial" / "checkpoints" / "px-000001-state" / "random_states_0.pkl"
        wait_until(lambda: zipfile.is_zipfile(state))
        trainer.stop()
    events = run(launch())
    arguments = seen(tmp_path)["args"]
    assert arguments["--resume"] == str(state.parent)
    assert arguments["--initial_epoch"] == "2"
    assert kinds(events) == ["epoch", "started", "epoch", "epoch", "finished"]
    assert [(e.epoch, e.step) for e in events if isinstance(e, EpochEvent)] == [(1, 2), (2, 4), (3, 6)]
    assert next(e for e in events if isinstance(e, StartedEvent)).step == 2


def test_a_torn_state_is_not_gone_on_from(launch: Launch, tmp_path: Path) -> None:
    run(launch())
    folder = tmp_path / "trial"
    (folder / "checkpoints" / "px-000002-state" / "random_states_0.pkl").write_bytes(b"PK torn")
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(line for line in lines if '"epoch":1,' in line or '"started"' in line))
    events = run(launch())
    assert seen(tmp_path)["args"]["--initial_epoch"] == "2"
    assert [e.epoch for e in events if isinstance(e, EpochEvent)] == [1, 2, 3]


def test_epochs_that_nobody_saw_are_told_when_it_goes_on(launch: Launch, tmp_path: Path) -> None:
    run(launch())
    folder = tmp_path / "trial"
    lines = (folder / "events.jsonl").read_text().splitlines(keepends=True)
    (folder / "events.jsonl").write_text("".join(line for line in lines if '"started"' in line))
    events = run(launch())
    assert seen(tmp_path)["args"]["--initial_epoch"] == "3"
    assert [(e.epoch, e.step) for e in events if isinstance(e, EpochEvent)] == [(1, 2), (2, 4), (3, 6)]


def test_what_is_done_is_not_done_again(launch: Launch, tmp_path: Path) -> None:
    run(launch())
    (tmp_path / "sd-scripts" / "seen.json").unlink()
    events = run(launch())
    assert kinds(events) == ["epoch", "epoch", "epoch", "finished"]
    assert not (tmp_path / "sd-scripts" / "seen.json").exists()


def test_a_missing_caption_is_found_before_anything_starts(
    tmp_path: Path, configuration: Callable[..., TrainingConfig], dataset: Path
) -> None:
    shutil.copytree(dataset, tmp_path / "data")
    (tmp_path / "data" / "3.txt").unlink()
    config, folder = configuration().changed(train_data_dir=tmp_path / "data"), checkout(tmp_path)
    failed = failure(run(SdScriptsProcess(config, tmp_path, "cpu", 1, folder, Path(sys.executable))))
    assert failed.outcome is Outcome.BAD_DATA
    assert "3.txt is missing" in failed.sentence
    assert not (folder / "seen.json").exists()


def test_what_an_earlier_attempt_left_running_is_ended_first(launch: Launch, tmp_path: Path) -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
    left = subprocess.Popen([*sleep, "--config_file", str(tmp_path / "trial" / "train.toml")])
    other = subprocess.Popen([*sleep, str(tmp_path / "trial" / "train.toml")])
    try:
        assert kinds(run(launch()))[-1] == "finished"
        assert gone(left.pid)
        assert other.poll() is None
    finally:
        left.kill()
        other.kill()
        other.wait()


def test_killed_together_with_its_owner_nothing_stays_behind(tmp_path: Path, dataset: Path) -> None:
    folder = checkout(tmp_path, "slow_file")  # prints all the time
    (tmp_path / "trial").mkdir()
    owner = textwrap.dedent(f"""
        import sys, time
        from pathlib import Path
        from schema.parameters import with_defaults
        from tasks.training.config import TrainingConfig
        from tasks.training.sd_scripts import SdScriptsProcess
        config = TrainingConfig(pretrained_model_name_or_path="sd", train_data_dir=Path({str(dataset)!r}),
            output_dir=Path("checkpoints"), output_name="px", parameters=with_defaults({{"max_train_epochs": 500}}))
        with SdScriptsProcess(config, Path("trial"), "cpu", 1, Path({str(folder)!r}), Path(sys.executable)):
            time.sleep(60)
    """)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen([sys.executable, "-c", owner], cwd=tmp_path, env=environment)
    try:
        wait_until((tmp_path / "checkpoints" / "px-000001.safetensors").exists, 30)
    finally:
        process.kill()
        process.wait()
    wait_until(lambda: gone(seen(tmp_path)["pid"]))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_token_length": 100}, "75, 150 or 225"),
        ({"color_aug": True}, "cache_latents = false"),
        ({"full_fp16": True}, "mixed_precision"),
        ({"lr_warmup_steps": 10}, "constant_with_warmup"),
        ({"enable_bucket": True, "bucket_reso_steps": 32}, "multiple of 64"),
        ({"enable_bucket": True, "resolution": 64}, "min_bucket_reso 256"),
    ],
)
def test_what_sd_scripts_refuses_is_refused_before_it_starts(
    launch: Launch, changes: dict[str, ParameterValue], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        launch(**changes)


def test_a_folder_without_sd_scripts_is_named(tmp_path: Path, configuration: Callable[..., TrainingConfig]) -> None:
    with pytest.raises(ConfigError, match="no train_network"):
        SdScriptsProcess(configuration(), tmp_path, "cpu", 1, tmp_path, Path(sys.executable))
    folder = checkout(tmp_path)
    with pytest.raises(ConfigError, match="nowhere is no program"):
        SdScriptsProcess(configuration(), tmp_path, "cpu", 1, folder, tmp_path / "nowhere")


def test_what_is_printed_just_before_the_end_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process was silent when it was looked at, then printed and ended before its end was asked for."""
    process = subprocess.Popen(
        [sys.executable, "-c", "input(); print('last words')"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )

    class Late:
        """Looks in vain once, while the process goes on to its end."""

        def __init__(self) -> None:
            self._real, self._first = select.poll(), True

        def register(self, *arguments: int) -> None:
            self._real.register(*arguments)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            if self._first:
                self._first = False
                assert process.stdin is not None
                process.stdin.write(b"\n")
                process.stdin.close()
                process.wait()
                return []
            return self._real.poll(timeout)

    monkeypatch.setattr(sd_scripts, "select", SimpleNamespace(poll=Late, POLLIN=select.POLLIN))
    assert "last words" in list(sd_scripts._lines(process))
