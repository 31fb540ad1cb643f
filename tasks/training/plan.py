"""Decide which layers a configuration adapts, and at which rank, alpha and learning rate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from schema.errors import ConfigError
from schema.parameters import PARAMETERS
from tasks.training.blocks import Blocks, per_block, text_name
from tasks.training.config import LYCORIS_ARGS, TrainingConfig
from tasks.training.lycoris import from_file, make_adapter
from tasks.training.merge import by_layer, merge_base_weights, read_lora
from tasks.training.models import BaseModel
from tasks.training.network import (
    TEXT_BLOCKS,
    UNET_BLOCKS,
    UNET_CONV_BLOCKS,
    Adapter,
    Dropouts,
    Layer,
    LoRANetwork,
    Make,
    Size,
    adapt,
)

_LYCORIS = "lycoris.kohya"


@dataclass(frozen=True)
class ParameterGroup:
    """Hold weights that share a learning rate."""

    weights: list[nn.Parameter]
    learning_rate: float


class NetworkPlan:
    """Build the LoRA that a configuration describes on one base model."""

    def __init__(self, config: TrainingConfig, model: BaseModel) -> None:
        """Read the start weights and the per-block lists.

        Raises:
            ConfigError: a list does not have one value per block, or network_weights cannot be read.
        """
        self._config, self._model = config, model
        self._blocks = Blocks(model.unet)
        self._start = _read_weights(config)
        self._layers = by_layer(self._start) if config.flag("dim_from_weights") else None
        # Rank and alpha by block, of Linear layers and of convolutions.
        self._dims, self._alphas = self._list("block_dims"), self._list("block_alphas")
        self._conv_dims, self._conv_alphas = self._list("conv_block_dims"), self._list("conv_block_alphas")
        self._factors = self._rate_factors()
        self._block_of: dict[str, int] = {}
        self._make = _maker(config)
        self._dropouts = _dropouts(config)

    def build(self) -> list[LoRANetwork]:
        """Merge base_weights, adapt the model in place, and return the networks.

        Returns:
            The UNet's network, then one for each text encoder that is trained.

        Raises:
            ConfigError: nothing is left to train, or the start weights do not fit.
        """
        c = self._config
        merge_base_weights(c, self._model)
        convolutions = c.integer("conv_dim") or self._conv_dims or self._layers
        classes = UNET_BLOCKS | (UNET_CONV_BLOCKS if convolutions else set())
        if c.flag("network_train_text_encoder_only"):
            classes = set()
        networks = [adapt(self._model.unet, classes, self._unet_layer)]
        if not c.flag("network_train_unet_only"):
            for prefix, encoder in zip(self._model.text_prefixes, self._model.text_encoders, strict=True):
                networks.append(adapt(encoder, TEXT_BLOCKS, self._text_layer(prefix)))
        if not sum(len(network) for network in networks):
            raise ConfigError("no layer is left to train: give some block a rank and a learning rate above 0")
        if self._start and not sum(network.load_kohya_state(self._start) for network in networks):
            raise ConfigError(
                f"network_weights: {c.text('network_weights')} has no layer of this base model: check both"
            )
        return networks

    def groups(self, networks: list[LoRANetwork]) -> Iterator[ParameterGroup]:
        """Yield weights by learning rate: the UNet's, split by block factor, then the text encoders'."""
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

    def _unet_layer(self, path: str, layer: Layer) -> tuple[str, Adapter] | None:
        c, block = self._config, self._blocks.number(path)
        name = f"lora_unet_{self._blocks.kohya_name(path)}"
        self._block_of[name] = block
        if self._factors and self._factors[block] <= c.number("block_lr_zero_threshold"):
            return None
        if self._layers is not None:
            return self._from_file(name, layer)
        if layer.weight.dim() == 4 and layer.weight.shape[2:] != (1, 1):
            rank, alpha = _at(self._conv_dims, block, c.number("conv_dim")), c.number("conv_alpha")
            size = Size(int(rank), _at(self._conv_alphas, block, alpha))
        else:
            rank, alpha = _at(self._dims, block, c.number("network_dim")), c.number("network_alpha")
            size = Size(int(rank), _at(self._alphas, block, alpha))
        return (name, self._make(layer, size)) if size.rank else None

    def _text_layer(self, prefix: str) -> Make:
        size = Size(self._config.integer("network_dim"), self._config.number("network_alpha"))

        def make(path: str, layer: Layer) -> tuple[str, Adapter] | None:
            name = text_name(path, prefix)
            return (name, self._make(layer, size)) if self._layers is None else self._from_file(name, layer)

        return make

    def _from_file(self, name: str, layer: Layer) -> tuple[str, Adapter] | None:
        """Return an adapter with the kind, rank and alpha of the start weights; None if they lack this layer."""
        if self._layers is None or name not in self._layers:
            return None
        try:
            return name, from_file(layer, self._layers[name], self._dropouts)
        except ValueError as error:
            raise ConfigError(f"network_weights: {name}: {error}") from None

    def _list(self, name: str) -> list[float] | None:
        text = self._config.parameters[name]
        return per_block(str(text), len(self._blocks), name) if text else None

    def _rate_factors(self) -> list[float] | None:
        """Return the learning-rate factors of all blocks; None if no factor is set."""
        names, p = ("down_lr_weight", "mid_lr_weight", "up_lr_weight"), self._config.parameters
        if not any(p[name] for name in names):
            return None
        parts = [
            per_block(str(p[name]), many, name) if p[name] else [1.0] * many
            for name, many in zip(names, self._blocks.parts, strict=True)
        ]
        # SDXL's numbering includes the first and last block, which hold no adapted layer.
        edge = [1.0] if self._blocks.sdxl else []
        return [*edge, *(factor for part in parts for factor in part), *edge]


def _at(values: list[float] | None, block: int, otherwise: float) -> float:
    return values[block] if values else otherwise


def _read_weights(config: TrainingConfig) -> dict[str, Tensor]:
    name = config.parameters["network_weights"]
    if name is not None:
        return read_lora(Path(str(name)), "network_weights")
    if config.flag("dim_from_weights"):
        raise ConfigError("dim_from_weights needs network_weights: name a LoRA file, or set it to false")
    return {}


def _dropouts(config: TrainingConfig) -> Dropouts:
    return Dropouts(*(config.number(name) for name in ("network_dropout", "rank_dropout", "module_dropout")))


def _maker(config: TrainingConfig) -> Callable[[Layer, Size], Adapter]:
    """Return a function that builds adapters of the configured kind.

    Raises:
        ConfigError: LyCORIS parameters are set without its module, or the kind has no such dropout.
    """
    dropouts, algo = _dropouts(config), config.text("algo")
    if config.text("network_module") != _LYCORIS:
        for name in LYCORIS_ARGS:
            if config.parameters[name] != PARAMETERS[name].default:
                raise ConfigError(f'{name} needs network_module = "{_LYCORIS}": set it, or remove {name}')
    if dropouts.network_dropout and algo in ("loha", "lokr"):
        raise ConfigError(f"{algo} has no network_dropout: use rank_dropout or module_dropout instead")
    options = {name: int(config.number(name)) for name in LYCORIS_ARGS if name != "algo"}
    return lambda layer, size: make_adapter(algo, layer, size, dropouts, **options)
