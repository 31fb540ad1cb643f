"""Implement LoHa and LoKr with the names and initial values of LyCORIS, and build adapters from a file's tensors.

Formulas: LoHa after Hyeon-Woo et al. 2022 (FedPara, arXiv 2108.06098), LoKr after Edalati et al. 2022 (KronA,
arXiv 2212.10650), both as LyCORIS has them (Yeh et al. 2024, arXiv 2309.14859).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from tasks.training.network import Adapter, Dropouts, Layer, LoRA, Size


class LoHa(Adapter):
    """Change a weight by (w1_a w1_b) * (w2_a w2_b), element by element.

    The rank of the change is up to the square of each product's rank.
    """

    axes: ClassVar = {
        "hada_w1_a": (1, True), "hada_w1_b": (0, False), "hada_w2_a": (1, True), "hada_w2_b": (0, False),
    }  # fmt: skip
    hada_w1_a: nn.Parameter
    hada_w1_b: nn.Parameter
    hada_w2_a: nn.Parameter
    hada_w2_b: nn.Parameter

    @property
    def rank(self) -> int:
        """Return the rank of each of the two products."""
        return len(self.hada_w1_b)

    def delta(self) -> Tensor:
        """Return the change of the weight, in its shape."""
        product = (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)
        return product.view(self._base[0].weight.shape) * self.scale

    def _fresh(self, rank: int) -> dict[str, Tensor]:
        return loha_factors(self._base[0], rank)


class LoKr(Adapter):
    """Change a weight by the Kronecker product of w1 and w2.

    w2 is itself a product of two factors where that has fewer parameters; so is w1 with `decompose_both`.
    """

    axes: ClassVar = {
        "lokr_w1_a": (1, True), "lokr_w1_b": (0, False), "lokr_w2_a": (1, False), "lokr_w2_b": (0, True),
    }  # fmt: skip

    @property
    def rank(self) -> int:
        """Return the rank of the factors; alpha where both factors are whole matrices, so that the scale is 1."""
        for name in ("lokr_w2_b", "lokr_w1_b"):
            if name in self._parts:
                return len(getattr(self, name))
        return round(self.alpha) if hasattr(self, "alpha") else 1

    @property
    def scale(self) -> float:
        """Return the factor on the change: alpha / rank, or 1 where both factors are whole matrices."""
        return self.alpha / self.rank if "lokr_w2_b" in self._parts or "lokr_w1_b" in self._parts else 1.0

    def delta(self) -> Tensor:
        """Return the change of the weight, in its shape."""
        shape = self._base[0].weight.shape
        w1, w2 = self._factor("lokr_w1"), self._factor("lokr_w2")
        w2 = w2.view(len(w2), -1, *shape[2:])
        return torch.kron(w1.view(*w1.shape, *(1,) * (len(shape) - 2)), w2).reshape(shape) * self.scale

    def _factor(self, name: str) -> Tensor:
        if name in self._parts:
            whole: Tensor = getattr(self, name)
            return whole
        product: Tensor = getattr(self, f"{name}_a") @ getattr(self, f"{name}_b")
        return product

    def _fresh(self, rank: int) -> dict[str, Tensor]:
        shapes = {name: list(tensor.shape) for name, tensor in self.tensors().items() if name in self.axes}
        for name, shape in shapes.items():
            shape[self.axes[name][0]] = rank
        return {name: _kaiming(*shape) for name, shape in shapes.items()}


def loha_factors(layer: Layer, rank: int) -> dict[str, Tensor]:
    """Return new factors whose product is 0, by their names in a LoRA file."""
    # Standard deviations as in LyCORIS; the zero in w2_a makes the change 0.
    out, inputs = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
    return {
        "hada_w1_a": nn.init.normal_(torch.empty(out, rank), std=0.1),
        "hada_w1_b": nn.init.normal_(torch.empty(rank, inputs)),
        "hada_w2_a": torch.zeros(out, rank),
        "hada_w2_b": nn.init.normal_(torch.empty(rank, inputs)),
    }


def lokr_factors(layer: Layer, rank: int, factor: int, decompose_both: bool, full_matrix: bool) -> dict[str, Tensor]:
    """Return new factors whose product is 0, by their names in a LoRA file.

    Args:
        layer: the layer to adapt.
        rank: rank of the factors that are decomposed.
        factor: largest side of w1; -1 gives both factors about the same size.
        decompose_both: also decompose w1 where that has fewer parameters.
        full_matrix: decompose neither.
    """
    outs, ins = split(layer.weight.shape[0], factor), split(layer.weight.shape[1], factor)
    window = math.prod(layer.weight.shape[2:])
    tensors: dict[str, Tensor] = {}
    if decompose_both and not full_matrix and rank < max(outs[0], ins[0]) / 2:
        tensors |= {"lokr_w1_a": _kaiming(outs[0], rank), "lokr_w1_b": _kaiming(rank, ins[0])}
    else:
        tensors["lokr_w1"] = _kaiming(outs[0], ins[0])
    if not full_matrix and rank < max(outs[1], ins[1]) / 2:
        tensors |= {"lokr_w2_a": _kaiming(outs[1], rank), "lokr_w2_b": torch.zeros(rank, ins[1] * window)}
    else:
        tensors["lokr_w2"] = torch.zeros(outs[1], ins[1], *layer.weight.shape[2:])
    return tensors


def split(size: int, factor: int) -> tuple[int, int]:
    """Split a size into m * n with m <= n.

    If `factor` divides the size, it is one of the two. Otherwise m is the largest divisor up to `factor` (-1: any)
    that does not exceed the square root.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    largest = min(factor if factor > 0 else size, math.isqrt(size))
    small = next(m for m in range(largest, 0, -1) if size % m == 0)
    return small, size // small


def lengths(layer: Layer, wd_on_output: bool) -> Tensor:
    """Return a DoRA's initial magnitudes: lengths of the weight's rows (out, 1, ...) or columns (1, in, 1, ...)."""
    weight = layer.weight.detach().float()
    dims = tuple(d for d in range(weight.dim()) if d != (0 if wd_on_output else 1))
    norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return norm


def from_file(layer: Layer, tensors: Mapping[str, Tensor], dropouts: Dropouts = Dropouts()) -> Adapter:  # noqa: B008
    """Build the adapter whose tensors a file holds, in float32.

    Args:
        layer: the layer to adapt.
        tensors: all tensors that the file has for this layer, by the part of their names after the layer's name.
        dropouts: used while training.

    Raises:
        ValueError: the tensors are of no known kind, or do not fit the layer.
    """
    device = layer.weight.device
    parts = {name: tensor.to(device, torch.float32) for name, tensor in tensors.items() if name != "alpha"}
    alpha = float(tensors["alpha"]) if "alpha" in tensors else 0.0
    kinds: dict[str, type[Adapter]] = {"lora_down.weight": LoRA, "hada_w1_a": LoHa, "lokr_w1": LoKr, "lokr_w1_a": LoKr}
    kind = next((kinds[name] for name in parts if name in kinds), None)
    if kind is None or (unknown := [name for name in parts if name not in _READ]):
        raise ValueError(f"it holds {', '.join(sorted(parts)) if kind is None else unknown[0]}, which cannot be read")
    if kind is LoRA:
        parts = _as_for(layer, parts)
    try:
        adapter = kind(layer, parts, alpha, dropouts)
        # Compute the weight once: tensors of a wrong shape must fail here, not in the first step.
        with torch.no_grad():
            adapter.merged()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"its tensors do not suit a layer of {tuple(layer.weight.shape)}: {error}") from None
    return adapter


# Factors that can be read; others, such as LyCORIS' tucker cores, would change the result if ignored.
_READ = {
    "lora_down.weight", "lora_up.weight", *LoHa.axes, *LoKr.axes, "lokr_w1", "lokr_w2", "dora_scale",
}  # fmt: skip


def make_adapter(algo: str, layer: Layer, size: Size, dropouts: Dropouts, **options: bool | int) -> Adapter:
    """Build a new adapter whose change is 0.

    Args:
        algo: LyCORIS' name of the kind: loha, lokr, or any other name for LoRA.
        layer: the layer to adapt.
        size: rank and alpha.
        dropouts: used while training.
        options: factor, decompose_both and full_matrix for LoKr; dora_wd and wd_on_output for all kinds.
    """
    kind: type[Adapter] = {"loha": LoHa, "lokr": LoKr}.get(algo, LoRA)
    if kind is LoKr:
        parts = lokr_factors(
            layer, size.rank, int(options["factor"]), bool(options["decompose_both"]), bool(options["full_matrix"])
        )
    else:
        parts = loha_factors(layer, size.rank) if kind is LoHa else LoRA.factors(layer, size.rank)
    if options["dora_wd"]:
        parts["dora_scale"] = lengths(layer, bool(options["wd_on_output"]))
    return kind(layer, parts, size.alpha or float(size.rank), dropouts)


def _as_for(layer: Layer, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Give a LoRA's factors as many dimensions as the layer: files store 1x1 convolutions with two or four."""
    down, up, many = parts["lora_down.weight"], parts["lora_up.weight"], layer.weight.dim()
    if down.dim() == many:
        return parts
    shape = (1,) * (many - 2)
    return {
        **parts,
        "lora_down.weight": down.flatten(1).view(len(down), -1, *shape),
        "lora_up.weight": up.flatten(1).view(len(up), -1, *shape),
    }


def _kaiming(*shape: int) -> Tensor:
    # a = sqrt(5) is the initialisation of nn.Linear, which kohya and LyCORIS use too.
    return nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5))
