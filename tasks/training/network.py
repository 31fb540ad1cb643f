"""LoRA as kohya's networks.lora makes it: which layers, which formula, which names.

y = W x + up(down(x)) * alpha / rank. Every Linear and 1x1 convolution inside a Transformer2DModel and inside
CLIP's attention and MLP is adapted; with conv_dim also the 3x3 convolutions of residual blocks and of
down- and upsamplers (LoCon), whose 1x1 layers and time projection then get network_dim. Other kinds of change
are in `lycoris`.
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

UNET_BLOCKS = {"Transformer2DModel"}
UNET_CONV_BLOCKS = {"ResnetBlock2D", "Downsample2D", "Upsample2D"}
TEXT_BLOCKS = {"CLIPAttention", "CLIPMLP"}

Layer: TypeAlias = nn.Linear | nn.Conv2d
"""What can be adapted."""

Make = Callable[[str, Layer], "tuple[str, Adapter] | None"]
"""Kohya's name and the adapter of a layer by its path; None leaves it as it is."""


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


class Adapter(nn.Module):
    """A trainable change to the weight of one Linear or Conv2d, alpha / rank times a product of factors.

    With a dora_scale it is DoRA (Liu et al. 2024, arXiv 2402.09353): the changed weight's rows, or its columns,
    are brought to that length. Their own length counts as a constant for the gradient (section 4.3 there).
    """

    axes: ClassVar[dict[str, tuple[int, bool]]] = {}
    """Where the rank runs in each factor, and whether new ranks start at 0 there: one factor of each product does."""

    def __init__(self, layer: Layer, tensors: Mapping[str, Tensor], alpha: float, dropouts: Dropouts) -> None:
        """Args: tensors: the factors by their names in a LoRA file; alpha: 0 stands for the rank."""
        super().__init__()
        self._base = (layer,)  # in a tuple: its weights are none of this module's
        self._parts = tuple(tensors)
        for name, tensor in tensors.items():
            setattr(self, _attribute(name), nn.Parameter(tensor))
        self.alpha, self.dropouts = alpha or float(self.rank), dropouts
        self.first_rank = self.rank
        self._forward = layer.forward

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        raise NotImplementedError

    @property
    def scale(self) -> float:
        """Factor on the change."""
        return self.alpha / self.rank

    def attach(self) -> None:
        """From now on the layer's output is the adapted one."""
        self._base[0].forward = self._adapted  # type: ignore[method-assign,assignment]

    def detach(self) -> None:
        """The layer is as it was."""
        del self._base[0].forward

    def tensors(self) -> dict[str, Tensor]:
        """The trained tensors by their names in a LoRA file."""
        return {name: getattr(self, _attribute(name)) for name in self._parts}

    def delta(self) -> Tensor:
        """Change of the weight, in its shape; a DoRA's before its lengths are set."""
        raise NotImplementedError

    def merged(self, multiplier: float = 1.0) -> Tensor:
        """The adapted weight in float32.

        Args:
            multiplier: share of the change that is taken.
        """
        weight = self._base[0].weight.float()
        changed = weight + self.delta().float()
        if self._lengths is not None:
            changed = changed * (self._lengths.float() / self._norm(changed))
        return changed if multiplier == 1 else weight + multiplier * (changed - weight)

    @torch.no_grad()
    def merge(self, multiplier: float = 1.0) -> tuple[Tensor, Tensor]:
        """Give the layer the adapted weight; that and the values it had, to be put back as its data."""
        weight, values = self._base[0].weight, self._base[0].weight.data
        weight.data = self.merged(multiplier).to(values)
        return weight, values

    @torch.no_grad()
    def grow(self, rank: int) -> None:
        """Add ranks without changing the function: one factor of each product is 0 there, alpha / rank stays.

        The parameters stay the same objects, so that an optimizer goes on with them. No gradient may be pending.
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
        if self.rank == rank:  # not one whose factors are whole matrices
            self.alpha = alpha

    @torch.no_grad()
    def limit_norm(self, largest: float) -> None:
        """Shrink all factors alike where the change's Frobenius norm is above `largest`."""
        factors = [tensor for name, tensor in self.tensors().items() if name != "dora_scale"]
        norm = self._change_norm().clamp_min(largest / 2)
        ratio = (largest / norm).clamp_max(1) ** (1 / len(factors))
        for factor in factors:
            factor.mul_(ratio)

    def _fresh(self, rank: int) -> dict[str, Tensor]:
        """New factors that have ranks, as for a layer that is adapted anew."""
        raise NotImplementedError

    def _change_norm(self) -> Tensor:
        norm: Tensor = torch.linalg.vector_norm(self.delta())
        return norm

    def _change(self, x: Tensor) -> Tensor:
        """What the change adds to the output. Its full matrix is made again for the gradient instead of kept."""
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
        if len(self._lengths) == 1:  # lengths of columns: the same as a factor on the input
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
        """Lengths of a weight's rows (out, 1, ...) or columns (1, in, 1, ...), as the dora_scale has them."""
        assert self._lengths is not None
        rows = len(self._lengths) > 1
        dims = tuple(d for d in range(weight.dim()) if d != (0 if rows else 1))
        norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
        return norm + torch.finfo(weight.dtype).eps


class LoRA(Adapter):
    """A product of two low-rank factors, of which the second is a 1x1 convolution for a Conv2d."""

    axes: ClassVar = {"lora_down.weight": (0, False), "lora_up.weight": (1, True)}
    lora_down: nn.Parameter
    lora_up: nn.Parameter

    @staticmethod
    def factors(layer: Layer, rank: int) -> dict[str, Tensor]:
        """Random down, and up at 0, by their names in a LoRA file."""
        out, rest = layer.weight.shape[0], layer.weight.shape[1:]
        down = nn.init.kaiming_uniform_(torch.empty(rank, *rest), a=math.sqrt(5))
        return {"lora_down.weight": down, "lora_up.weight": torch.zeros(out, rank, *(1,) * (len(rest) - 1))}

    @property
    def rank(self) -> int:
        """Width of the bottleneck."""
        return len(self.lora_down)

    def delta(self) -> Tensor:
        """Change of the weight."""
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
        # The scale goes where there are fewest numbers.
        added: Tensor = up(change if scale == 1 else change * scale, self.lora_up)
        return added


class LoRANetwork(nn.Module):
    """All adapted layers of a model, by kohya's names."""

    def __init__(self, layers: Mapping[str, Adapter]) -> None:
        super().__init__()
        self._names = list(layers)
        self._layers = nn.ModuleList(layers.values())

    def __len__(self) -> int:
        return len(self._names)

    def named_layers(self) -> Iterator[tuple[str, Adapter]]:
        """Kohya's name and layer, in the model's order."""
        for name, layer in zip(self._names, self._layers, strict=True):
            assert isinstance(layer, Adapter)
            yield name, layer

    def limit_norms(self, largest: float) -> None:
        """Kohya's scale_weight_norms."""
        for _, layer in self.named_layers():
            layer.limit_norm(largest)

    def grow(self, factor: float) -> None:
        """Bring each layer's rank to that many times its first one, rounded up; the function stays the same."""
        for _, layer in self.named_layers():
            layer.grow(math.ceil(layer.first_rank * factor - 1e-9))

    def kohya_state(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Tensors as a LoRA file holds them."""
        state: dict[str, Tensor] = {}
        for name, layer in self.named_layers():
            for part, tensor in layer.tensors().items():
                state[f"{name}.{part}"] = tensor.detach().to("cpu", dtype).contiguous()
            state[f"{name}.alpha"] = torch.tensor(layer.alpha, dtype=dtype)
        return state

    @torch.no_grad()
    def load_kohya_state(self, state: Mapping[str, Tensor]) -> int:
        """Take over the layers that a LoRA file has; how many those were.

        Raises:
            ConfigError: a layer has another rank or is of another kind.
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
    """Adapt a model in place.

    Args:
        classes: names of the classes in which layers are adapted.
        make: which layers, under which names and how.
    """
    layers = {}
    for path, layer in adaptable(model, classes):
        if found := make(path, layer):
            name, adapter = found
            adapter.attach()
            layers[name] = adapter
    return LoRANetwork(layers)


def adaptable(model: nn.Module, classes: set[str]) -> Iterator[tuple[str, Layer]]:
    """Linear and Conv2d layers inside modules of the given classes, with their paths."""
    for block_name, block in list(model.named_modules()):
        if type(block).__name__ not in classes:
            continue
        for name, layer in list(block.named_modules()):
            if isinstance(layer, nn.Linear | nn.Conv2d):
                yield f"{block_name}.{name}", layer


def _attribute(name: str) -> str:
    return name.removesuffix(".weight")


def _along(values: Tensor, x: Tensor) -> Tensor:
    """Values for each channel, in a shape that multiplies with (B, channels, h, w) or (..., channels)."""
    return values[:, None, None] if x.dim() == 4 else values
