"""List every training parameter once, under kohya's name.

Names, defaults and meanings come from the argument parsers of kohya's sd-scripts 0.10. Search
ranges are where a search makes sense for a character LoRA, not all that the trainer accepts.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any


class Kind(StrEnum):
    """Name the type of a parameter's value."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"
    STR = "str"


class Category(StrEnum):
    """Name the subject of a parameter. Diagnoses and docs/parameters.md use it to group parameters."""

    ARCHITECTURE = "architecture"
    DYNAMICS = "dynamics"
    CAPTIONS = "captions"
    DATA = "data"
    LOSS = "loss"
    RESOURCES = "resources"
    PROGRESSION = "progression"


_F, _I, _B, _S = Kind.FLOAT, Kind.INT, Kind.BOOL, Kind.STR
_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial", "cosine_with_min_lr",
    "inverse_sqrt", "warmup_stable_decay",
)  # fmt: skip
_OPTIMIZERS = (
    "AdamW", "AdamW8bit", "PagedAdamW8bit", "Lion", "Lion8bit", "Adafactor", "Prodigy", "SGDNesterov", "DAdaptAdam",
    "DAdaptLion", "DAdaptAdaGrad", "DAdaptSGD", "AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree",
)  # fmt: skip


def _of(category: Category, *rows: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"category": category, **row} for row in rows]


def _p(name: str, kind: Kind, default: bool | float | str | None, effect: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "default": default, "effect": effect, **more}


def _search(low: float, high: float, log: bool = False) -> dict[str, Any]:
    return {"searchable": True, "search_low": low, "search_high": high, "log": log}


ROWS: list[dict[str, Any]] = [
    *_of(
        Category.ARCHITECTURE,
        _p("network_dim", _I, 4, "rank of the LoRA: capacity; too high learns photographs and noise", low=1, high=1024, **_search(4, 128, log=True)),
        _p("network_alpha", _F, 1.0, "scale of the update is alpha / dim; acts like a learning rate", low=0, high=1024, **_search(1, 128, log=True)),
        _p("network_module", _S, "networks.lora", "kind of network: networks.lora is LoRA and, with conv_dim, LoCon; lycoris.kohya has more, see algo", choices=("networks.lora", "lycoris.kohya")),
        _p("algo", _S, "lora", "kind of lycoris.kohya: loha multiplies two products (more rank for the size), lokr is small files", choices=("lora", "locon", "loha", "lokr"), searchable=True),
        _p("factor", _I, -1, "largest side of lokr's small matrix: higher is larger files; -1 is about the root", low=-1, high=128, **_search(2, 32, log=True)),
        _p("decompose_both", _B, False, "both of lokr's matrices are of low rank"),
        _p("full_matrix", _B, False, "none of lokr's matrices is of low rank"),
        _p("dora_wd", _B, False, "DoRA: lengths of the weights are learnt apart from directions (lycoris.kohya)", searchable=True),
        _p("wd_on_output", _B, True, "DoRA's lengths are those of rows, one for each output; else of columns"),
        _p("progressive_rank", _S, None, "the network grows while it trains: epoch:rank, comma-separated, as in 4:16,8:32; its function does not jump"),
        _p("conv_dim", _I, 0, "rank for 3x3 convolutions (LoCon): texture and edges; 0 is off", low=0, high=1024, **_search(0, 64)),
        _p("conv_alpha", _F, 1.0, "alpha of the convolution part", low=0, high=1024, **_search(1, 64, log=True)),
        _p("network_dropout", _F, None, "share of rank activations dropped: against memorising", low=0, high=0.9, **_search(0, 0.3)),
        _p("rank_dropout", _F, None, "share of a LoRA's ranks dropped for each picture", low=0, high=0.9, **_search(0, 0.3)),
        _p("module_dropout", _F, None, "chance that a layer's LoRA sits a step out", low=0, high=0.9, **_search(0, 0.3)),
        _p("scale_weight_norms", _F, None, "largest norm of a layer's change; 1 is usual: against overcooking", low=0, high=1000, **_search(0.3, 10, log=True)),
        _p("block_dims", _S, None, "rank of each UNet block, comma-separated (25 for SD1.5, 23 for SDXL); 0 leaves a block out"),
        _p("block_alphas", _S, None, "alpha of each UNet block, as block_dims; network_alpha if left out"),
        _p("conv_block_dims", _S, None, "rank of the 3x3 convolutions of each block, as block_dims"),
        _p("conv_block_alphas", _S, None, "alpha of the 3x3 convolutions of each block, as block_dims"),
        _p("down_lr_weight", _S, None, "learning-rate factor of each block on the way down, or cosine, sine, linear, reverse_linear, zeros"),
        _p("mid_lr_weight", _S, None, "learning-rate factor of the middle block"),
        _p("up_lr_weight", _S, None, "learning-rate factor of each block on the way up, as down_lr_weight"),
        _p("block_lr_zero_threshold", _F, 0.0, "blocks with a factor up to this get no LoRA", low=0, high=1),
        _p("network_weights", _S, None, "LoRA file to start from"),
        _p("dim_from_weights", _B, False, "kinds, ranks and alphas are those of network_weights"),
        _p("base_weights", _S, None, "LoRA files that are merged into the base model before training, comma-separated"),
        _p("base_weights_multiplier", _S, None, "share of each of base_weights that is merged, comma-separated; 1 if left out"),
        _p("network_train_unet_only", _B, False, "text encoder stays as it is", searchable=True),
        _p("network_train_text_encoder_only", _B, False, "UNet stays as it is"),
        _p("clip_skip", _I, None, "text encoder layers left out, counted from the last (1: none)", low=1, high=12),
    ),
    *_of(
        Category.DYNAMICS,
        _p("learning_rate", _F, 1e-4, "step size: too low learns nothing, too high collapses", low=0, high=10, **_search(1e-5, 1e-3, log=True)),
        _p("unet_lr", _F, None, "learning rate of the UNet; learning_rate if left out", low=0, high=10, **_search(1e-5, 1e-3, log=True)),
        _p("text_encoder_lr", _F, None, "learning rate of the text encoder; learning_rate if left out", low=0, high=10, **_search(1e-6, 1e-3, log=True)),
        _p("lr_scheduler", _S, "constant", "how the learning rate falls", choices=_SCHEDULERS, searchable=True),
        _p("lr_warmup_steps", _F, 0.0, "steps of rising learning rate; below 1: share of all steps", low=0, high=1e6, **_search(0, 0.2)),
        _p("lr_scheduler_num_cycles", _I, 1, "restarts of cosine_with_restarts", low=1, high=100),
        _p("lr_scheduler_power", _F, 1.0, "power of the polynomial schedule", low=0, high=10),
        _p("optimizer_type", _S, "AdamW", "rule of the parameter update", choices=_OPTIMIZERS, searchable=True),
        _p("weight_decay", _F, 0.01, "pull of the weights to zero (kohya: optimizer_args)", low=0, high=1, **_search(1e-4, 0.1, log=True)),
        _p("optimizer_args", _S, None, "further arguments of the optimizer: name=value, space-separated"),
        _p("lr_scheduler_min_lr_ratio", _F, None, "lowest learning rate of cosine_with_min_lr and warmup_stable_decay, as a share", low=0, high=1),
        _p("lr_decay_steps", _F, 0.0, "steps of falling learning rate of warmup_stable_decay; below 1: share of all steps", low=0, high=1e6),
        _p("lr_scheduler_timescale", _I, None, "time scale of inverse_sqrt; the warm-up if left out", low=1, high=1000000),
        _p("max_grad_norm", _F, 1.0, "gradient clipping; 0 is off", low=0, high=1000),
        _p("train_batch_size", _I, 1, "pictures a step", low=1, high=1024, **_search(1, 16)),
        _p("gradient_accumulation_steps", _I, 1, "steps whose gradients are summed", low=1, high=1024),
        _p("seed", _I, 0, "random seed of data order, noise and initial weights", low=0, high=2**32 - 1),
    ),
    *_of(
        Category.PROGRESSION,
        _p("max_train_epochs", _I, 10, "epochs; quality often peaks before the last", low=1, high=10000, **_search(2, 20)),
        _p("max_train_steps", _I, None, "optimizer steps after which training ends, in the middle of an epoch too; replaces max_train_epochs", low=1, high=10000000),
        _p("save_every_n_epochs", _I, 1, "a checkpoint each n epochs", low=1, high=10000),
        _p("save_every_n_steps", _I, None, "a further file each n steps, numbered by step", low=1, high=10000000),
        _p("num_repeats", _I, 1, "how often each picture is seen in an epoch", low=1, high=10000, **_search(1, 20)),
        _p("steps_per_epoch", _I, None, "optimizer steps in one epoch", derived=True),
        _p("total_steps", _I, None, "optimizer steps in the run", derived=True),
        _p("total_training_time", _F, None, "seconds of training", derived=True),
        _p("time_at_work", _F, None, "seconds of the run: start and evaluation as well, pauses not; budget.hours is made of them", derived=True),
        _p("checkpoint_size_mb", _F, None, "size of one LoRA file", derived=True),
    ),
    *_of(
        Category.CAPTIONS,
        _p("caption_version", _S, None, "label of the caption set, to compare caption rewrites"),
        _p("caption_complexity", _S, None, "label of the caption style: tags, sentence, hex codes"),
        _p("caption_extension", _S, ".txt", "ending of caption files"),
        _p("keep_tokens", _I, 0, "tags at the front that shuffling and tag dropout leave in place", low=0, high=255, **_search(0, 3)),
        _p("shuffle_caption", _B, False, "tags in random order at each step", searchable=True),
        _p("caption_dropout_rate", _F, 0.0, "share of samples trained without caption", low=0, high=1, **_search(0, 0.2)),
        _p("caption_tag_dropout_rate", _F, 0.0, "share of tags dropped", low=0, high=1, **_search(0, 0.3)),
        _p("caption_dropout_every_n_epochs", _I, 0, "every so many epochs all samples are trained without caption; 0 is off", low=0, high=10000),
        _p("caption_separator", _S, ",", "what stands between tags"),
        _p("keep_tokens_separator", _S, None, "tags before its first place stay, and those behind its second; replaces keep_tokens"),
        _p("secondary_separator", _S, None, "what stands between tags that stay together; becomes caption_separator"),
        _p("enable_wildcard", _B, False, "{a|b} draws one of them, and of several lines one is drawn"),
        _p("caption_prefix", _S, None, "put before each caption"),
        _p("caption_suffix", _S, None, "put behind each caption"),
        _p("token_warmup_min", _I, 1, "tags at the start of a token warm-up", low=0, high=255),
        _p("token_warmup_step", _F, 0.0, "steps until all tags are used; below 1: share of all steps; 0 is off", low=0, high=1e6),
        _p("max_token_length", _I, 75, "tokens of a caption that are read", low=75, high=225),
    ),
    *_of(
        Category.DATA,
        _p("num_images", _I, None, "pictures in the data set", derived=True),
        _p("resolution", _I, None, "training size in pixels (roadmap: image_resolution); the model's own if left out", low=8, high=4096),
        _p("color_aug", _B, False, "random colour shifts: spoils exact colours"),
        _p("flip_aug", _B, False, "random mirror images", searchable=True),
        _p("random_crop", _B, False, "cut at a random place instead of the middle"),
        _p("enable_bucket", _B, False, "pictures of several aspect ratios"),
        _p("bucket_no_upscale", _B, False, "small pictures are not enlarged"),
        _p("bucket_reso_steps", _I, 64, "bucket sizes are multiples of this", low=8, high=1024),
        _p("min_bucket_reso", _I, 256, "smallest bucket side", low=8, high=8192),
        _p("max_bucket_reso", _I, 1024, "largest bucket side", low=8, high=8192),
        _p("resize_interpolation", _S, "nearest", "how pictures are scaled; the nearest pixel keeps pixel art's edges", choices=("nearest", "lanczos", "bicubic", "bilinear", "area", "box")),
        _p("alpha_mask", _B, False, "transparent parts of a picture are not trained"),
        _p("validation_split", _F, 0.0, "share of pictures held back for the validation loss", low=0, high=0.9),
        _p("validation_seed", _I, None, "which pictures are held back; seed if left out", low=0, high=2**32 - 1),
    ),
    *_of(
        Category.LOSS,
        _p("noise_offset", _F, None, "offset of the noise's mean: very dark and very light pictures", low=0, high=1, **_search(0, 0.15)),
        _p("noise_offset_random_strength", _B, False, "noise_offset between 0 and its value, anew at each step"),
        _p("adaptive_noise_scale", _F, None, "adds this times the latents' mean to noise_offset", low=-1, high=1),
        _p("multires_noise_iterations", _I, None, "layers of coarser noise; 6 to 10 is usual", low=0, high=20, **_search(0, 10)),
        _p("multires_noise_discount", _F, 0.3, "weight of each coarser layer", low=0, high=1, **_search(0.1, 0.8)),
        _p("ip_noise_gamma", _F, None, "further noise on the input alone; 0.1 is usual", low=0, high=1, **_search(0, 0.2)),
        _p("ip_noise_gamma_random_strength", _B, False, "ip_noise_gamma between 0 and its value, anew at each step"),
        _p("min_snr_gamma", _F, None, "evens out the loss over noise levels; 5 is usual", low=0, high=100, **_search(1, 20)),
        _p("debiased_estimation_loss", _B, False, "weights noise levels by 1 / sqrt(SNR)", searchable=True),
        _p("loss_type", _S, "l2", "how errors count: huber forgives outliers", choices=("l2", "l1", "huber", "smooth_l1"), searchable=True),
        _p("huber_schedule", _S, "snr", "how huber_c follows the noise level", choices=("snr", "exponential", "constant")),
        _p("huber_c", _F, 0.1, "error from which huber counts linearly", low=1e-6, high=10),
        _p("huber_scale", _F, 1.0, "factor on huber_c", low=1e-6, high=100),
        _p("min_timestep", _I, None, "lowest noise level trained", low=0, high=999),
        _p("max_timestep", _I, None, "noise levels trained are below this", low=1, high=1000),
        _p("v_parameterization", _B, False, "the model predicts velocity; its own scheduler's word counts too"),
        _p("zero_terminal_snr", _B, False, "the last noise level is pure noise"),
        _p("scale_v_pred_loss_like_noise_pred", _B, False, "weights a velocity loss like one of noise"),
        _p("v_pred_like_loss", _F, None, "adds this share of a velocity loss to one of noise", low=0, high=10),
        _p("prior_loss_weight", _F, 1.0, "weight of regularisation pictures", low=0, high=10),
    ),
    *_of(
        Category.RESOURCES,
        _p("mixed_precision", _S, "no", "arithmetic of the forward pass", choices=("no", "fp16", "bf16")),
        _p("full_fp16", _B, False, "LoRA weights and gradients in fp16"),
        _p("full_bf16", _B, False, "LoRA weights and gradients in bf16"),
        _p("gradient_checkpointing", _B, False, "less memory, a third slower"),
        _p("xformers", _B, False, "attention by xformers"),
        _p("sdpa", _B, True, "attention by PyTorch's fused kernels"),
        _p("torch_compile", _B, False, "compiles the UNet's blocks: quicker steps for some seconds at the start"),
        _p("cache_latents", _B, True, "pictures are encoded once"),
        _p("save_precision", _S, "fp16", "number format of checkpoints", choices=("float", "fp16", "bf16")),
    ),
]  # fmt: skip
"""Fields of each `Parameter`, in the order in which the docs list them."""
