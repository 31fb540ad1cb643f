"""Optimizers and learning-rate schedules under kohya's names."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterable
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from schema.errors import ConfigError
from tasks.training.config import TrainingConfig

Parameters = Iterable[torch.nn.Parameter]
_PACKAGES = {
    "AdamW8bit": ("bitsandbytes", "bitsandbytes.optim"),
    "Lion": ("lion-pytorch", "lion_pytorch"),
    "Prodigy": ("prodigyopt", "prodigyopt"),
}
"""Package and module of the optimizers that PyTorch does not bring."""


def make_optimizer(config: TrainingConfig, unet: Parameters, text_encoder: Parameters) -> Optimizer:
    """The optimizer with one group a network, each at its own learning rate.

    Raises:
        ConfigError: the optimizer needs a package that is not installed.
    """
    name = config.text("optimizer_type")
    groups: list[dict[str, Any]] = []
    for parameters, own_rate in ((list(unet), "unet_lr"), (list(text_encoder), "text_encoder_lr")):
        rate = config.parameters[own_rate]
        if parameters:
            groups.append({"params": parameters, "lr": config.number("learning_rate") if rate is None else rate})
    decay = config.number("weight_decay")
    if name == "AdamW":
        return torch.optim.AdamW(groups, weight_decay=decay, fused=True)
    if name == "SGDNesterov":
        return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=decay)
    if name == "Adafactor":
        from transformers.optimization import Adafactor

        adafactor: Optimizer = Adafactor(groups, relative_step=False, scale_parameter=False, weight_decay=decay)
        return adafactor
    return _from_package(name, groups, decay)


def _from_package(name: str, groups: list[dict[str, Any]], decay: float) -> Optimizer:
    package, module = _PACKAGES[name]
    if importlib.util.find_spec(module.partition(".")[0]) is None:
        raise ConfigError(f"optimizer_type {name} needs the package {package}: install it, or choose AdamW")
    optimizer: Optimizer = getattr(importlib.import_module(module), name)(groups, weight_decay=decay)
    return optimizer


def make_schedule(config: TrainingConfig, optimizer: Optimizer, total_steps: int) -> LRScheduler:
    """The learning-rate schedule; a warm-up below 1 is a share of all steps, as kohya's.

    Raises:
        ConfigError: a constant schedule with a warm-up.
    """
    name, warmup = config.text("lr_scheduler"), config.number("lr_warmup_steps")
    if name == "constant" and warmup:
        raise ConfigError("lr_scheduler constant has no warm-up: choose constant_with_warmup or lr_warmup_steps = 0")
    schedule: LRScheduler = get_scheduler(
        name,
        optimizer,
        num_warmup_steps=int(warmup * total_steps if warmup < 1 else warmup),
        num_training_steps=total_steps,
        num_cycles=config.integer("lr_scheduler_num_cycles"),
        power=config.number("lr_scheduler_power"),
    )
    return schedule
