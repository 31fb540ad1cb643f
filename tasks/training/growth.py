"""Raise the rank of a network while it trains, and keep the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from schema.errors import ConfigError, shown
from tasks.training.config import TrainingConfig
from tasks.training.network import LoRANetwork

_OWN_VALUES = {"z", "p0"}
"""Optimizer states that are copies of weights: Schedule-Free's base iterate, Prodigy's initial weights."""

_SQUARES = {"exp_avg_sq"}
"""Running means of squared gradients. A 0 there would make the first step of a new weight huge."""

_REMEDY = "choose AdamW, Lion, Adafactor, a schedule-free one, or Prodigy with optimizer_args slice_p=1"


@dataclass(frozen=True)
class Growth:
    """Describe at which epochs, counted from 1, networks grow to which rank.

    Attributes:
        first: network_dim. Ranks are relative to it: a layer that starts with half of it grows to half of each rank.
        steps: pairs of epoch and rank, both rising.
    """

    first: int
    steps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, config: TrainingConfig) -> Growth:
        """Parse progressive_rank: epoch:rank, comma-separated.

        Raises:
            ConfigError: the text is not such a list, the pairs do not rise, the first epoch is below 2, or the
                optimizer's state cannot grow.
        """
        text, first = str(config.parameters["progressive_rank"] or ""), config.integer("network_dim")
        try:
            pairs = [tuple(int(number) for number in part.split(":")) for part in text.split(",") if text]
            steps = tuple((epoch, rank) for epoch, rank in pairs)
        except ValueError:
            raise ConfigError(
                f"progressive_rank = {shown(text)} is no list of epoch:rank: write it as in 4:16,8:32"
            ) from None
        for (epoch, rank), (later, higher) in zip(((1, first), *steps), steps, strict=False):
            if later <= epoch or higher <= rank:
                raise ConfigError(
                    f"progressive_rank = {shown(text)}: epochs must rise from 2 on and "
                    f"ranks from network_dim = {first} on"
                )
        kind, args = config.text("optimizer_type"), str(config.parameters["optimizer_args"] or "").split()
        if steps and (kind.endswith("8bit") or (kind == "Prodigy" and "slice_p=1" not in args)):
            raise ConfigError(f"progressive_rank: the state of {kind} cannot grow with the network: {_REMEDY}")
        return cls(first, steps)

    def rank(self, epoch: int) -> int:
        """Return the rank, in an epoch, of layers that start with network_dim."""
        return max([self.first, *(rank for since, rank in self.steps if since <= epoch)])

    def grow(self, networks: Iterable[LoRANetwork], optimizer: Optimizer, rank: int) -> None:
        """Grow networks to a rank without changing their output or the optimizer's state of existing weights.

        Raises:
            ConfigError: the optimizer's state has a shape that cannot grow.
        """
        weights = [weight for group in optimizer.param_groups for weight in group["params"]]
        before = [weight.shape for weight in weights]
        for network in networks:
            network.grow(rank / self.first)
        for weight, shape in zip(weights, before, strict=True):
            if weight.shape != shape and weight in optimizer.state:
                weight.grad = None
                _enlarge(optimizer.state[weight], weight, shape)


def _enlarge(state: dict[str, object], weight: nn.Parameter, shape: torch.Size) -> None:
    """Enlarge an optimizer's state of a weight that has grown from `shape`."""
    # Adafactor stores means over rows and over columns instead of a full matrix.
    shapes = {shape: weight.shape, shape[:-1]: weight.shape[:-1]}
    shapes[shape[:-2] + shape[-1:]] = weight.shape[:-2] + weight.shape[-1:]
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or value.numel() == 1:
            continue
        if value.shape == (shape.numel(),):  # Prodigy stores some states flattened
            state[name] = _padded(name, value.view(shape), weight.shape, weight).flatten()
            continue
        if value.shape not in shapes or not value.is_floating_point():
            raise ConfigError(f"progressive_rank: the optimizer's state cannot grow with the network: {_REMEDY}")
        state[name] = _padded(name, value, shapes[value.shape], weight)


def _padded(name: str, value: Tensor, shape: torch.Size, weight: nn.Parameter) -> Tensor:
    if name in _OWN_VALUES:
        new = weight.detach().to(value.dtype).clone()
    elif name in _SQUARES or value.dim() < weight.dim():
        new = value.mean().expand(shape).clone()
    else:
        new = value.new_zeros(shape)
    new[tuple(slice(0, size) for size in value.shape)] = value
    return new
