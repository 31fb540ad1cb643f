"""A training inside this process: what a configuration does, and what becomes of each failure."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file

from schema.runs import Outcome
from tasks.training.checkpoint import write_whole
from tasks.training.events import EpochEvent, Event, FailedEvent, FinishedEvent, StoppedEvent, WarningEvent, read_events
from tasks.training.merge import named_layers
from tasks.training.run import run, run_kohya
from tasks.training.trainer import Trainer
from tests.tasks.training.test_lycoris import by_hand

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


@pytest.mark.parametrize("optimizer", ["AdamW", "Adafactor", "Prodigy", "AdamWScheduleFree", "Lion"])
def test_two_epochs_and_two_more_after_sigterm_are_four_straight_bit_for_bit(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    settings: dict[str, Any] = {
        "max_train_epochs": 4, "optimizer_type": optimizer, "flip_aug": True, "shuffle_caption": True,
        "network_dropout": 0.1, "rank_dropout": 0.1, "module_dropout": 0.1, "noise_offset": 0.1, "min_snr_gamma": 5.0,
        "caption_dropout_rate": 0.2, "caption_tag_dropout_rate": 0.2, "progressive_rank": "2:4,4:6",
        "optimizer_args": "slice_p=1" if optimizer == "Prodigy" else None,
    }  # fmt: skip
    straight, tell = trained(trial("straight", **settings)), Trainer._emit

    def stop_after_two(self: Trainer, event: Event) -> None:
        tell(self, event)
        if isinstance(event, EpochEvent) and event.epoch == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = trial("stopped", **settings)
    monkeypatch.setattr(Trainer, "_emit", stop_after_two)
    assert run(stopped, "cpu", 1) == 0
    assert isinstance(events_of(stopped.parent)[-1], StoppedEvent)
    resumed = trained(stopped)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_sdxls_file_draws_the_same_in_plain_diffusers_and_merged_by_hand(
    trial: Trial, tiny_sdxl: Path, tmp_path: Path
) -> None:
    config = trial(learning_rate=0.05, network_dropout=None)
    place = "pretrained_model_name_or_path"
    config.write_text(re.sub(rf"{place} = .*", f'{place} = "{tiny_sdxl}"', config.read_text()))
    state = trained(config)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_sdxl, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)

    def draw() -> torch.Tensor:
        seed = torch.Generator().manual_seed(0)
        drawn: torch.Tensor = pipe("pixel art", num_inference_steps=2, generator=seed, output_type="latent").images
        return drawn

    before = draw()
    pipe.load_lora_weights(config.parent / "checkpoints", weight_name="lora.safetensors")
    after = draw()
    assert not torch.allclose(before, after, atol=1e-3)
    pipe.unload_lora_weights()
    layers = named_layers(pipe.unet, [("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)])
    for name in {key.partition(".")[0] for key in state}:
        tensors = {key.partition(".")[2]: t for key, t in state.items() if key.startswith(f"{name}.")}
        weight = layers[name].weight
        weight.data = by_hand(weight.data, tensors, float(tensors.pop("alpha")))
    assert torch.allclose(draw(), after, rtol=1e-5, atol=1e-5 * float(after.abs().max()))


KEYS = """adaptive_noise_scale base_model_version cache_latents caption_dropout_every_n_epochs caption_dropout_rate
caption_tag_dropout_rate clip_skip dataset_dirs debiased_estimation epoch face_crop_aug_range fp8_base fp8_base_unet
full_fp16 gradient_accumulation_steps gradient_checkpointing huber_c huber_scale huber_schedule ip_noise_gamma
ip_noise_gamma_random_strength learning_rate loss_type lowram lr_scheduler lr_warmup_steps max_grad_norm
max_token_length max_train_steps max_validation_steps min_snr_gamma mixed_precision multires_noise_discount
multires_noise_iterations network_alpha network_args network_dim network_dropout network_module new_sd_model_hash
noise_offset noise_offset_random_strength num_batches_per_epoch num_epochs num_reg_images num_train_images
num_validation_images optimizer output_name prior_loss_weight resize_interpolation scale_weight_norms sd_model_hash
sd_model_name sd_scripts_commit_hash seed session_id steps tag_frequency text_encoder_lr training_comment
training_finished_at training_started_at unet_lr v2 validate_every_n_epochs validate_every_n_steps validation_seed
validation_split zero_terminal_snr resolution batch_size_per_device total_batch_size bucket_info enable_bucket
min_bucket_reso max_bucket_reso bucket_no_upscale shuffle_caption keep_tokens flip_aug color_aug random_crop
reg_dataset_dirs vae_name vae_hash new_vae_hash""".split()
SPECIFICATION = (
    "architecture date implementation implementation_version prediction_type resolution sai_model_spec title".split()
)


def test_a_file_tells_all_that_kohyas_do(trial: Trial) -> None:
    config = trial()
    trained(config)
    path = config.parent / "checkpoints" / "lora.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert not [name for name in KEYS if f"ss_{name}" not in metadata]
    assert not [name for name in SPECIFICATION if f"modelspec.{name}" not in metadata]
    assert metadata["ss_clip_skip"] == metadata["ss_max_token_length"] == metadata["ss_vae_name"] == "None"
    assert metadata["ss_sd_model_hash"] == "IsADirectory"
    assert metadata["ss_optimizer"] == "torch.optim.adamw.AdamW(weight_decay=0.01)"
    assert json.loads(metadata["ss_network_args"]) == {"conv_dim": "2", "conv_alpha": "1.0"}
    tensors = path.read_bytes()
    tensors = tensors[8 + int.from_bytes(tensors[:8], "little") :]
    assert metadata["sshs_model_hash"] == hashlib.sha256(tensors).hexdigest()
    assert len(metadata["sshs_legacy_hash"]) == 8


def test_a_state_of_other_settings_is_not_gone_on_with(trial: Trial) -> None:
    trained(trial("one"))
    failed = failure(trial("one", learning_rate=5e-4), code=2)
    assert "saved under another learning_rate" in failed.sentence


def test_a_full_disk_is_an_outcome_that_names_the_file(
    trial: Trial, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = trial()
    target = config.parent / "checkpoints" / "lora-000001.safetensors"
    target.parent.mkdir(parents=True)
    monkeypatch.setattr("uuid.uuid4", lambda: uuid.UUID(int=0))  # where the file will grow
    target.with_suffix(f".{uuid.UUID(int=0).hex}.part").symlink_to("/dev/full")  # a device that is always full
    failed = failure(config)
    assert failed.outcome is Outcome.DISK_FULL
    assert str(target) in failed.sentence
    assert not target.exists()
    with pytest.raises(OSError, match="No such file"):
        write_whole(tmp_path / "nowhere" / "x", b"")


def test_latents_that_trainers_of_one_process_number_write_at_a_time_are_whole(tmp_path: Path) -> None:
    """As in two containers, each of which counts its processes from 1."""
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda _: write_whole(tmp_path / "latents", b"x" * 100_000), range(200)))
    assert (tmp_path / "latents").read_bytes() == b"x" * 100_000
    assert len(list(tmp_path.iterdir())) == 1


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
