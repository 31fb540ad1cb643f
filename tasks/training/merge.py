"""LoRA files of any kind on a model: found by name, merged into the weights or held beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from schema.errors import ConfigError
from tasks.pickles import refuse_pickle
from tasks.training.blocks import Blocks, text_name
from tasks.training.config import TrainingConfig
from tasks.training.lycoris import from_file
from tasks.training.models import BaseModel
from tasks.training.network import Adapter, Layer


def read_lora(path: Path, parameter: str) -> dict[str, Tensor]:
    """The tensors of a LoRA file.

    Raises:
        ConfigError: it is a pickle or cannot be read; the sentence names the parameter that named it.
    """
    refuse_pickle(path, f"{parameter}:")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{parameter}: {path} cannot be read as a LoRA file: {error}") from None


def by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """A LoRA file's tensors by the layers' names, then by their own."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, part = key.partition(".")
        found.setdefault(name, {})[part] = tensor
    return found


def named_layers(unet: UNet2DConditionModel, encoders: Iterable[tuple[str, nn.Module]]) -> dict[str, Layer]:
    """Every Linear and Conv2d by its name in a LoRA file; an SDXL UNet's by kohya's name and by diffusers'.

    Args:
        encoders: text encoders with the beginnings of their layers' names.
    """
    blocks, found = Blocks(unet), dict[str, Layer]()
    for path, layer in unet.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            found[f"lora_unet_{path.replace('.', '_')}"] = layer
            found[f"lora_unet_{blocks.kohya_name(path)}"] = layer
    for prefix, encoder in encoders:
        for path, layer in encoder.named_modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                found[text_name(path, prefix)] = layer
    return found


def adapters(state: Mapping[str, Tensor], layers: Mapping[str, Layer]) -> list[Adapter]:
    """The adapters that a LoRA file holds, not yet attached.

    Args:
        layers: the model's, as of `named_layers`.

    Raises:
        ValueError: a layer that the model does not have, or that is of another size or of no known kind.
    """
    found = []
    for name, tensors in by_layer(state).items():
        if name not in layers:
            raise ValueError(f"the model has no layer {name}: it was trained for another kind of model")
        try:
            found.append(from_file(layers[name], tensors))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    return found


@torch.no_grad()
def merge_base_weights(config: TrainingConfig, model: BaseModel) -> None:
    """Kohya's base_weights: add LoRA files to the base model's own weights, each by its multiplier.

    Raises:
        ConfigError: a file cannot be read or is none for this model, or there are more multipliers than files.
    """
    files = base_weights(config)
    if not files:
        return
    layers = named_layers(model.unet, zip(model.text_prefixes, model.text_encoders, strict=True))
    for path, share in files:
        state = read_lora(path, "base_weights")
        try:
            found = adapters(state, layers)
        except ValueError as error:
            raise ConfigError(f"base_weights: {path} does not suit the base model: {error}") from None
        for adapter in found:
            adapter.merge(share)


def base_weights(config: TrainingConfig) -> list[tuple[Path, float]]:
    """Kohya's base_weights with their multipliers, 1 where there are fewer of these.

    Raises:
        ConfigError: more multipliers than files, or one that is no number.
    """
    paths, shares = config.texts("base_weights"), config.numbers("base_weights_multiplier")
    if len(shares) > len(paths):
        raise ConfigError(f"base_weights_multiplier has {len(shares)} values for {len(paths)} files: remove some")
    shares += [1.0] * (len(paths) - len(shares))
    return [(Path(path), share) for path, share in zip(paths, shares, strict=True)]
