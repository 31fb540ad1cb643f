"""Write our parameters as files for sd-scripts, and refuse those it does not support."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import tomlkit

from schema.errors import ConfigError
from schema.parameters import PARAMETERS
from schema.taxonomy import Category
from tasks.pickles import refuse_pickle, refuse_pickled_model
from tasks.training.config import LYCORIS_ARGS, TrainingConfig
from tasks.training.dataset import class_tokens, find_pictures

_NETWORK_ARGS = (
    "conv_dim", "conv_alpha", "rank_dropout", "module_dropout", "block_dims", "block_alphas", "conv_block_dims",
    "conv_block_alphas", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
)  # fmt: skip
_LISTS = ("base_weights", "base_weights_multiplier")
_RENAMED = {
    *_NETWORK_ARGS, *LYCORIS_ARGS, *_LISTS, "weight_decay", "optimizer_args", "max_token_length", "num_repeats",
    "train_batch_size", "alpha_mask", "caption_version", "caption_complexity",
}  # fmt: skip
"""Parameters that are not written under their own name."""

_ADAFACTOR = ("relative_step=False", "scale_parameter=False", "warmup_init=False")
"""Arguments without which Adafactor chooses its learning rate itself."""


def write_tomls(config: TrainingConfig, train: Path, dataset: Path) -> None:
    """Write our parameters as sd-scripts' config_file (`train`) and dataset_config (`dataset`).

    Raises:
        ConfigError: the base model or a LoRA file is a pickle.
    """
    p, cached = config.parameters, config.flag("cache_latents")
    plain = {name: value for name, value in p.items() if value is not None and name not in _RENAMED}
    of_data = {n: v for n, v in plain.items() if PARAMETERS[n].category in (Category.CAPTIONS, Category.DATA)}
    settings: dict[str, Any] = {n: v for n, v in plain.items() if n not in of_data} | {
        "pretrained_model_name_or_path": config.pretrained_model_name_or_path,
        "output_dir": str(config.output_dir), "output_name": config.output_name, "save_model_as": "safetensors",
        "network_args": _network_args(config),
        "optimizer_args": _optimizer_args(config),
        # sd-scripts reads a float as a share of all steps, so whole numbers must be written as integers.
        **{n: p[n] if 0 < config.number(n) < 1 else config.integer(n) for n in ("lr_warmup_steps", "lr_decay_steps")},
        # New workers each epoch do not remember earlier shuffles, so a resumed run sees the same order.
        "max_data_loader_n_workers": 1 if cached else 2, "persistent_data_loader_workers": False,
        # Only the newest state is needed to resume, and each is as large as the optimizer's.
        "save_state": True, "save_last_n_epochs_state": 1,
    }  # fmt: skip
    refuse_pickled_model(config.pretrained_model_name_or_path)
    for name in ("network_weights", "base_weights"):
        for part in config.texts(name):
            refuse_pickle(Path(part), f"{name}:")
    if p["network_weights"]:
        settings["network_weights"] = str(Path(config.text("network_weights")).absolute())
    if p["base_weights"]:
        settings["base_weights"] = [str(Path(part).absolute()) for part in config.texts("base_weights")]
    if p["base_weights_multiplier"]:
        settings["base_weights_multiplier"] = config.numbers("base_weights_multiplier")
    if config.integer("max_token_length") > 75:
        settings["max_token_length"] = p["max_token_length"]
    general = of_data | {"resolution": _resolution(config), "batch_size": p["train_batch_size"]}
    general.setdefault("validation_seed", p["seed"])
    document = {"general": general, "datasets": [{"subsets": _subsets(config)}]}
    train.parent.mkdir(parents=True, exist_ok=True)
    train.write_text(tomlkit.dumps(settings), encoding="utf-8")
    dataset.write_text(tomlkit.dumps(document), encoding="utf-8")


def _network_args(config: TrainingConfig) -> list[str]:
    p = config.parameters
    unused = set() if p["conv_dim"] or p["conv_block_dims"] else {"conv_alpha"}
    found = [f"{name}={p[name]}" for name in _NETWORK_ARGS if p[name] and name not in unused]
    if p["network_module"] == "lycoris.kohya":
        found += [f"{name}={p[name]}" for name in LYCORIS_ARGS]
        found += [] if p["conv_dim"] else ["preset=attn-mlp"]  # otherwise LyCORIS adapts 3x3 convolutions too
    return found


def _optimizer_args(config: TrainingConfig) -> list[str]:
    """Return our arguments, then the user's: of two with one name kohya takes the later."""
    own = _ADAFACTOR if config.text("optimizer_type") == "Adafactor" else ()
    users = str(config.parameters["optimizer_args"] or "").split()
    return [f"weight_decay={config.number('weight_decay')}", *own, *users]


def _subsets(config: TrainingConfig) -> list[dict[str, Any]]:
    """Return one subset for each folder that holds pictures."""
    times, mask = config.integer("num_repeats"), config.flag("alpha_mask")
    sources = [(config.train_data_dir, False, times)]
    if config.reg_data_dir is not None:
        sources.append((config.reg_data_dir, True, 1))
    return [
        {
            "image_dir": str(folder), "num_repeats": repeats * more, "is_reg": is_reg, "alpha_mask": mask,
            **({"class_tokens": tokens} if folder != source and (tokens := class_tokens(folder)) else {}),
        }
        for source, is_reg, more in sources
        for folder, repeats in dict.fromkeys((path.parent, repeats) for path, repeats in find_pictures(source))
    ]  # fmt: skip


def refuse_unsupported(config: TrainingConfig, path: Path) -> None:
    """Raise ConfigError for parameters that sd-scripts refuses or does not have; the message names `path`."""
    p, side, step = config.parameters, _resolution(config), 32 if is_sdxl(config) else 64
    bucket = config.flag("enable_bucket")
    low, high = config.integer("min_bucket_reso"), config.integer("max_bucket_reso")
    for refused, sentence in (
        (p["max_token_length"] not in (75, 150, 225), "max_token_length must be 75, 150 or 225"),
        (p["progressive_rank"], "progressive_rank is what our own trainer has: remove it"),
        (p["max_train_steps"], "give max_train_epochs instead of max_train_steps: the epochs' files are waited for"),
        ((p["color_aug"] or p["random_crop"]) and p["cache_latents"],
         "color_aug and random_crop change pictures at each step: set cache_latents = false"),
        (p["full_fp16"] and p["mixed_precision"] != "fp16", 'full_fp16 needs mixed_precision = "fp16": set it'),
        (p["full_bf16"] and p["mixed_precision"] != "bf16", 'full_bf16 needs mixed_precision = "bf16": set it'),
        (p["lr_scheduler"] == "constant" and p["lr_warmup_steps"],
         "lr_scheduler constant has no warm-up: choose constant_with_warmup or lr_warmup_steps = 0"),
        (p["adaptive_noise_scale"] is not None and p["noise_offset"] is None,
         "adaptive_noise_scale needs noise_offset: set it"),
        (p["scale_v_pred_loss_like_noise_pred"] and not p["v_parameterization"],
         "scale_v_pred_loss_like_noise_pred needs v_parameterization = true: set it"),
        (bucket and config.integer("bucket_reso_steps") % step, f"bucket_reso_steps must be a multiple of {step}"),
        (bucket and not p["bucket_no_upscale"] and not low <= side <= high,
         f"resolution {side} must lie between min_bucket_reso {low} and max_bucket_reso {high}: change one of them"),
    ):  # fmt: skip
        if refused:
            raise ConfigError(f"{path}: {sentence} (sd-scripts)")


def _resolution(config: TrainingConfig) -> int:
    return config.integer("resolution") or (1024 if is_sdxl(config) else 512)


def is_sdxl(config: TrainingConfig) -> bool:
    """Return whether the base model is SDXL; judged by its name if it is not on this machine."""
    base = Path(config.pretrained_model_name_or_path)
    if base.is_file():
        from tasks.training.models import is_sdxl_checkpoint  # imports torch, which takes seconds

        return is_sdxl_checkpoint(base)
    return (base / "text_encoder_2").is_dir() if base.is_dir() else "xl" in base.name.lower()
