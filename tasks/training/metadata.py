"""Build the metadata of a LoRA file: kohya's ss_ entries and those of Stability's model specification."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tasks.training.checkpoint import write_whole
from tasks.training.config import LYCORIS_ARGS, Subset, TrainingConfig
from tasks.training.data import TrainingData
from tasks.training.dataset import Sample
from tasks.training.merge import base_weights
from tasks.training.models import BaseModel

_SAME_NAME = (
    "learning_rate", "unet_lr", "text_encoder_lr", "lr_scheduler", "lr_warmup_steps", "max_grad_norm",
    "network_dropout", "gradient_checkpointing", "gradient_accumulation_steps", "mixed_precision", "full_fp16",
    "clip_skip", "cache_latents", "seed", "noise_offset", "noise_offset_random_strength", "adaptive_noise_scale",
    "multires_noise_iterations", "multires_noise_discount", "ip_noise_gamma", "ip_noise_gamma_random_strength",
    "zero_terminal_snr", "min_snr_gamma", "loss_type", "huber_schedule", "huber_c", "huber_scale",
    "scale_weight_norms", "prior_loss_weight", "caption_dropout_rate", "caption_dropout_every_n_epochs",
    "caption_tag_dropout_rate", "shuffle_caption", "keep_tokens", "flip_aug", "enable_bucket", "bucket_no_upscale",
    "min_bucket_reso", "max_bucket_reso", "resize_interpolation", "validation_split", "validation_seed", "color_aug",
    "random_crop",
)  # fmt: skip
"""Parameters whose entry is named ss_ plus their name."""

_UNSUPPORTED = ("face_crop_aug_range", "max_validation_steps", "validate_every_n_steps", "vae_name", "vae_hash",
          "new_vae_hash")  # fmt: skip
"""Kohya's entries for features that this trainer does not have; their value is None."""

_ABOUT = ("author", "description", "license", "tags", "usage_hint", "trigger_phrase")

_NETWORK_ARGS = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "progressive_rank",
)  # fmt: skip


@dataclass(frozen=True)
class Progress:
    """Hold the progress of a training.

    Attributes:
        epoch, step: epochs and optimizer steps done.
        steps_per_epoch: optimizer steps in an epoch.
        started_at: seconds since 1970.
        rank: network_dim after all growth.
        optimizer: class of the optimizer, with its module.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    started_at: float
    rank: int
    optimizer: str


def kohya_metadata(config: TrainingConfig, done: Progress, data: TrainingData, model: BaseModel) -> dict[str, str]:
    """Return all entries of an epoch's file; like kohya's tools, it writes None and booleans as text."""
    sdxl = len(model.text_encoders) == 2
    entries = {
        **{name: config.parameters[name] for name in _SAME_NAME},
        **_run(config, done, data),
        **_pictures(config, data),
        "debiased_estimation": config.parameters["debiased_estimation_loss"],
        "optimizer": _optimizer(config, done),
        "max_token_length": None if config.integer("max_token_length") == 75 else config.parameters["max_token_length"],
        "validate_every_n_epochs": config.parameters["save_every_n_epochs"] if data.validation else None,
        **dict.fromkeys(_UNSUPPORTED),
        **_base(Path(config.pretrained_model_name_or_path), config.cache_dir),
        **_network(config, done),
        "base_model_version": "sdxl_base_v1-0" if sdxl else "sd_v1",
        "v2": False, "lowram": False, "fp8_base": False, "fp8_base_unet": False,
        "sd_scripts_commit_hash": f"pixelloop {version('pixelloop')}",
    }  # fmt: skip
    if merged := base_weights(config):
        entries["base_weights"] = json.dumps([(str(path.absolute()), share) for path, share in merged])
    if config.subsets:
        entries["datasets"] = json.dumps(_datasets(config, data))
    return {**{f"ss_{name}": str(value) for name, value in entries.items()}, **_specification(config, done, model)}


def _run(config: TrainingConfig, done: Progress, data: TrainingData) -> dict[str, Any]:
    epochs = config.integer("max_train_epochs")
    # Derived, not drawn: all epochs of a run must share it, even after a resume.
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
        "training_comment": config.about.get("training_comment"),
    }


def _pictures(config: TrainingConfig, data: TrainingData) -> dict[str, Any]:
    folders: dict[str, dict[str, int]] = {}
    for sample in data.samples:
        name = sample.path.parent.name
        folder = folders.setdefault(name, {"n_repeats": sample.repeats, "img_count": 0})
        folder["img_count"] += 1
    sizes = data.bucket_sizes
    largest = max(sizes, key=lambda size: sizes[size])
    buckets = {str(i): {"resolution": list(size), "count": many} for i, (size, many) in enumerate(sizes.items())}
    return {
        "resolution": str((config.integer("resolution"),) * 2 if config.integer("resolution") else largest),
        "dataset_dirs": json.dumps(folders),
        "reg_dataset_dirs": json.dumps({config.reg_data_dir.name: {}} if config.reg_data_dir else {}),
        "tag_frequency": json.dumps(_tags(data.samples)),
        "bucket_info": json.dumps({"buckets": buckets} if config.flag("enable_bucket") else None),
    }


def _optimizer(config: TrainingConfig, done: Progress) -> str:
    arguments = f"weight_decay={config.number('weight_decay'):g}"
    if further := config.parameters["optimizer_args"]:
        arguments += "," + ",".join(str(further).split())
    return f"{done.optimizer}({arguments})"


def _base(path: Path, cache_dir: Path | None) -> dict[str, Any]:
    """Return name and hashes of the base model: the old hash of 64 KB after the first megabyte, and SHA-256."""
    old, new = ("IsADirectory", "IsADirectory") if path.is_dir() else ("NOFILE", "NOFILE")  # as kohya writes it
    if path.is_file():
        with path.open("rb") as file:
            file.seek(0x100000)
            old = hashlib.sha256(file.read(0x10000)).hexdigest()[:8]
        new = _whole_hash(path, cache_dir, path.stat().st_size, path.stat().st_mtime_ns)
    return {"sd_model_name": path.name, "sd_model_hash": old, "new_sd_model_hash": new}


@cache
def _whole_hash(path: Path, cache_dir: Path | None, size: int, changed: int) -> str:
    """Return the SHA-256 of a file; cached on disk, because it reads gigabytes."""
    key = hashlib.sha256(f"{path.resolve()}/{size}/{changed}".encode()).hexdigest()
    kept = cache_dir / f"{key[:32]}.sha256" if cache_dir else None
    if kept is not None and kept.exists():
        return kept.read_text(encoding="ascii")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_whole(kept, found.encode())
    return found


def _datasets(config: TrainingConfig, data: TrainingData) -> list[dict[str, Any]]:
    """Return kohya's description of a dataset_config: each dataset with its subsets."""
    found = []
    for number in sorted({subset.dataset for subset in config.subsets}):
        members = [(i, subset) for i, subset in enumerate(config.subsets) if subset.dataset == number]
        samples = {i: [s for s in (*data.samples, *data.regularisation) if s.subset == i] for i, _ in members}
        own = [s for i, subset in members if not subset.is_reg for s in samples[i]]
        other = [s for i, subset in members if subset.is_reg for s in samples[i]]
        p = members[0][1].parameters
        found.append(
            {
                "is_dreambooth": True, "batch_size_per_device": p["train_batch_size"],
                "num_train_images": sum(sample.repeats for sample in own), "num_reg_images": len(other),
                "resolution": [p["resolution"], p["resolution"]], "enable_bucket": p["enable_bucket"],
                "min_bucket_reso": p["min_bucket_reso"], "max_bucket_reso": p["max_bucket_reso"],
                "resize_interpolation": p["resize_interpolation"], "tag_frequency": _tags(own),
                "subsets": [_subset(subset, len(samples[i])) for i, subset in members],
            }
        )  # fmt: skip
    return found


def _subset(subset: Subset, images: int) -> dict[str, Any]:
    return {
        "img_count": images,
        **{name: subset.parameters[name] for name in _SUBSET_ENTRIES},
        "image_dir": subset.image_dir.name,
        "class_tokens": subset.class_tokens,
        "is_reg": subset.is_reg,
    }


_SUBSET_ENTRIES = (
    "num_repeats", "color_aug", "flip_aug", "random_crop", "shuffle_caption", "keep_tokens", "keep_tokens_separator",
    "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix", "resize_interpolation",
)  # fmt: skip


def _tags(samples: Iterable[Sample]) -> dict[str, Counter[str]]:
    """Count the tags in the captions of each folder."""
    tags: dict[str, Counter[str]] = {}
    for sample in samples:
        words = (tag.strip().lower() for tag in sample.caption.splitlines()[0].split(","))
        tags.setdefault(sample.path.parent.name, Counter()).update(tag for tag in words if tag)
    return tags


def _network(config: TrainingConfig, done: Progress) -> dict[str, Any]:
    """Return kind, rank and alpha after all growth, and the arguments that are set."""
    p, first = config.parameters, config.integer("network_dim")
    # conv_alpha has a default, but means nothing without conv_dim.
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
        "implementation_version": f"pixelloop/{version('pixelloop')}",
        "title": config.about.get("metadata_title", config.output_name),
        "date": datetime.fromtimestamp(int(time.time()), UTC).isoformat(),
        "resolution": f"{side}x{side}",
        "prediction_type": "v" if velocity else "epsilon",
    }
    about = {name: config.about.get(f"metadata_{name}") for name in _ABOUT}
    spec |= {name: text for name, text in about.items() if text is not None}
    if skip := config.integer("clip_skip"):
        spec["encoder_layer"] = str(skip)
    low, high = config.parameters["min_timestep"], config.parameters["max_timestep"]
    if low is not None or high is not None:
        spec["timestep_range"] = f"{low or 0},{high or 1000}"
    return {f"modelspec.{name}": value for name, value in spec.items()}
