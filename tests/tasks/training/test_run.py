"""A training inside this process: what a configuration does, and what becomes of each failure."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from schema.runs import Outcome
from tasks.training.checkpoint import write_whole
from tasks.training.events import EpochEvent, Event, FailedEvent, FinishedEvent, WarningEvent, read_events
from tasks.training.run import run, run_kohya
from tasks.training.trainer import Trainer

Trial = Callable[..., Path]


def events_of(folder: Path) -> list[Event]:
    return [event for event, _ in read_events(folder / "events.jsonl")]


def trained(config: Path) -> dict[str, torch.Tensor]:
    assert run(config, "cpu", 1) == 0, events_of(config.parent)[-1]
    return load_file(config.parent / "checkpoints" / "lora.safetensors")


def failure(config: Path, code: int = 1) -> FailedEvent:
    assert run(config, "cpu", 1) == code
    event = events_of(config.parent)[-1]
    assert isinstance(event, FailedEvent)
    return event


def test_training_ends_after_so_many_steps_and_saves_each_few(trial: Trial) -> None:
    config = trial(max_train_steps=5, save_every_n_steps=2)
    trained(config)
    names = sorted(path.name for path in (config.parent / "checkpoints").iterdir())
    assert names == [
        "lora-000001.safetensors", "lora-step00000002.safetensors", "lora-step00000004.safetensors", "lora.safetensors",
    ]  # fmt: skip
    finished = events_of(config.parent)[-1]
    assert isinstance(finished, FinishedEvent)
    assert finished.step == 5


@pytest.mark.parametrize(
    "changes",
    [
        {"network_module": "lycoris.kohya", "algo": "loha", "network_dropout": None},
        {
            "network_module": "lycoris.kohya",
            "algo": "lokr",
            "factor": 2,
            "network_dropout": None,
            "module_dropout": 0.2,
        },
        {"network_module": "lycoris.kohya", "dora_wd": True},
        {"color_aug": True, "random_crop": True, "flip_aug": True, "cache_latents": False},
        {"flip_aug": True, "alpha_mask": True},
        {"full_bf16": True, "mixed_precision": "bf16"},
        {"optimizer_type": "Adafactor", "gradient_accumulation_steps": 2},
        {"network_train_text_encoder_only": True},
        {"network_train_unet_only": True, "shuffle_caption": False},
    ],
    ids=lambda changes: ",".join(changes),
)
def test_every_kind_of_training_learns_and_repeats_itself(trial: Trial, changes: dict[str, Any]) -> None:
    first, second = trained(trial("first", **changes)), trained(trial("second", **changes))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(tensor.isfinite().all() for tensor in first.values())
    starts_at_zero = ("lora_up.weight", "hada_w2_a", "lokr_w2_b", "lokr_w2")
    moved = [name for name in first if name.endswith(starts_at_zero) and first[name].any()]
    assert moved
    if changes.get("network_train_text_encoder_only"):
        assert not [name for name in first if name.startswith("lora_unet")]


def test_gradient_checkpointing_changes_no_weight(trial: Trial) -> None:
    # Without dropout, of which a UNet in training mode draws another one.
    settings: dict[str, Any] = {"network_dropout": None, "optimizer_type": "SGDNesterov"}
    plain, checkpointed = (trained(trial(str(on), **settings, gradient_checkpointing=on)) for on in (False, True))
    assert all(torch.allclose(plain[name], checkpointed[name], atol=1e-6) for name in plain)


def test_text_encoders_are_not_asked_again_by_a_later_trial(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.training.text import TextConditioner

    asked: list[str] = []
    encode = TextConditioner._encode

    def counted(self: TextConditioner, captions: list[str]) -> Any:
        asked.extend(captions)
        return encode(self, captions)

    monkeypatch.setattr(TextConditioner, "_encode", counted)
    settings: dict[str, Any] = {"network_train_unet_only": True, "shuffle_caption": False}
    first = trained(trial("first", **settings))
    assert len(asked) == len(set(asked))
    assert 5 <= len(asked) <= 6  # with or without the caption dropped
    asked.clear()
    second = trained(trial("second", **settings))
    assert not asked
    assert all(torch.equal(first[name], second[name]) for name in first)
    trained(trial("other", **settings, clip_skip=2))
    assert asked  # encoded in another way
    asked.clear()
    trained(trial("shuffled", network_train_unet_only=True))
    written = len(list((trial("x").parent.parent / "latents").rglob("*.safetensors")))
    trained(trial("again", network_train_unet_only=True, seed=9))
    assert len(list((trial("x").parent.parent / "latents").rglob("*.safetensors"))) == written


def test_a_state_of_other_settings_is_not_gone_on_with(trial: Trial) -> None:
    trained(trial("one"))
    failed = failure(trial("one", learning_rate=5e-4), code=2)
    assert "saved under another learning_rate" in failed.sentence


def test_a_full_disk_is_an_outcome_that_names_the_file(trial: Trial, tmp_path: Path) -> None:
    config = trial()
    target = config.parent / "checkpoints" / "lora-000001.safetensors"
    target.parent.mkdir(parents=True)
    target.with_suffix(f".{os.getpid()}.part").symlink_to("/dev/full")  # a device that is always full
    failed = failure(config)
    assert failed.outcome is Outcome.DISK_FULL
    assert str(target) in failed.sentence
    assert not target.exists()
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "nowhere" / "x", b"")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_want_of_memory_is_an_outcome(trial: Trial, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_predict", refuse)
    failed = failure(trial())
    assert failed.outcome is Outcome.OUT_OF_MEMORY
    assert "lower train_batch_size" in failed.sentence


def test_out_of_memory_once_trains_in_halves_and_says_so(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, failed = Trainer._predict, list[bool]()

    def once(self: Trainer, noisy: Any, captions: list[str], batch: list[int]) -> torch.Tensor:
        if not failed:
            failed.append(True)
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(self, noisy, captions, batch)

    monkeypatch.setattr(Trainer, "_predict", once)
    config = trial()
    trained(config)
    said = [event.sentence for event in events_of(config.parent) if isinstance(event, WarningEvent)]
    assert ["trained in halves" in sentence for sentence in said] == [True]


def test_a_loss_that_is_not_a_number_is_an_outcome(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = Trainer._predict
    monkeypatch.setattr(Trainer, "_predict", lambda *args: predict(*args) * float("nan"))
    failed = failure(trial())
    assert failed.outcome is Outcome.DIVERGED
    assert "the loss is nan" in failed.sentence


KOHYA = """
[model]
pretrained_model_name_or_path = "{model}"
v2 = false
[train]
output_dir = "{out}"
output_name = "px"
network_module = "networks.lora"
network_dim = 2
network_args = ["conv_dim=2", "conv_alpha=1"]
optimizer_type = "adamw"
optimizer_args = ["weight_decay=0.1", "betas=(0.9, 0.99)"]
max_train_epochs = 2
save_every_n_epochs = 1
cache_latents = true
logging_dir = "logs"
training_comment = "a test"
resolution = "16,16"
"""
SUBSETS = """
[general]
caption_extension = ".txt"
shuffle_caption = true
[[datasets]]
batch_size = 2
[[datasets.subsets]]
image_dir = "{data}"
num_repeats = 2
keep_tokens = 1
[[datasets.subsets]]
image_dir = "{reg}"
is_reg = true
class_tokens = "pixel art"
[[datasets]]
resolution = 8
[[datasets.subsets]]
image_dir = "{data}"
shuffle_caption = false
flip_aug = true
"""


def test_kohyas_files_train_as_they_are(tmp_path: Path, tiny_model: Path, dataset: Path) -> None:
    reg = tmp_path / "reg"
    reg.mkdir()
    (reg / "a.png").write_bytes((dataset / "0.png").read_bytes())
    (tmp_path / "train.toml").write_text(KOHYA.format(model=tiny_model, out=tmp_path / "out"))
    (tmp_path / "data.toml").write_text(SUBSETS.format(data=dataset, reg=reg))
    command = ["--config_file", str(tmp_path / "train"), "--dataset_config", str(tmp_path / "data.toml")]
    assert run_kohya([*command, "--learning_rate", "1e-3"], "cpu", 1) == 0
    events = events_of(tmp_path / "out" / "px-training")
    # 5 pictures twice and as many of regularisation in pairs, then 5 one by one.
    assert [event.step for event in events if isinstance(event, EpochEvent)] == [15, 30]
    assert [event.sentence for event in events if isinstance(event, WarningEvent)] == [
        "logging_dir has no effect: events.jsonl tells each step and epoch"
    ]
    with safe_open(tmp_path / "out" / "px.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["ss_training_comment"] == "a test"
    assert metadata["ss_learning_rate"] == "0.001"
    assert run_kohya([*command, "--learning_rat", "1e-3"], "cpu", 1) == 2
