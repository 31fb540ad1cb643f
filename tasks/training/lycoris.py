"""LoHa and LoKr, with names and beginnings as in LyCORIS, and any kind of adapter from a file's tensors.

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
    """(w1_a w1_b) * (w2_a w2_b), element by element: a rank up to the square of each product's."""

    axes: ClassVar = {
        "hada_w1_a": (1, True), "hada_w1_b": (0, False), "hada_w2_a": (1, True), "hada_w2_b": (0, False),
    }  # fmt: skip
    hada_w1_a: nn.Parameter
    hada_w1_b: nn.Parameter
    hada_w2_a: nn.Parameter
    hada_w2_b: nn.Parameter

    @property
    def rank(self) -> int:
        """Width of each product's bottleneck."""
        return len(self.hada_w1_b)

    def delta(self) -> Tensor:
        """Change of the weight."""
        product = (self.hada_w1_a @ self.hada_w1_b) * (self.hada_w2_a @ self.hada_w2_b)
        return product.view(self._base[0].weight.shape) * self.scale

    def _fresh(self, rank: int) -> dict[str, Tensor]:
        return loha_factors(self._base[0], rank)


class LoKr(Adapter):
    """w1 (x) w2, Kronecker's product; w2, and w1 too by choice, is itself a product of two where that is smaller."""

    axes: ClassVar = {
        "lokr_w1_a": (1, True), "lokr_w1_b": (0, False), "lokr_w2_a": (1, False), "lokr_w2_b": (0, True),
    }  # fmt: skip

    @property
    def rank(self) -> int:
        """Width of the bottleneck; that of the alpha, and so a scale of 1, where both factors are whole."""
        for name in ("lokr_w2_b", "lokr_w1_b"):
            if name in self._parts:
                return len(getattr(self, name))
        return round(self.alpha) if hasattr(self, "alpha") else 1

    @property
    def scale(self) -> float:
        """Factor on the change."""
        return self.alpha / self.rank if "lokr_w2_b" in self._parts or "lokr_w1_b" in self._parts else 1.0

    def delta(self) -> Tensor:
        """Change of the weight."""
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
    """New factors whose product is 0, by their names in a LoRA file."""
    out, inputs = layer.weight.shape[0], math.prod(layer.weight.shape[1:])
    return {
        "hada_w1_a": nn.init.normal_(torch.empty(out, rank), std=0.1),
        "hada_w1_b": nn.init.normal_(torch.empty(rank, inputs)),
        "hada_w2_a": torch.zeros(out, rank),
        "hada_w2_b": nn.init.normal_(torch.empty(rank, inputs)),
    }


def lokr_factors(layer: Layer, rank: int, factor: int, decompose_both: bool, full_matrix: bool) -> dict[str, Tensor]:
    """New factors whose product is 0, by their names in a LoRA file.

    Args:
        factor: largest side of w1; -1 makes both factors about as large.
        decompose_both: w1 too is a product of two where that is smaller.
        full_matrix: neither is.
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
    """A size as a product m * n, m at most n: of the divisors up to `factor` (-1: any) the one nearest the root.

    A factor that divides the size is one of the two, whichever that makes it.
    """
    if factor > 0 and size % factor == 0:
        return min(factor, size // factor), max(factor, size // factor)
    largest = min(factor if factor > 0 else size, math.isqrt(size))
    small = next(m for m in range(largest, 0, -1) if size % m == 0)
    return small, size // small


def lengths(layer: Layer, wd_on_output: bool) -> Tensor:
    """A DoRA's beginning: lengths of the weight's own rows (out, 1, ...), or columns (1, in, 1, ...)."""
    weight = layer.weight.detach().float()
    dims = tuple(d for d in range(weight.dim()) if d != (0 if wd_on_output else 1))
    norm: Tensor = torch.linalg.vector_norm(weight, dim=dims, keepdim=True)
    return norm


def from_file(layer: Layer, tensors: Mapping[str, Tensor], dropouts: Dropouts = Dropouts()) -> Adapter:  # noqa: B008
    """The adapter whose tensors a file holds, in float32.

    Args:
        tensors: all that the file has of the layer, by their names behind the layer's.

    Raises:
        ValueError: they are of no known kind, or do not suit the layer.
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
        with torch.no_grad():
            adapter.merged()
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"its tensors do not suit a layer of {tuple(layer.weight.shape)}: {error}") from None
    return adapter


_READ = {
    "lora_down.weight", "lora_up.weight", *LoHa.axes, *LoKr.axes, "lokr_w1", "lokr_w2", "dora_scale",
}  # fmt: skip


def make_adapter(algo: str, layer: Layer, size: Size, dropouts: Dropouts, **options: bool | int) -> Adapter:
    """A new adapter that changes nothing yet.

    Args:
        algo: LyCORIS' name of the kind.
        options: factor, decompose_both and full_matrix of LoKr; dora_wd and wd_on_output of all kinds.
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
    """A LoRA's factors with as many dimensions as the layer: files of 1x1 convolutions come with two or four."""
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
    return nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5))
