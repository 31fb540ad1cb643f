"""What a LoRA file tells about its training: kohya's ss_ entries and those of Stability's model specification."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasks.training.config import LYCORIS_ARGS, TrainingConfig
from tasks.training.data import TrainingData
from tasks.training.models import BaseModel

_SAME_NAME = (
    "learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "max_grad_norm",
    "network_dropout", "gradient_checkpointing", "gradient_accumulation_steps", "mixed_precision", "full_fp16",
    "clip_skip", "max_token_length", "cache_latents", "seed", "noise_offset", "noise_offset_random_strength",
    "adaptive_noise_scale", "multires_noise_iterations", "multires_noise_discount", "ip_noise_gamma",
    "ip_noise_gamma_random_strength", "zero_terminal_snr", "min_snr_gamma", "loss_type", "huber_schedule", "huber_c",
    "huber_scale", "scale_weight_norms", "prior_loss_weight", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "shuffle_caption", "keep_tokens", "flip_aug",
    "enable_bucket", "bucket_no_upscale", "min_bucket_reso", "max_bucket_reso", "resize_interpolation",
    "validation_split", "validation_seed",
)  # fmt: skip
"""Parameters whose entry is ss_ and their name."""

_NETWORK_ARGS = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "progressive_rank",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """How far a training is.

    Attributes:
        started_at: seconds since 1970.
        rank: what network_dim has grown to.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    started_at: float
    rank: int


def kohya_metadata(config: TrainingConfig, done: Progress, data: TrainingData, model: BaseModel) -> dict[str, str]:
    """All entries of an epoch's file; every value is text, None and booleans too, as kohya's tools write them.

    Hashes of the base model are left out: they cost a pass over gigabytes at every start.
    """
    sdxl = len(model.text_encoders) == 2
    entries = {
        **{name: config.parameters[name] for name in _SAME_NAME},
        **_run(config, done, data),
        **_pictures(config, data),
        "debiased_estimation": config.parameters["debiased_estimation_loss"],
        "optimizer": _optimizer(config),
        **_network(config, done),
        "sd_model_name": Path(config.pretrained_model_name_or_path).name,
        "base_model_version": "sdxl_base_v1-0" if sdxl else "sd_v1",
        "v2": False,
        "lowram": False,
    }
    return {**{f"ss_{name}": str(value) for name, value in entries.items()}, **_specification(config, done, model)}


def _run(config: TrainingConfig, done: Progress, data: TrainingData) -> dict[str, Any]:
    epochs = config.integer("max_train_epochs")
    # The same for all epochs of a run, resumed or not.
    session = hashlib.sha256(f"{config.output_dir.resolve()}/{config.output_name}/{done.started_at}".encode())
    return {
        "session_id": int(session.hexdigest()[:8], 16),
        "training_started_at": done.started_at,
        "training_finished_at": time.time(),
        "output_name": config.output_name,
        "epoch": done.epoch,
        "steps": done.step,
        "num_epochs": epochs,
        "max_train_steps": epochs * done.steps_per_epoch,
        "num_batches_per_epoch": data.batches_per_epoch,
        "num_train_images": sum(sample.repeats for sample in data.samples),
        "num_reg_images": len(data.regularisation),
        "num_validation_images": len(data.validation),
        "batch_size_per_device": config.parameters["train_batch_size"],
        "total_batch_size": config.parameters["train_batch_size"],
        "training_comment": None,
    }


def _pictures(config: TrainingConfig, data: TrainingData) -> dict[str, Any]:
    folders: dict[str, dict[str, int]] = {}
    tags: dict[str, Counter[str]] = {}
    for sample in data.samples:
        name = sample.path.parent.name
        folder = folders.setdefault(name, {"n_repeats": sample.repeats, "img_count": 0})
        folder["img_count"] += 1
        words = (tag.strip().lower() for tag in sample.caption.splitlines()[0].split(","))
        tags.setdefault(name, Counter()).update(tag for tag in words if tag)
    sizes = data.bucket_sizes
    largest = max(sizes, key=lambda size: sizes[size])
    buckets = {str(i): {"resolution": list(size), "count": many} for i, (size, many) in enumerate(sizes.items())}
    return {
        "resolution": str((config.integer("resolution"),) * 2 if config.integer("resolution") else largest),
        "dataset_dirs": json.dumps(folders),
        "reg_dataset_dirs": json.dumps({config.reg_data_dir.name: {}} if config.reg_data_dir else {}),
        "tag_frequency": json.dumps(tags),
        "bucket_info": json.dumps({"buckets": buckets} if config.flag("enable_bucket") else None),
    }


def _optimizer(config: TrainingConfig) -> str:
    arguments = f"weight_decay={config.number('weight_decay'):g}"
    if further := config.parameters["optimizer_args"]:
        arguments += "," + ",".join(str(further).split())
    return f"{config.text('optimizer_type')}({arguments})"


def _network(config: TrainingConfig, done: Progress) -> dict[str, Any]:
    """Kind and size, after all growth, and the arguments that are set; conv_alpha says nothing without conv_dim."""
    p, first = config.parameters, config.integer("network_dim")
    off = (None, 0, "") if p["conv_dim"] else (None, 0, "", p["conv_alpha"])
    args = {name: str(p[name]) for name in _NETWORK_ARGS if p[name] not in off}
    if p["network_module"] == "lycoris.kohya":
        args |= {name: str(p[name]) for name in LYCORIS_ARGS}
    alpha = p["network_alpha"] if done.rank == first else config.number("network_alpha") * done.rank / first
    return {
        "network_module": p["network_module"],
        "network_dim": done.rank,
        "network_alpha": alpha,
        "network_args": json.dumps(args),
    }


def _specification(config: TrainingConfig, done: Progress, model: BaseModel) -> dict[str, str]:
    sdxl = len(model.text_encoders) == 2
    side = config.integer("resolution") or model.native_size
    velocity = config.flag("v_parameterization") or model.scheduler.config.prediction_type == "v_prediction"
    spec = {
        "sai_model_spec": "1.0.1",
        "architecture": f"{'stable-diffusion-xl-v1-base' if sdxl else 'stable-diffusion-v1'}/lora",
        "implementation": "diffusers",
        "title": config.output_name,
        "date": datetime.fromtimestamp(int(time.time()), UTC).isoformat(),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if velocity else "epsilon",
    }
    if skip := config.integer("clip_skip"):
        spec["encoder_layer"] = str(skip)
    low, high = config.parameters["min_timestep"], config.parameters["max_timestep"]
    if low is not None or high is not None:
        spec["timestep_range"] = f"{low or 0},{high or 1000}"
    return {f"modelspec.{name}": value for name, value in spec.items()}
