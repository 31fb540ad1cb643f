"""The trainer as a process: what it writes, how it stops, resumes and fails."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from schema.parameters import ParameterValue
from schema.runs import Outcome
from tasks.training import launch
from tasks.training.events import (
    EpochEvent,
    Event,
    FailedEvent,
    FinishedEvent,
    StartedEvent,
    StepEvent,
    StoppedEvent,
    WarningEvent,
)
from tasks.training.launch import TrainerProcess
from tests.tasks.test_pictures import png

Trial = Callable[..., Path]


def process(config: Path) -> TrainerProcess:
    return TrainerProcess(config, config.parent, device="cpu", threads=1)


def run(config: Path, stop_after_epoch: int | None = None) -> list[Event]:
    events = []
    with process(config) as trainer:
        for event in trainer.follow():
            events.append(event)
            if isinstance(event, EpochEvent) and event.epoch == stop_after_epoch:
                trainer.stop()
    return events


def kinds(events: list[Event]) -> list[str]:
    return [e.kind for e in events if not isinstance(e, StepEvent)]


def test_a_run_tells_its_life_and_writes_kohyas_files(trial: Trial, tiny_model: Path) -> None:
    config = trial()
    events = run(config)
    assert kinds(events) == ["started", "epoch", "epoch", "finished"]
    started = events[0]
    assert isinstance(started, StartedEvent)
    assert started.derived == {"steps_per_epoch": 3, "total_steps": 6, "num_images": 5}
    names = sorted(p.name for p in (config.parent / "checkpoints").iterdir())
    assert names == ["lora-000001.safetensors", "lora.safetensors"]
    with safe_open(config.parent / "checkpoints" / "lora.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_network_dim"] == "2"
    assert metadata["ss_epoch"] == "2"
    assert metadata["ss_steps"] == "6"


def test_plain_diffusers_loads_the_file_and_draws_as_the_trained_model(trial: Trial, tiny_model: Path) -> None:
    config = trial(learning_rate=0.05, network_dropout=0.0)
    run(config)
    pipe = StableDiffusionPipeline.from_pretrained(tiny_model, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        return pipe("pixel art", num_inference_steps=2, generator=seed, output_type="latent").images

    before = draw()
    pipe.load_lora_weights(config.parent / "checkpoints", weight_name="lora.safetensors")
    after = draw()
    assert not torch.allclose(before, after, atol=1e-3)
    pipe.unload_lora_weights()
    merge(pipe, load_file(config.parent / "checkpoints" / "lora.safetensors"))
    assert torch.allclose(draw(), after, atol=1e-4)


def merge(pipe: StableDiffusionPipeline, state: dict[str, torch.Tensor]) -> None:
    """Add alpha / rank * up @ down to the base weights, by kohya's definition."""
    layers = {
        prefix + name.replace(".", "_"): layer
        for prefix, model in (("lora_unet_", pipe.unet), ("lora_te_text_model_", pipe.text_encoder))
        for name, layer in model.named_modules()
    }
    for key in [k for k in state if k.endswith(".alpha")]:
        name = key.removesuffix(".alpha")
        down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
        change = torch.einsum("or,r...->o...", up.flatten(1), down) * state[key] / len(down)
        layers[name].weight.data += change.view_as(layers[name].weight)


def test_four_epochs_straight_equal_two_and_a_resume_bit_for_bit(trial: Trial) -> None:
    straight, resumed = trial("straight", max_train_epochs=4), trial("resumed", max_train_epochs=4)
    run(straight)
    first = run(resumed, stop_after_epoch=2)
    assert kinds(first)[-1] in ("stopped", "finished")
    again = run(resumed)
    assert [e.epoch for e in again if isinstance(e, EpochEvent)] == [1, 2, 3, 4]
    expected, found = (load_file(c.parent / "checkpoints" / "lora.safetensors") for c in (straight, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_growing_network_resumes_on_either_side_of_its_growth_bit_for_bit(trial: Trial) -> None:
    grows: dict[str, ParameterValue] = {"max_train_epochs": 3, "progressive_rank": "2:4,3:6", "optimizer_type": "AdamW"}
    straight, before, after = trial("straight", **grows), trial("before", **grows), trial("after", **grows)
    run(straight)
    for config, epoch in ((before, 1), (after, 2)):
        run(config, stop_after_epoch=epoch)
        run(config)
    names = [f"lora{part}.safetensors" for part in ("-000001", "-000002", "")]
    for name, rank in zip(names, (2, 4, 6), strict=True):
        files = [load_file(c.parent / "checkpoints" / name) for c in (straight, before, after)]
        assert {len(t) for k, t in files[0].items() if k.endswith("lora_down.weight")} == {rank}
        assert {float(t) for k, t in files[0].items() if k.endswith("alpha")} <= {float(rank), rank / 2}
        assert all(torch.equal(files[0][k], other[k]) for k in files[0] for other in files[1:])
    with safe_open(straight.parent / "checkpoints" / names[1], "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"


def test_sigterm_in_the_middle_of_an_epoch_loses_no_step(trial: Trial) -> None:
    straight, stopped = trial("straight", num_repeats=20), trial("stopped", num_repeats=20)
    run(straight)
    with process(stopped) as trainer:
        for event in trainer.follow():
            if isinstance(event, StepEvent) and event.step == 1:
                trainer.stop()
            if isinstance(event, StoppedEvent):
                assert event.step < 50
    assert isinstance(run(stopped)[-1], FinishedEvent)
    expected, found = (load_file(c.parent / "checkpoints" / "lora.safetensors") for c in (straight, stopped))
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_divergence_is_an_outcome_with_a_sentence(trial: Trial) -> None:
    failed = run(trial(learning_rate=10.0, network_alpha=1024, max_grad_norm=0, lr_scheduler="constant"))[-1]
    assert isinstance(failed, FailedEvent)
    assert failed.outcome is Outcome.DIVERGED
    assert "learning_rate" in failed.sentence


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_trainer_that_is_ended_from_outside_goes_on_from_its_last_state(trial: Trial, number: signal.Signals) -> None:
    straight, killed = trial("straight", max_train_epochs=3), trial("killed", max_train_epochs=3)
    run(straight)
    events = []
    with process(killed) as trainer:
        for event in trainer.follow():
            events.append(event)
            if isinstance(event, EpochEvent) and event.epoch == 1:
                os.kill(trainer.pid, number)
    assert kinds(events)[-1] == "finished"
    assert [e.epoch for e in events if isinstance(e, EpochEvent)] == [1, 2, 3]
    expected, found = (load_file(c.parent / "checkpoints" / "lora.safetensors") for c in (straight, killed))
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_trainer_that_dies_twice_in_an_epoch_is_reported_as_crashed(trial: Trial) -> None:
    config, warnings = trial(num_repeats=500), []
    with process(config) as trainer:
        for event in trainer.follow():
            if isinstance(event, StepEvent):
                os.kill(trainer.pid, signal.SIGKILL)
            warnings += [event] if isinstance(event, WarningEvent) else []
    assert isinstance(event, FailedEvent)
    assert event.outcome is Outcome.CRASHED
    assert "SIGKILL" in event.sentence
    assert len(warnings) == 1


@pytest.mark.parametrize("broken", [b"", b"torn", None])
def test_a_state_that_cannot_be_read_costs_one_epoch(trial: Trial, broken: bytes | None) -> None:
    straight, torn = trial("straight", max_train_epochs=3), trial("torn", max_train_epochs=3)
    run(straight)
    run(torn, stop_after_epoch=2)
    state = torn.parent / "state" / "training.pt"
    state.write_bytes(state.read_bytes()[:1000] if broken is None else broken)
    events = run(torn)
    assert isinstance(events[-1], FinishedEvent)
    assert next(e.sentence for e in events if isinstance(e, WarningEvent)).startswith(str(state))
    expected, found = (load_file(c.parent / "checkpoints" / "lora.safetensors") for c in (straight, torn))
    assert all(torch.equal(expected[k], found[k]) for k in expected)


def test_a_trainer_that_hangs_is_ended_and_said_to_hang(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_STOP_GRACE", 1.0)
    config = trial(max_train_epochs=1000)
    with TrainerProcess(config, config.parent, device="cpu", threads=1, hung_after=30.0) as trainer:
        for event in trainer.follow():
            if isinstance(event, StepEvent):
                os.kill(trainer.pid, signal.SIGSTOP)
                trainer._hung_after = 1.0
    assert isinstance(event, FailedEvent)
    assert event.outcome is Outcome.HUNG
    assert "silent for 1 s" in event.sentence
    with pytest.raises(ProcessLookupError):
        os.kill(trainer.pid, 0)


def test_leaving_the_block_ends_the_trainer(trial: Trial) -> None:
    with process(trial(max_train_epochs=1000)) as trainer:
        next(trainer.follow())
        pid = trainer.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("empty", "no pictures in"), ("caption", "is missing"), ("blank", "is empty"), ("broken", "cannot be read"),
        ("huge", "a.png cannot be read"), ("pipe", "a.txt is not a regular file"),
    ],
)  # fmt: skip
def test_bad_data_is_an_outcome_that_names_the_file(trial: Trial, tmp_path: Path, fault: str, sentence: str) -> None:
    data = tmp_path / "data"
    data.mkdir()
    if fault != "empty":
        (data / "a.png").write_bytes(png(20_000, 10_000) if fault == "huge" else b"no picture")
        if fault == "pipe":
            os.mkfifo(data / "a.txt")
        elif fault != "caption":
            (data / "a.txt").write_text("" if fault == "blank" else "pixel art")
    failed = run(trial(data=data))[-1]
    assert isinstance(failed, FailedEvent)
    assert failed.outcome is Outcome.BAD_DATA
    assert sentence in failed.sentence


def test_an_optimizer_without_its_package_is_said(trial: Trial) -> None:
    failed = run(trial(optimizer_type="AdamW8bit"))[-1]
    assert isinstance(failed, FailedEvent)
    assert "bitsandbytes" in failed.sentence
