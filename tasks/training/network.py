"""LoRA as kohya's networks.lora makes it: which layers, which formula, which names.

y = W x + up(down(x)) * alpha / rank. Every Linear and 1x1 convolution inside a Transformer2DModel and inside
CLIP's attention and MLP is adapted; with conv_dim also the 3x3 convolutions of residual blocks and of
down- and upsamplers (LoCon), whose 1x1 layers and time projection then get network_dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from schema.errors import ConfigError

UNET_BLOCKS = {"Transformer2DModel"}
UNET_CONV_BLOCKS = {"ResnetBlock2D", "Downsample2D", "Upsample2D"}
TEXT_BLOCKS = {"CLIPAttention", "CLIPMLP"}

SizeOf = Callable[[str, bool], "tuple[str, Size] | None"]
"""Kohya's name and the size of a layer by its path and whether it is a convolution of 3x3 or more; None leaves it."""


@dataclass(frozen=True)
class Dropouts:
    """Chances of leaving something out while training: activations, ranks of a sample, the whole layer."""

    network_dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


@dataclass(frozen=True)
class Size:
    """Rank and alpha of one layer; alpha 0 stands for the rank."""

    rank: int
    alpha: float


class LoRA(nn.Module):
    """A low-rank change to one Linear or Conv2d, added to its output."""

    def __init__(self, layer: nn.Linear | nn.Conv2d, size: Size, dropouts: Dropouts) -> None:
        super().__init__()
        rank = size.rank
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            self.lora_down: nn.Module = nn.Conv2d(layer.in_channels, rank, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
            self.lora_up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)  # the network starts as the base model
        self.rank, self.alpha, self.dropouts = rank, size.alpha or float(rank), dropouts
        self._forward = layer.forward
        layer.forward = self._adapted  # type: ignore[method-assign,assignment]

    @property
    def scale(self) -> float:
        """Factor on the change."""
        return self.alpha / self.rank

    @torch.no_grad()
    def limit_norm(self, largest: float) -> None:
        """Shrink both factors alike where the change's Frobenius norm is above `largest`."""
        up_weight: Tensor = self.lora_up.weight  # type: ignore[assignment]
        down_weight: Tensor = self.lora_down.weight  # type: ignore[assignment]
        up, down = up_weight.flatten(1), down_weight.flatten(1)
        # |U D|^2 is the trace of (U'U)(DD'): r x r numbers instead of the whole layer.
        square = ((up.T @ up) * (down @ down.T)).sum().clamp_min(0)
        norm = (square.sqrt() * self.scale).clamp_min(largest / 2)
        factor = (largest / norm).clamp_max(1).sqrt()
        up_weight.mul_(factor)
        down_weight.mul_(factor)

    def _adapted(self, x: Tensor) -> Tensor:
        out: Tensor = self._forward(x)
        drop = self.dropouts
        if self.training and drop.module_dropout and torch.rand(()) < drop.module_dropout:
            return out
        change, scale = self.lora_down(x), self.scale
        if self.training and drop.network_dropout:
            change = F.dropout(change, drop.network_dropout)
        if self.training and drop.rank_dropout:
            kept = torch.rand(len(change), self.rank, device=change.device) > drop.rank_dropout
            at = (slice(None), slice(None), None, None) if change.dim() == 4 else (slice(None), None, slice(None))
            change = change * (kept[at] if change.dim() > 2 else kept)
            scale = scale / (1 - drop.rank_dropout)
        added: Tensor = self.lora_up(change) * scale
        return out + added


class LoRANetwork(nn.Module):
    """All adapted layers of a model, by kohya's names."""

    def __init__(self, layers: Mapping[str, LoRA]) -> None:
        super().__init__()
        self._names = list(layers)
        self._layers = nn.ModuleList(layers.values())

    def __len__(self) -> int:
        return len(self._names)

    def named_layers(self) -> Iterator[tuple[str, LoRA]]:
        """Kohya's name and layer, in the model's order."""
        for name, layer in zip(self._names, self._layers, strict=True):
            assert isinstance(layer, LoRA)
            yield name, layer

    def limit_norms(self, largest: float) -> None:
        """Kohya's scale_weight_norms."""
        for _, layer in self.named_layers():
            layer.limit_norm(largest)

    def kohya_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors as a LoRA file holds them."""
        state: dict[str, Tensor] = {}
        for name, layer in self.named_layers():
            for part in ("lora_down", "lora_up"):
                weight: Tensor = getattr(layer, part).weight
                state[f"{name}.{part}.weight"] = weight.detach().to("cpu", dtype).contiguous()
            state[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
        return state

    @torch.no_grad()
    def load_kohya_state(self, state: Mapping[str, Tensor]) -> int:
        """Take over the layers that a LoRA file has; how many those were.

        Raises:
            ConfigError: a layer has another rank.
        """
        found = 0
        for name, layer in self.named_layers():
            if f"{name}.lora_down.weight" not in state:
                continue
            found += 1
            for part in ("lora_down", "lora_up"):
                mine, theirs = getattr(layer, part).weight, state[f"{name}.{part}.weight"]
                if theirs.numel() != mine.numel():
                    raise ConfigError(
                        f"network_weights: {name} has the shape {tuple(theirs.shape)} there, {tuple(mine.shape)} here: "
                        "take the file's ranks, or set dim_from_weights = true"
                    )
                mine.copy_(theirs.reshape(mine.shape))
        return found


def adapt(model: nn.Module, classes: set[str], size_of: SizeOf, dropouts: Dropouts) -> LoRANetwork:
    """Adapt a model in place.

    Args:
        classes: names of the classes in which layers are adapted.
        size_of: which layers, under which names and how large.
    """
    layers = {}
    for path, layer in _layers(model, classes):
        large = isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)
        if found := size_of(path, large):
            name, size = found
            layers[name] = LoRA(layer, size, dropouts)
    return LoRANetwork(layers)


def _layers(model: nn.Module, classes: set[str]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear and Conv2d layers inside modules of the given classes, with their paths."""
    for block_name, block in list(model.named_modules()):
        if type(block).__name__ not in classes:
            continue
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                yield f"{block_name}.{name}", layer
