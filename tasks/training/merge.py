"""Read LoRA files of any kind, match their layers with a model, and merge them into its weights."""

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
    """Return the tensors of a LoRA file.

    Args:
        path: the file.
        parameter: the parameter that names the file, for the message.

    Raises:
        ConfigError: the file is a pickle or cannot be read.
    """
    refuse_pickle(path, f"{parameter}:")
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{parameter}: {path} cannot be read as a LoRA file: {error}") from None


def by_layer(state: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group a LoRA file's tensors by layer, then by the rest of their names."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name, _, part = key.partition(".")  # layer names use underscores, so the first dot ends the name
        found.setdefault(name, {})[part] = tensor
    return found


def named_layers(unet: UNet2DConditionModel, encoders: Iterable[tuple[str, nn.Module]]) -> dict[str, Layer]:
    """Return every Linear and Conv2d by its name in a LoRA file.

    The layers of an SDXL UNet appear twice, under kohya's and under diffusers' names.

    Args:
        unet: the UNet.
        encoders: prefixes of layer names, with the text encoders.
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
    """Build the adapters that a LoRA file holds, not yet attached.

    Args:
        state: tensors of the file.
        layers: layers of the model, as `named_layers` returns them.

    Raises:
        ValueError: the model lacks a layer, or a layer has another size or an unknown kind of adapter.
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
    """Merge kohya's base_weights, LoRA files with multipliers, into the base model's weights.

    Raises:
        ConfigError: a file cannot be read or does not fit the model, or there are more multipliers than files.
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
    """Return the files of kohya's base_weights with their multipliers; missing multipliers are 1.

    Raises:
        ConfigError: there are more multipliers than files, or one is not a number.
    """
    paths, shares = config.texts("base_weights"), config.numbers("base_weights_multiplier")
    if len(shares) > len(paths):
        raise ConfigError(f"base_weights_multiplier has {len(shares)} values for {len(paths)} files: remove some")
    shares += [1.0] * (len(paths) - len(shares))
    return [(Path(path), share) for path, share in zip(paths, shares, strict=True)]
