"""Trainers forked from a process that has loaded everything: the same as others, only sooner."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # its stubs are a package of their own
import pytest
import torch
from safetensors.torch import load_file

from schema.runs import Outcome
from tasks.training.events import EpochEvent, Event, FailedEvent, FinishedEvent, StepEvent
from tasks.training.launch import TrainerProcess
from tasks.training.warm import Fork, WarmTrainer

Trial = Callable[..., Path]


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmTrainer]:
    trainer = WarmTrainer(tmp_path_factory.mktemp("warm") / "warm.log", threads=1)
    yield trainer
    trainer.close()


def process(config: Path, warm: WarmTrainer | None) -> TrainerProcess:
    return TrainerProcess(config, config.parent, device="cpu", threads=1, warm=warm)


def run(config: Path, warm: WarmTrainer | None) -> list[Event]:
    with process(config, warm) as trainer:
        return list(trainer.follow())


def lora(config: Path) -> dict[str, torch.Tensor]:
    return load_file(config.parent / "checkpoints" / "lora.safetensors")


def server_of(pid: int) -> psutil.Process:
    parent = psutil.Process(pid).parent()
    assert parent is not None
    assert "tasks.training.forkserver" in parent.cmdline()
    return parent


def test_one_after_another_they_train_as_cold_ones_do(warm: WarmTrainer, trial: Trial) -> None:
    configs = trial("cold"), trial("first"), trial("second")
    for config, source in zip(configs, (None, warm, warm), strict=True):
        assert isinstance(run(config, source)[-1], FinishedEvent)
    cold, first, second = (lora(config) for config in configs)
    assert all(torch.equal(cold[name], first[name]) for name in cold)
    assert all(torch.equal(cold[name], second[name]) for name in cold)


def test_one_that_is_killed_takes_no_other_along(warm: WarmTrainer, trial: Trial) -> None:
    with process(trial("killed", num_repeats=500), warm) as trainer:
        for event in trainer.follow():
            if isinstance(event, StepEvent):
                os.kill(trainer.pid, signal.SIGKILL)
    assert isinstance(event, FailedEvent)
    assert event.outcome is Outcome.CRASHED
    assert "SIGKILL" in event.sentence
    assert isinstance(run(trial("next"), warm)[-1], FinishedEvent)


def test_stopping_saves_and_resuming_goes_on_bit_for_bit(warm: WarmTrainer, trial: Trial) -> None:
    straight, paused = trial("straight", max_train_epochs=3), trial("paused", max_train_epochs=3)
    run(straight, None)
    epochs = []
    with process(paused, warm) as trainer:
        for event in trainer.follow():
            if isinstance(event, EpochEvent):
                epochs.append(event.epoch)
                trainer.stop()
                assert not psutil.pid_exists(trainer.pid)
                trainer.resume()
    assert isinstance(event, FinishedEvent)
    assert epochs == [1, 2, 3]
    expected, found = lora(straight), lora(paused)
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_a_cold_trainer_takes_over_where_the_warm_process_dies(trial: Trial, tmp_path: Path) -> None:
    mortal = WarmTrainer(tmp_path / "warm.log", threads=1)
    straight, orphaned = trial("straight", num_repeats=60), trial("orphaned", num_repeats=60)
    with process(orphaned, mortal) as trainer:
        for event in trainer.follow():
            if isinstance(event, StepEvent) and event.step == 1:
                server_of(trainer.pid).kill()
    assert isinstance(event, FinishedEvent)
    run(straight, None)
    expected, found = lora(straight), lora(orphaned)
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    mortal.close()


def test_a_wrong_configuration_is_the_trainers_own_to_tell(warm: WarmTrainer, trial: Trial) -> None:
    config = trial("wrong")
    text = config.read_text()
    config.write_text(text.replace("network_dim", "network_dimm"))
    failed = run(config, warm)[-1]
    assert isinstance(failed, FailedEvent)
    assert "network_dim" in failed.sentence


def test_nothing_outlives_the_warm_trainer(trial: Trial, tmp_path: Path) -> None:
    short = WarmTrainer(tmp_path / "warm.log", threads=1)
    with process(trial("long", max_train_epochs=1000), short) as trainer:
        next(iter(trainer.follow()))
        server = server_of(trainer.pid)
        trainer.stop()
        assert not psutil.pid_exists(trainer.pid)
    short.close()
    assert not server.is_running()


def test_one_that_has_ended_a_moment_ago_can_be_asked_to_end() -> None:
    """Its code comes later, from the process that it was forked from."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as server:
        ended = subprocess.Popen([sys.executable, "-c", ""])
        ended.wait()
        fork = Fork(ended.pid, {}, server)
        fork.terminate()
        assert fork.poll() is None
        server.kill()
