"""Build optimizers and learning-rate schedules by kohya's names."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from schema.errors import ConfigError, shown
from tasks.training.config import TrainingConfig
from tasks.training.plan import ParameterGroup

_PACKAGES = {
    "AdamW8bit": ("bitsandbytes", "bitsandbytes.optim"),
    "PagedAdamW8bit": ("bitsandbytes", "bitsandbytes.optim"),
    "Lion8bit": ("bitsandbytes", "bitsandbytes.optim"),
    "Lion": ("lion-pytorch", "lion_pytorch"),
    "Prodigy": ("prodigyopt", "prodigyopt"),
    "DAdaptAdam": ("dadaptation", "dadaptation"),
    "DAdaptLion": ("dadaptation", "dadaptation"),
    "DAdaptAdaGrad": ("dadaptation", "dadaptation"),
    "DAdaptSGD": ("dadaptation", "dadaptation"),
    "AdamWScheduleFree": ("schedulefree", "schedulefree"),
    "RAdamScheduleFree": ("schedulefree", "schedulefree"),
    "SGDScheduleFree": ("schedulefree", "schedulefree"),
}
"""Package and module of the optimizers that PyTorch does not include."""


def make_optimizer(config: TrainingConfig, groups: Iterable[ParameterGroup]) -> Optimizer:
    """Build the optimizer, with a learning rate for each group.

    Raises:
        ConfigError: the optimizer's package is not installed, or it refuses an argument.
    """
    name = config.text("optimizer_type")
    rows = [{"params": group.weights, "lr": group.learning_rate} for group in groups]
    arguments = {"weight_decay": config.number("weight_decay"), **_arguments(config)}
    try:
        return _make(name, rows, arguments)
    except (TypeError, ValueError, AssertionError) as error:
        raise ConfigError(f"optimizer_type {name} refuses its settings: {error}; see optimizer_args") from None


def _make(name: str, groups: list[dict[str, Any]], arguments: dict[str, Any]) -> Optimizer:
    if name == "AdamW":
        return torch.optim.AdamW(groups, **{"fused": True, **arguments})
    if name == "SGDNesterov":
        return torch.optim.SGD(groups, **{"momentum": 0.9, "nesterov": True, **arguments})
    if name == "Adafactor":
        from transformers.optimization import Adafactor

        # With its own defaults Adafactor ignores the learning rate and chooses one itself.
        adafactor: Optimizer = Adafactor(groups, **{"relative_step": False, "scale_parameter": False, **arguments})
        return adafactor
    package, module = _PACKAGES[name]
    # find_spec, not an import: importing may fail for other reasons, which must not read as "not installed".
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ConfigError(f"optimizer_type {name} needs the package {package}: install it, or choose AdamW")
    optimizer: Optimizer = getattr(importlib.import_module(module), name)(groups, **arguments)
    return optimizer


def _arguments(config: TrainingConfig) -> dict[str, Any]:
    """Parse optimizer_args as kohya does: name=value with Python literals.

    Raises:
        ConfigError: a part is not name=value, or its value is not a literal.
    """
    found = {}
    for part in str(config.parameters["optimizer_args"] or "").split():
        name, equals, value = part.partition("=")
        try:
            found[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            equals = ""
        if not equals:
            raise ConfigError(
                f"optimizer_args holds {shown(part)}: write name=value, as in betas=0.9,0.99 use_bias_correction=True"
            )
    return found


def make_schedule(config: TrainingConfig, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """Build the learning-rate schedule; as in kohya's trainer, a number of steps below 1 is a share of all steps.

    Raises:
        ConfigError: the schedule is constant but has a warm-up.
    """
    name, warmup = config.text("lr_scheduler"), _steps(config.number("lr_warmup_steps"), total_steps)
    if name == "constant" and warmup:
        raise ConfigError("lr_scheduler constant has no warm-up: choose constant_with_warmup or lr_warmup_steps = 0")
    special: dict[str, Any] = {
        "cosine_with_restarts": {"num_cycles": config.integer("lr_scheduler_num_cycles")},
        "polynomial": {"power": config.number("lr_scheduler_power")},
        "cosine_with_min_lr": {"min_lr_rate": config.number("lr_scheduler_min_lr_ratio")},
        "inverse_sqrt": {"timescale": config.integer("lr_scheduler_timescale") or None},
        "warmup_stable_decay": {
            "num_decay_steps": _steps(config.number("lr_decay_steps"), total_steps),
            "min_lr_ratio": config.number("lr_scheduler_min_lr_ratio"),
        },
    }
    schedule: LRScheduler = get_scheduler(name, optimizer, warmup, total_steps, special.get(name, {}))
    return schedule


def _steps(value: float, total: int) -> int:
    return int(value * total if value < 1 else value)
