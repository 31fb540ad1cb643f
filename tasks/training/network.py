"""Implement LoRA with the layers, formula and names of kohya's networks.lora.

y = W x + up(down(x)) * alpha / rank. Every Linear and 1x1 convolution inside a Transformer2DModel and inside CLIP's
attention and MLP is adapted. conv_dim adds the 3x3 convolutions of residual blocks and of down- and upsamplers
(LoCon), whose 1x1 layers and time projection then get network_dim. Other kinds of adapters are in `lycoris`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from schema.errors import ConfigError

# Names of module classes, as in kohya's networks.lora.
UNET_BLOCKS = {"Transformer2DModel"}
UNET_CONV_BLOCKS = {"ResnetBlock2D", "Downsample2D", "Upsample2D"}
TEXT_BLOCKS = {"CLIPAttention", "CLIPMLP"}

Layer: TypeAlias = nn.Linear | nn.Conv2d
"""Layers that can be adapted."""

Make = Callable[[str, Layer], "tuple[str, Adapter] | None"]
"""Function from a layer's path and the layer to kohya's name and the adapter; None leaves the layer as it is."""


@dataclass(frozen=True)
class Dropouts:
    """Hold the probabilities of dropping, while training, activations, ranks of a sample, or the whole layer."""

    network_dropout: float = 0.0
    rank_dropout: float = 0.0
    module_dropout: float = 0.0


@dataclass(frozen=True)
class Size:
    """Hold rank and alpha of one layer; alpha 0 means the rank."""

    rank: int
    alpha: float


class Adapter(nn.Module):
    """Change the weight of one Linear or Conv2d by alpha / rank times a product of trainable factors.

    With a dora_scale it is DoRA (Liu et al. 2024, arXiv 2402.09353): the rows, or columns, of the changed weight are
    scaled to that length. Their own length is a constant for the gradient (section 4.3 of the paper).
    """

    axes: ClassVar[dict[str, tuple[int, bool]]] = {}
    """Axis of the rank in each factor, and whether new ranks start at 0 there: one factor of each product does."""

    def __init__(self, layer: Layer, tensors: Mapping[str, Tensor], alpha: float, dropouts: Dropouts) -> None:
        """Build the adapter without attaching it.

        Args:
            layer: the layer to adapt.
            tensors: the factors by their names in a LoRA file.
            alpha: 0 means the rank.
            dropouts: used while training.
        """
        super().__init__()
        self._base = (layer,)  # in a tuple, so that torch does not register its weights as ours
        self._parts = tuple(tensors)
        for name, tensor in tensors.items():
            setattr(self, _attribute(name), nn.Parameter(tensor))
        self.alpha, self.dropouts = alpha or float(self.rank), dropouts
        self.first_rank = self.rank
        self._forward = layer.forward

    @property
    def rank(self) -> int:
        """Return the rank of the factors."""
        raise NotImplementedError

    @property
    def scale(self) -> float:
        """Return the factor on the change: alpha / rank."""
        return self.alpha / self.rank

    def attach(self) -> None:
        """Replace the layer's forward by the adapted one."""
        self._base[0].forward = self._adapted  # type: ignore[method-assign,assignment]

    def detach(self) -> None:
        """Restore the layer's own forward."""
        del self._base[0].forward

    def tensors(self) -> dict[str, Tensor]:
        """Return the trained tensors by their names in a LoRA file."""
        return {name: getattr(self, _attribute(name)) for name in self._parts}

    def delta(self) -> Tensor:
        """Return the change of the weight, in its shape; for DoRA, before rows or columns are scaled."""
        raise NotImplementedError

    def merged(self, multiplier: float = 1.0) -> Tensor:
        """Return the adapted weight in float32.

        Args:
            multiplier: factor on the change.
        """
        weight = self._base[0].weight.float()
        changed = weight + self.delta().float()
        if self._lengths is not None:
            changed = changed * (self._lengths.float() / self._norm(changed))
        return changed if multiplier == 1 else weight + multiplier * (changed - weight)

    @torch.no_grad()
    def merge(self, multiplier: float = 1.0) -> tuple[Tensor, Tensor]:
        """Write the adapted weight into the layer; return the parameter and its old values, to restore them."""
        weight, values = self._base[0].weight, self._base[0].weight.data
        weight.data = self.merged(multiplier).to(values)
        return weight, values

    @torch.no_grad()
    def grow(self, rank: int) -> None:
        """Add ranks without changing the output: one factor of each new product is 0, and alpha / rank is kept.

        The parameters stay the same objects, so that an optimizer can go on with them. No gradient may be pending.
        """
        if rank <= self.rank:
            return
        alpha, many = self.alpha * rank / self.rank, self.rank
        fresh = self._fresh(rank)
        for name, (axis, zero) in self.axes.items():
            if name in fresh:
                old: nn.Parameter = getattr(self, _attribute(name))
                new = fresh[name].narrow(axis, many, rank - many).to(old)
                old.data = torch.cat([old, torch.zeros_like(new) if zero else new], axis)
        if self.rank == rank:  # LoKr with whole matrices does not grow
            self.alpha = alpha

    @torch.no_grad()
    def limit_norm(self, largest: float) -> None:
        """Shrink all factors alike if the Frobenius norm of the change is above `largest`."""
        factors = [tensor for name, tensor in self.tensors().items() if name != "dora_scale"]
        norm = self._change_norm().clamp_min(largest / 2)  # as kohya: keeps the ratio finite for a change of 0
        ratio = (largest / norm).clamp_max(1) ** (1 / len(factors))
        for factor in factors:
            factor.mul_(ratio)

    def _fresh(self, rank: int) -> dict[str, Tensor]:
        """Return newly initialised factors of a rank."""
        raise NotImplementedError

    def _change_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.delta())
        return norm

    def _change(self, x: Tensor) -> Tensor:
        """Return what the change adds to the output; its full matrix is recomputed for the gradient, not kept."""
        if torch.is_grad_enabled():
            out: Tensor = checkpoint(self._through, x, use_reentrant=False, preserve_rng_state=False)
        else:
            out = self._through(x)
        if self.training and self.dropouts.rank_dropout:  # rows of the change, as in LyCORIS
            kept = torch.rand(self._base[0].weight.shape[0], device=x.device) > self.dropouts.rank_dropout
            out = out * _along(kept, out)
        return out

    def _through(self, x: Tensor) -> Tensor:
        delta, layer = self.delta().to(x.dtype), self._base[0]
        if isinstance(layer, nn.Conv2d):
            return F.conv2d(x, delta, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        return F.linear(x, delta)

    def _adapted(self, x: Tensor) -> Tensor:
        if self.training and self.dropouts.module_dropout and torch.rand(()) < self.dropouts.module_dropout:
            return self._forward(x)
        if self._lengths is None:
            return self._forward(x) + self._change(x)
        with torch.no_grad():
            norm = self._norm(self._base[0].weight.float() + self.delta().float())
        ratio = (self._lengths / norm).to(x.dtype).flatten()
        if len(self._lengths) == 1:  # scaling columns is the same as scaling the input
            x = x * _along(ratio, x)
            return self._forward(x) + self._change(x)
        bias = self._base[0].bias
        out = self._forward(x) + self._change(x)
        if bias is None:
            return out * _along(ratio, out)
        return torch.lerp(_along(bias.to(out.dtype), out), out, _along(ratio, out).to(out.dtype))

    @property
    def _lengths(self) -> Tensor | None:
        return getattr(self, "dora_scale", None)

    def _norm(self, weight: Tensor) -> Tensor:
        """Return the lengths of a weight's rows (out, 1, ...) or columns (1, in, 1, ...), shaped like dora_scale."""
        assert self._lengths is not None
        rows = len(self._lengths) > 1
        dims = tuple(d for d in range(weight.dim()) if d != (0 if rows else 1))
        norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
        return norm + torch.finfo(weight.dtype).eps


class LoRA(Adapter):
    """Change a weight by the product of two low-rank factors; for a Conv2d the second is a 1x1 convolution."""

    axes: ClassVar = {"lora_down.weight": (0, False), "lora_up.weight": (1, True)}
    lora_down: nn.Parameter
    lora_up: nn.Parameter

    @staticmethod
    def factors(layer: Layer, rank: int) -> dict[str, Tensor]:
        """Return new factors by their names in a LoRA file: down random, up 0."""
        out, rest = layer.weight.shape[0], layer.weight.shape[1:]
        down = nn.init.kaiming_uniform_(torch.empty(rank, *rest), a=math.sqrt(5))
        return {"lora_down.weight": down, "lora_up.weight": torch.zeros(out, rank, *(1,) * (len(rest) - 1))}

    @property
    def rank(self) -> int:
        """Return the rank of the factors."""
        return len(self.lora_down)

    def delta(self) -> Tensor:
        """Return the change of the weight, in its shape."""
        product = self.lora_up.flatten(1) @ self.lora_down.flatten(1)
        return product.view(self._base[0].weight.shape) * self.scale

    def _fresh(self, rank: int) -> dict[str, Tensor]:
        return self.factors(self._base[0], rank)

    def _change_norm(self) -> Tensor:
        up, down = self.lora_up.flatten(1), self.lora_down.flatten(1)
        # |U D|^2 is the trace of (U'U)(DD'): r x r numbers instead of the whole layer.
        square = ((up.T @ up) * (down @ down.T)).sum().clamp_min(0)
        return square.sqrt() * self.scale

    def _change(self, x: Tensor) -> Tensor:
        layer, drop, scale = self._base[0], self.dropouts, self.scale
        if isinstance(layer, nn.Conv2d):
            change = F.conv2d(x, self.lora_down, None, layer.stride, layer.padding, layer.dilation)
        else:
            change = F.linear(x, self.lora_down)
        if self.training and drop.network_dropout:
            change = F.dropout(change, drop.network_dropout)
        if self.training and drop.rank_dropout:
            kept = torch.rand(len(change), self.rank, device=change.device) > drop.rank_dropout
            at = (slice(None), slice(None), None, None) if change.dim() == 4 else (slice(None), None, slice(None))
            change = change * (kept[at] if change.dim() > 2 else kept)
            scale = scale / (1 - drop.rank_dropout)
        up = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
        # Scale the low-rank activations: they are the smallest tensor.
        added: Tensor = up(change if scale == 1 else change * scale, self.lora_up)
        return added


class LoRANetwork(nn.Module):
    """Hold all adapted layers of a model by kohya's names."""

    def __init__(self, layers: Mapping[str, Adapter]) -> None:
        super().__init__()
        self._names = list(layers)
        self._layers = nn.ModuleList(layers.values())

    def __len__(self) -> int:
        return len(self._names)

    def named_layers(self) -> Iterator[tuple[str, Adapter]]:
        """Yield kohya's name and the adapter of each layer, in the model's order."""
        for name, layer in zip(self._names, self._layers, strict=True):
            assert isinstance(layer, Adapter)
            yield name, layer

    def limit_norms(self, largest: float) -> None:
        """Limit the norm of each change, as kohya's scale_weight_norms does."""
        for _, layer in self.named_layers():
            layer.limit_norm(largest)

    def grow(self, factor: float) -> None:
        """Grow each layer to `factor` times its first rank, rounded up, without changing the output."""
        for _, layer in self.named_layers():
            layer.grow(math.ceil(layer.first_rank * factor - 1e-9))  # a rounding error must not add a rank

    def kohya_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of a LoRA file, on the CPU."""
        state: dict[str, Tensor] = {}
        for name, layer in self.named_layers():
            for part, tensor in layer.tensors().items():
                state[f"{name}.{part}"] = tensor.detach().to("cpu", dtype).contiguous()
            state[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
        return state

    @torch.no_grad()
    def load_kohya_state(self, state: Mapping[str, Tensor]) -> int:
        """Copy the tensors of a LoRA file into the layers and return the number of layers found.

        Raises:
            ConfigError: a layer has another rank or kind in the file.
        """
        found = 0
        for name, layer in self.named_layers():
            if not any(key.startswith(f"{name}.") for key in state):
                continue
            found += 1
            for part, mine in layer.tensors().items():
                theirs = state.get(f"{name}.{part}")
                if theirs is None or theirs.numel() != mine.numel():
                    there = "does not exist" if theirs is None else f"has the shape {tuple(theirs.shape)}"
                    raise ConfigError(
                        f"network_weights: {name}.{part} {there} there, {tuple(mine.shape)} here: "
                        "take the file's kind and ranks, or set dim_from_weights = true"
                    )
                mine.copy_(theirs.reshape(mine.shape))
        return found


def adapt(model: nn.Module, classes: set[str], make: Make) -> LoRANetwork:
    """Adapt a model in place and return the network of its adapters.

    Args:
        model: the model.
        classes: names of the module classes whose layers are adapted.
        make: chooses name and adapter of each layer.
    """
    layers = {}
    for path, layer in adaptable(model, classes):
        if found := make(path, layer):
            name, adapter = found
            adapter.attach()
            layers[name] = adapter
    return LoRANetwork(layers)


def adaptable(model: nn.Module, classes: set[str]) -> Iterator[tuple[str, Layer]]:
    """Yield path and layer of each Linear and Conv2d inside modules of the given classes."""
    for block_name, block in list(model.named_modules()):
        if type(block).__name__ not in classes:
            continue
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                yield f"{block_name}.{name}", layer


def _attribute(name: str) -> str:
    return name.removesuffix(".weight")


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Reshape values per channel to multiply with (B, channels, h, w) or (..., channels)."""
    return values[:, None, None] if x.dim() == 4 else values
