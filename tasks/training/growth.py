"""Progressive rank: a network that grows while it trains, and an optimizer that keeps what it knows."""

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
"""Optimizer states that are copies of the weights: Schedule-Free's base iterate, Prodigy's first weights."""

_SQUARES = {"exp_avg_sq"}
"""Running means of squared gradients: a 0 there would make the first step of a new weight a huge one."""

_MEND = "choose AdamW, Lion, Adafactor, a schedule-free one, or Prodigy with optimizer_args slice_p=1"


@dataclass(frozen=True)
class Growth:
    """At which epochs, counted from 1, networks get which rank.

    Attributes:
        first: network_dim, which the ranks stand in proportion to: a layer of half that rank grows to half.
    """

    first: int
    steps: tuple[tuple[int, int], ...] = ()

    @classmethod
    def of(cls, config: TrainingConfig) -> Growth:
        """Kept in progressive_rank as epoch:rank, comma-separated.

        Raises:
            ConfigError: no such pairs, they do not rise, or they begin before the second epoch.
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
            raise ConfigError(f"progressive_rank: the state of {kind} cannot grow with the network: {_MEND}")
        return cls(first, steps)

    def rank(self, epoch: int) -> int:
        """The rank in an epoch, of layers that begin with network_dim."""
        return max([self.first, *(rank for since, rank in self.steps if since <= epoch)])

    def grow(self, networks: Iterable[LoRANetwork], optimizer: Optimizer, rank: int) -> None:
        """Bring networks to a rank; their function and what the optimizer knows of their weights stay the same.

        Raises:
            ConfigError: the optimizer keeps its knowledge in a form that cannot grow.
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
    """Give an optimizer's state of a weight room for the entries that the weight has got."""
    # Adafactor keeps means over rows and over columns instead of the whole.
    shapes = {shape: weight.shape, shape[:-1]: weight.shape[:-1]}
    shapes[shape[:-2] + shape[-1:]] = weight.shape[:-2] + weight.shape[-1:]
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.dim() == 0 or value.numel() == 1:
            continue
        if value.shape == (shape.numel(),):  # Prodigy keeps some of its states as one row
            state[name] = _padded(name, value.view(shape), weight.shape, weight).flatten()
            continue
        if value.shape not in shapes or not value.is_floating_point():
            raise ConfigError(f"progressive_rank: the optimizer's state cannot grow with the network: {_MEND}")
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
