"""LoRA as kohya's networks.lora makes it: which layers, which formula, which names.

y = W x + up(down(x)) * alpha / rank. Every Linear and 1x1 convolution inside a Transformer2DModel and inside
CLIP's attention and MLP is adapted; with conv_dim also the 3x3 convolutions of residual blocks and of
down- and upsamplers (LoCon), whose 1x1 layers and time projection then get network_dim.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNET_BLOCKS = {"Transformer2DModel"}
UNET_CONV_BLOCKS = {"ResnetBlock2D", "Downsample2D", "Upsample2D"}
TEXT_BLOCKS = {"CLIPAttention", "CLIPMLP"}


class LoRA(nn.Module):
    """A low-rank change to one Linear or Conv2d, added to its output.

    The rank's activations are dropped with probability `dropout` while training.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, alpha: float, dropout: float = 0.0) -> None:
        super().__init__()
        if isinstance(layer, nn.Conv2d):
            kernel, stride, padding = layer.kernel_size, layer.stride, layer.padding
            self.lora_down: nn.Module = nn.Conv2d(layer.in_channels, rank, kernel, stride, padding, bias=False)  # type: ignore[arg-type]
            self.lora_up: nn.Module = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.lora_down = nn.Linear(layer.in_features, rank, bias=False)
            self.lora_up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.kaiming_uniform_(self.lora_down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_up.weight)  # the network starts as the base model
        self.rank, self.alpha, self.dropout = rank, alpha or float(rank), dropout
        self._forward = layer.forward
        layer.forward = self._adapted  # type: ignore[method-assign,assignment]

    def _adapted(self, x: Tensor) -> Tensor:
        change = self.lora_down(x)
        if self.dropout and self.training:
            change = F.dropout(change, self.dropout)
        out: Tensor = self._forward(x) + self.lora_up(change) * (self.alpha / self.rank)
        return out


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

    def kohya_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors as a LoRA file holds them."""
        state: dict[str, Tensor] = {}
        for name, layer in self.named_layers():
            for part in ("lora_down", "lora_up"):
                weight: Tensor = getattr(layer, part).weight
                state[f"{name}.{part}.weight"] = weight.detach().to("cpu", dtype).contiguous()
            state[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
        return state


def adapt_unet(
    unet: nn.Module, rank: int, alpha: float, conv_rank: int, conv_alpha: float, dropout: float
) -> LoRANetwork:
    """Adapt a UNet in place; `conv_rank` 0 leaves 3x3 convolutions alone."""
    blocks = UNET_BLOCKS | (UNET_CONV_BLOCKS if conv_rank else set())
    layers = {}
    for name, layer in _layers(unet, blocks):
        if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1):
            layers[f"lora_unet_{name}"] = LoRA(layer, conv_rank, conv_alpha, dropout)
        else:
            layers[f"lora_unet_{name}"] = LoRA(layer, rank, alpha, dropout)
    return LoRANetwork(layers)


def adapt_text_encoder(encoder: nn.Module, rank: int, alpha: float, dropout: float) -> LoRANetwork:
    """Adapt a CLIP text encoder in place."""
    layers = {}
    for name, layer in _layers(encoder, TEXT_BLOCKS):
        # Newer transformers leave out the level that kohya's names and all readers of the files have.
        full = name if name.startswith("text_model_") else f"text_model_{name}"
        layers[f"lora_te_{full}"] = LoRA(layer, rank, alpha, dropout)
    return LoRANetwork(layers)


def _layers(model: nn.Module, blocks: set[str]) -> Iterator[tuple[str, nn.Linear | nn.Conv2d]]:
    """Linear and Conv2d layers inside blocks of the given classes, with kohya's spelling of their path."""
    for block_name, block in list(model.named_modules()):
        if type(block).__name__ not in blocks:
            continue
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                yield f"{block_name}.{name}".replace(".", "_"), layer
