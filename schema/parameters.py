"""The taxonomy: every training parameter once, under kohya's name.

Sources of names, defaults and meanings: the argument parsers of kohya's sd-scripts 0.10. Ranges
are the span in which a search makes sense for a character LoRA, not what the trainer accepts.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from pydantic import model_validator

from schema.base import Frozen
from schema.errors import ConfigError

ParameterValue = bool | int | float | str | None
"""Value of one training parameter, as kohya's TOML knows it."""

Parameters = dict[str, ParameterValue]
"""Training parameters by kohya's name."""


class Kind(StrEnum):
    """Type of a parameter's value."""

    FLOAT = "float"
    INT = "int"
    BOOL = "bool"
    STR = "str"


_TYPES: dict[Kind, Any] = {Kind.FLOAT: float, Kind.INT: int, Kind.BOOL: bool, Kind.STR: str}


class Category(StrEnum):
    """What a parameter is about; diagnoses are sorted by it."""

    ARCHITECTURE = "architecture"
    DYNAMICS = "dynamics"
    CAPTIONS = "captions"
    DATA = "data"
    LOSS = "loss"
    RESOURCES = "resources"
    PROGRESSION = "progression"


class Parameter(Frozen):
    """One training parameter.

    `low` and `high` bound what is accepted; `search_low` and `search_high` are the default span
    of a search over it. `derived` ones are computed and kept, never set.
    """

    name: str
    kind: Kind
    category: Category
    effect: str
    default: ParameterValue = None
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()
    searchable: bool = False
    log: bool = False
    search_low: float | None = None
    search_high: float | None = None
    derived: bool = False

    @model_validator(mode="after")
    def _span(self) -> Parameter:
        if self.searchable and self.kind in (Kind.FLOAT, Kind.INT) and self.search_low is None:
            raise ValueError(f"{self.name} may be searched, so it needs search_low and search_high")
        return self

    def check(self, value: Any) -> ParameterValue:
        """The value in the parameter's own type.

        Raises:
            ConfigError: wrong type, out of range, or none of the choices.
        """
        if value is None:
            return None
        result = self.typed(value)
        if self.choices and result not in self.choices:
            raise ConfigError(f"{self.name} must be one of {', '.join(self.choices)}, but got {value!r}")
        if isinstance(result, int | float) and not self._low <= result <= self._high:
            raise ConfigError(f"{self.name} must lie in [{self._low:g}, {self._high:g}], but got {value!r}")
        return result

    @property
    def _low(self) -> float:
        return -math.inf if self.low is None else self.low

    @property
    def _high(self) -> float:
        return math.inf if self.high is None else self.high

    def typed(self, value: Any) -> ParameterValue:
        """The value in the parameter's own type, whatever its range.

        Raises:
            ConfigError: it is of another type.
        """
        wanted = _TYPES[self.kind]
        if self.kind is Kind.FLOAT and isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if self.kind is Kind.INT and isinstance(value, float) and value.is_integer():
            return int(value)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise ConfigError(f"{self.name} must be of type {self.kind}, but got {value!r}")
        result: ParameterValue = value
        return result


_F, _I, _B, _S = Kind.FLOAT, Kind.INT, Kind.BOOL, Kind.STR
_SCHEDULERS = (
    "constant", "constant_with_warmup", "linear", "cosine", "cosine_with_restarts", "polynomial",
)  # fmt: skip
_OPTIMIZERS = ("AdamW", "AdamW8bit", "Lion", "Adafactor", "Prodigy", "SGDNesterov")


def _of(category: Category, *rows: dict[str, Any]) -> list[Parameter]:
    return [Parameter(category=category, **row) for row in rows]


def _p(name: str, kind: Kind, default: ParameterValue, effect: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "kind": kind, "default": default, "effect": effect, **more}


def _search(low: float, high: float, log: bool = False) -> dict[str, Any]:
    return {"searchable": True, "search_low": low, "search_high": high, "log": log}


_ALL: list[Parameter] = [
    *_of(
        Category.ARCHITECTURE,
        _p("network_dim", _I, 4, "rank of the LoRA: capacity; too high learns photographs and noise", low=1, high=1024, **_search(4, 128, log=True)),
        _p("network_alpha", _F, 1.0, "scale of the update is alpha / dim; acts like a learning rate", low=0, high=1024, **_search(1, 128, log=True)),
        _p("conv_dim", _I, 0, "rank for 3x3 convolutions (LoCon): texture and edges; 0 is off", low=0, high=1024, **_search(0, 64)),
        _p("conv_alpha", _F, 1.0, "alpha of the convolution part", low=0, high=1024, **_search(1, 64, log=True)),
        _p("network_dropout", _F, None, "share of rank activations dropped: against memorising", low=0, high=0.9, **_search(0, 0.3)),
        _p("network_train_unet_only", _B, False, "text encoder stays as it is", searchable=True),
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
        _p("max_grad_norm", _F, 1.0, "gradient clipping; 0 is off", low=0, high=1000),
        _p("train_batch_size", _I, 1, "pictures a step", low=1, high=1024, **_search(1, 16)),
        _p("gradient_accumulation_steps", _I, 1, "steps whose gradients are summed", low=1, high=1024),
        _p("seed", _I, 0, "random seed of data order, noise and initial weights", low=0, high=2**32 - 1),
    ),
    *_of(
        Category.PROGRESSION,
        _p("max_train_epochs", _I, 10, "epochs; quality often peaks before the last", low=1, high=10000, **_search(2, 20)),
        _p("save_every_n_epochs", _I, 1, "a checkpoint each n epochs", low=1, high=10000),
        _p("num_repeats", _I, 1, "how often each picture is seen in an epoch", low=1, high=10000, **_search(1, 20)),
        _p("steps_per_epoch", _I, None, "optimizer steps in one epoch", derived=True),
        _p("total_steps", _I, None, "optimizer steps in the run", derived=True),
        _p("total_training_time", _F, None, "seconds of training", derived=True),
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
        _p("max_token_length", _I, 75, "tokens of a caption that are read", low=75, high=225),
    ),
    *_of(
        Category.DATA,
        _p("num_images", _I, None, "pictures in the data set", derived=True),
        _p("resolution", _I, None, "training size in pixels (roadmap: image_resolution); the model's own if left out", low=8, high=4096),
        _p("color_aug", _B, False, "random colour shifts: spoils exact colours"),
        _p("flip_aug", _B, False, "random mirror images", searchable=True),
        _p("enable_bucket", _B, False, "pictures of several aspect ratios"),
        _p("bucket_no_upscale", _B, False, "small pictures are not enlarged"),
        _p("bucket_reso_steps", _I, 64, "bucket sizes are multiples of this", low=8, high=1024),
        _p("min_bucket_reso", _I, 256, "smallest bucket side", low=8, high=8192),
        _p("max_bucket_reso", _I, 1024, "largest bucket side", low=8, high=8192),
    ),
    *_of(
        Category.LOSS,
        _p("noise_offset", _F, None, "offset of the noise's mean: very dark and very light pictures", low=0, high=1, **_search(0, 0.15)),
        _p("min_snr_gamma", _F, None, "evens out the loss over noise levels; 5 is usual", low=0, high=100, **_search(1, 20)),
        _p("prior_loss_weight", _F, 1.0, "weight of regularisation pictures", low=0, high=10),
    ),
    *_of(
        Category.RESOURCES,
        _p("mixed_precision", _S, "no", "arithmetic of the forward pass", choices=("no", "fp16", "bf16")),
        _p("full_fp16", _B, False, "LoRA weights and gradients in fp16"),
        _p("gradient_checkpointing", _B, False, "less memory, a third slower"),
        _p("xformers", _B, False, "attention by xformers"),
        _p("sdpa", _B, True, "attention by PyTorch's fused kernels"),
        _p("cache_latents", _B, True, "pictures are encoded once"),
        _p("save_precision", _S, "fp16", "number format of checkpoints", choices=("float", "fp16", "bf16")),
    ),
]  # fmt: skip

PARAMETERS: dict[str, Parameter] = {p.name: p for p in _ALL}
"""The taxonomy by name."""


def parameter(name: str) -> Parameter:
    """Look a parameter up.

    Raises:
        ConfigError: no such parameter; the message names the nearest ones.
    """
    if name not in PARAMETERS:
        near = difflib.get_close_matches(name, PARAMETERS, n=3)
        hint = f": did you mean {' or '.join(near)}?" if near else ": see docs/parameters.md"
        raise ConfigError(f"unknown training parameter {name}{hint}")
    return PARAMETERS[name]


def check_parameters(values: Mapping[str, Any]) -> Parameters:
    """Check a set of parameters one by one and against each other.

    Raises:
        ConfigError: unknown name, derived parameter, or bad value.
    """
    checked: Parameters = {}
    for name, value in values.items():
        spec = parameter(name)
        if spec.derived:
            raise ConfigError(f"{name} is computed from the others and cannot be set: remove it")
        checked[name] = spec.check(value)
    return checked


def with_defaults(values: Mapping[str, Any]) -> Parameters:
    """All settable parameters: the given ones checked, the others at kohya's defaults.

    Raises:
        ConfigError: as `check_parameters`.
    """
    defaults: Parameters = {p.name: p.default for p in PARAMETERS.values() if not p.derived}
    return {**defaults, **check_parameters(values)}


def parse_setting(text: str) -> tuple[str, ParameterValue]:
    """A parameter written as ``name=value``, checked and in its own type.

    Raises:
        ConfigError: no equals sign, unknown name or bad value.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals:
        raise ConfigError(f"write a setting as name=value, but got {text!r}")
    return name, parameter(name).check(parse_value(name, value))


def parse_value(name: str, text: str) -> ParameterValue:
    """A parameter's value written as text, in the parameter's own type; its range is not looked at.

    Raises:
        ConfigError: unknown name, or text of another type.
    """
    spec = parameter(name)
    if spec.kind is Kind.STR:
        return text
    try:
        return spec.typed(json.loads(text.lower()))
    except json.JSONDecodeError:
        raise ConfigError(f"{name} must be of type {spec.kind}, but got {text!r}") from None


def markdown_table() -> str:
    """The taxonomy as a page: what docs/parameters.md holds."""
    lines = [
        "# Training parameters",
        "",
        "Every parameter once, under kohya's name. *Search* is the span a campaign may search over by default.",
        "",
    ]
    for category in Category:
        lines += [f"## {category.title()}", "", "| name | type | default | search | effect |", "|---|---|---|---|---|"]
        lines += [_row(p) for p in PARAMETERS.values() if p.category is category]
        lines.append("")
    return "\n".join(lines)


def _row(p: Parameter) -> str:
    default = "computed" if p.derived else "-" if p.default is None else f"`{json.dumps(p.default)}`"
    span = "-"
    if p.searchable:
        span = ", ".join(p.choices) or "yes, no"
        if p.search_low is not None:
            span = f"{p.search_low:g} to {p.search_high:g}{', log' if p.log else ''}"
    return f"| `{p.name}` | {p.kind} | {default} | {span} | {p.effect} |"
