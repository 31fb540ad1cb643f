"""Which layers a configuration adapts, at which rank, alpha and learning rate."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from schema.errors import ConfigError
from tasks.training.blocks import Blocks, per_block, text_name
from tasks.training.config import TrainingConfig
from tasks.training.models import BaseModel
from tasks.training.network import (
    TEXT_BLOCKS,
    UNET_BLOCKS,
    UNET_CONV_BLOCKS,
    Dropouts,
    LoRANetwork,
    Size,
    SizeOf,
    adapt,
)


@dataclass(frozen=True)
class ParameterGroup:
    """Weights that share a learning rate."""

    weights: list[nn.Parameter]
    learning_rate: float


class NetworkPlan:
    """The LoRA that a configuration asks for, on one base model."""

    def __init__(self, config: TrainingConfig, model: BaseModel) -> None:
        """Read the start weights and the lists per block.

        Raises:
            ConfigError: a list does not suit the model, or the file of network_weights cannot be read.
        """
        self._config, self._model = config, model
        self._blocks = Blocks(model.unet)
        self._start = _read_weights(config)
        self._sizes = _sizes(self._start) if config.flag("dim_from_weights") else None
        # Rank and alpha by block, of Linear layers and of convolutions.
        self._dims, self._alphas = self._list("block_dims"), self._list("block_alphas")
        self._conv_dims, self._conv_alphas = self._list("conv_block_dims"), self._list("conv_block_alphas")
        self._factors = self._rate_factors()
        self._block_of: dict[str, int] = {}

    def build(self) -> list[LoRANetwork]:
        """Adapt the model in place: UNet first, then its text encoders unless they stay as they are.

        Raises:
            ConfigError: nothing is left to train, or the start weights do not fit.
        """
        c = self._config
        dropouts = Dropouts(c.number("network_dropout"), c.number("rank_dropout"), c.number("module_dropout"))
        convolutions = c.integer("conv_dim") or self._conv_dims or self._sizes
        classes = UNET_BLOCKS | (UNET_CONV_BLOCKS if convolutions else set())
        networks = [adapt(self._model.unet, classes, self._unet_size, dropouts)]
        if not c.flag("network_train_unet_only"):
            for prefix, encoder in zip(self._model.text_prefixes, self._model.text_encoders, strict=True):
                networks.append(adapt(encoder, TEXT_BLOCKS, self._text_size(prefix), dropouts))
        if not sum(len(network) for network in networks):
            raise ConfigError("no layer is left to train: give some block a rank and a learning rate above 0")
        if self._start and not sum(network.load_kohya_state(self._start) for network in networks):
            raise ConfigError(
                f"network_weights: {c.text('network_weights')} has no layer of this base model: check both"
            )
        return networks

    def groups(self, networks: list[LoRANetwork]) -> Iterator[ParameterGroup]:
        """Weights by learning rate: the UNet's by block where factors are given, then the text encoders'."""
        by_factor: dict[float, list[nn.Parameter]] = {}
        for name, layer in networks[0].named_layers():
            factor = self._factors[self._block_of[name]] if self._factors else 1.0
            by_factor.setdefault(factor, []).extend(layer.parameters())
        for factor, weights in by_factor.items():
            yield ParameterGroup(weights, factor * self._rate("unet_lr"))
        text = [weight for network in networks[1:] for weight in network.parameters()]
        if text:
            yield ParameterGroup(text, self._rate("text_encoder_lr"))

    def _rate(self, name: str) -> float:
        own = self._config.parameters[name]
        return self._config.number("learning_rate") if own is None else float(own)

    def _unet_size(self, path: str, large: bool) -> tuple[str, Size] | None:
        c, block = self._config, self._blocks.number(path)
        name = f"lora_unet_{self._blocks.kohya_name(path)}"
        self._block_of[name] = block
        if self._factors and self._factors[block] <= c.number("block_lr_zero_threshold"):
            return None
        if self._sizes is not None:
            return (name, self._sizes[name]) if name in self._sizes else None
        if large:
            rank, alpha = _at(self._conv_dims, block, c.number("conv_dim")), c.number("conv_alpha")
            size = Size(int(rank), _at(self._conv_alphas, block, alpha))
        else:
            rank, alpha = _at(self._dims, block, c.number("network_dim")), c.number("network_alpha")
            size = Size(int(rank), _at(self._alphas, block, alpha))
        return (name, size) if size.rank else None

    def _text_size(self, prefix: str) -> SizeOf:
        c = self._config
        size = Size(c.integer("network_dim"), c.number("network_alpha"))

        def size_of(path: str, large: bool) -> tuple[str, Size] | None:
            name = text_name(path, prefix)
            if self._sizes is not None:
                return (name, self._sizes[name]) if name in self._sizes else None
            return name, size

        return size_of

    def _list(self, name: str) -> list[float] | None:
        text = self._config.parameters[name]
        return per_block(str(text), len(self._blocks), name) if text else None

    def _rate_factors(self) -> list[float] | None:
        """Learning-rate factors of all blocks; those that hold no layer have 1."""
        names, p = ("down_lr_weight", "mid_lr_weight", "up_lr_weight"), self._config.parameters
        if not any(p[name] for name in names):
            return None
        parts = [
            per_block(str(p[name]), many, name) if p[name] else [1.0] * many
            for name, many in zip(names, self._blocks.parts, strict=True)
        ]
        edge = [1.0] if self._blocks.sdxl else []
        return [*edge, *(factor for part in parts for factor in part), *edge]


def _at(values: list[float] | None, block: int, otherwise: float) -> float:
    return values[block] if values else otherwise


def _read_weights(config: TrainingConfig) -> dict[str, Tensor]:
    name = config.parameters["network_weights"]
    if name is None:
        if config.flag("dim_from_weights"):
            raise ConfigError("dim_from_weights needs network_weights: name a LoRA file, or set it to false")
        return {}
    try:
        return load_file(Path(str(name)))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"network_weights: {name} cannot be read as a LoRA file: {error}") from None


def _sizes(state: Mapping[str, Tensor]) -> dict[str, Size]:
    """Rank and alpha of each layer of a LoRA file."""
    suffix = ".lora_down.weight"
    found = {}
    for key, down in state.items():
        if key.endswith(suffix):
            name = key.removesuffix(suffix)
            alpha = state.get(f"{name}.alpha", torch.tensor(0.0))
            found[name] = Size(len(down), float(alpha))
    return found
