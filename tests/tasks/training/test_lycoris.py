from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tasks.training.lycoris import LoHa, LoKr, from_file, make_adapter, split
from tasks.training.network import Adapter, Dropouts, LoRA, Size

OFF = {"factor": 4, "decompose_both": False, "full_matrix": False, "dora_wd": False, "wd_on_output": True}
KINDS = [
    ("lora", {}), ("loha", {}), ("lokr", {}), ("lokr", {"decompose_both": True}), ("lokr", {"full_matrix": True}),
    ("lora", {"dora_wd": True}), ("loha", {"dora_wd": True, "wd_on_output": False}),
    ("lokr", {"dora_wd": True}),
]  # fmt: skip
LAYERS = {
    "linear": lambda: nn.Linear(16, 24),
    "no bias": lambda: nn.Linear(16, 24, bias=False),
    "conv": lambda: nn.Conv2d(16, 24, 3, stride=2, padding=1),
    "1x1": lambda: nn.Conv2d(16, 24, 1),
}


def made(algo: str, layer: nn.Linear | nn.Conv2d, dropouts: Dropouts = Dropouts(), **options: bool | int) -> Adapter:  # noqa: B008
    return make_adapter(algo, layer, Size(2, 3.0), dropouts, **{**OFF, **options})


def randomised(adapter: Adapter) -> Adapter:
    with torch.no_grad():
        for name, tensor in adapter.tensors().items():
            tensor.uniform_(0.5, 1.5) if name == "dora_scale" else tensor.normal_(std=0.5)
    return adapter


def by_hand(weight: Tensor, t: dict[str, Tensor], alpha: float) -> Tensor:
    """The adapted weight from a file's tensors, by the published formulas, in float64."""
    w, t = weight.double(), {name: tensor.double() for name, tensor in t.items()}
    if "lora_down.weight" in t:
        down = t["lora_down.weight"].flatten(1)
        delta = t["lora_up.weight"].flatten(1) @ down * (alpha / len(down))
    elif "hada_w1_a" in t:
        delta = (t["hada_w1_a"] @ t["hada_w1_b"]) * (t["hada_w2_a"] @ t["hada_w2_b"]) * (alpha / len(t["hada_w1_b"]))
    else:
        rank = next((len(t[name]) for name in ("lokr_w2_b", "lokr_w1_b") if name in t), alpha)
        w1 = t["lokr_w1"] if "lokr_w1" in t else t["lokr_w1_a"] @ t["lokr_w1_b"]
        w2 = t["lokr_w2"] if "lokr_w2" in t else t["lokr_w2_a"] @ t["lokr_w2_b"]
        w2 = w2.reshape(len(w2), -1, *w.shape[2:])
        delta = torch.einsum("ab,cd...->acbd...", w1, w2) * (alpha / rank)
    changed = w + delta.reshape(w.shape)
    if "dora_scale" in t:
        rows = t["dora_scale"].shape[0] == len(w)
        flat = changed.flatten(1) if rows else changed.transpose(0, 1).flatten(1)
        norm = flat.norm(dim=1).view((-1, 1) if rows else (1, -1))
        changed = changed * t["dora_scale"] / norm.view(t["dora_scale"].shape)
    return changed.float()


def run(layer: nn.Linear | nn.Conv2d, weight: Tensor, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Conv2d):
        return nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
    return nn.functional.linear(x, weight, layer.bias)


def inputs(layer: nn.Linear | nn.Conv2d) -> Tensor:
    return torch.randn(3, 16, 8, 8) if isinstance(layer, nn.Conv2d) else torch.randn(3, 5, 16)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("algo", "options"), KINDS)
def test_every_kind_starts_as_the_base_and_then_does_what_its_formula_says(
    algo: str, options: dict[str, bool], kind: str
) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    x = inputs(layer)
    before = layer(x)
    adapter = made(algo, layer, **options)
    adapter.attach()
    assert torch.allclose(layer(x), before, atol=1e-5)
    randomised(adapter)
    state = {name: tensor.detach() for name, tensor in adapter.tensors().items()}
    weight = by_hand(layer.weight.detach(), state, adapter.alpha)
    for wanted in (True, False):  # the change is made anew for the gradient, and not without one
        with torch.set_grad_enabled(wanted):
            assert torch.allclose(layer(x), run(layer, weight, x), atol=1e-4)
    assert torch.allclose(adapter.merged(), weight, atol=1e-5)
    adapter.detach()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("algo", "options"), KINDS)
def test_a_file_gives_the_adapter_back(algo: str, options: dict[str, bool], kind: str) -> None:
    layer = LAYERS[kind]()
    adapter = randomised(made(algo, layer, **options))
    again = from_file(layer, {**adapter.tensors(), "alpha": torch.tensor(adapter.alpha)})
    assert type(again) is type(adapter)
    assert torch.equal(again.merged(), adapter.merged())


@pytest.mark.parametrize(("algo", "options"), KINDS)
def test_gradients_are_those_of_the_merged_weight(algo: str, options: dict[str, bool]) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 24)
    adapter = randomised(made(algo, layer, **options))
    x = torch.randn(7, 16, requires_grad=True)
    adapter.attach()
    layer(x).square().sum().backward()
    found = [x.grad] + [t.grad for name, t in adapter.tensors().items() if name != "dora_scale"]
    adapter.detach()
    x.grad = None
    adapter.zero_grad()
    weight = layer.weight + adapter.delta()
    if options.get("dora_wd"):
        weight = weight * (adapter.dora_scale / adapter._norm(weight).detach())
    run(layer, weight, x).square().sum().backward()
    expected = [x.grad] + [t.grad for name, t in adapter.tensors().items() if name != "dora_scale"]
    for mine, theirs in zip(found, expected, strict=True):
        assert mine is not None
        assert theirs is not None
        assert torch.allclose(mine, theirs, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("algo", "options"), KINDS)
def test_growing_leaves_the_function_as_it_was(algo: str, options: dict[str, bool], kind: str) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind]()
    adapter = randomised(made(algo, layer, **options))
    x, many = inputs(layer), sum(t.numel() for t in adapter.tensors().values())
    adapter.attach()
    before, scale = layer(x).detach(), adapter.scale
    adapter.grow(5)
    assert torch.allclose(layer(x), before, atol=1e-6, rtol=1e-6)
    assert adapter.scale == scale
    if not options.get("full_matrix"):
        assert adapter.rank == 5
        assert sum(t.numel() for t in adapter.tensors().values()) > many
        layer(x).sum().backward()
        # The new ranks are trained: of each pair of factors the one that starts at 0 has a gradient.
        grown = [n for n, (_, zero) in adapter.axes.items() if zero and n in adapter.tensors()]
        for name in grown:
            gradient = adapter.tensors()[name].grad
            assert gradient is not None
            assert gradient.narrow(adapter.axes[name][0], 2, 3).abs().sum() > 0


@pytest.mark.parametrize(("algo", "kind"), [("lora", LoRA), ("loha", LoHa), ("lokr", LoKr)])
def test_norms_are_limited(algo: str, kind: type[Adapter]) -> None:
    adapter = randomised(made(algo, nn.Linear(16, 24)))
    assert type(adapter) is kind
    norm = float(adapter.delta().detach().norm())
    adapter.limit_norm(2 * norm)
    assert float(adapter.delta().detach().norm()) == pytest.approx(norm)
    adapter.limit_norm(norm / 3)
    assert float(adapter.delta().detach().norm()) == pytest.approx(norm / 3, rel=1e-4)


def test_rank_dropout_of_loha_leaves_out_rows_of_the_change() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 24)
    adapter = randomised(made("loha", layer, Dropouts(rank_dropout=0.5)))
    x = torch.randn(4, 16)
    full = adapter.eval()._change(x)
    some = adapter.train()._change(x)
    dropped = (some == 0).all(0)
    assert 0 < dropped.sum() < 24
    assert torch.equal(some[:, ~dropped], full[:, ~dropped])


@given(st.integers(1, 3000), st.integers(-1, 64))
def test_a_size_is_split_into_two_divisors(size: int, factor: int) -> None:
    small, large = split(size, factor)
    assert small * large == size
    assert small <= large
    if factor > 0 and size % factor == 0:
        assert factor in (small, large)
    else:
        between = range(small + 1, min(factor if factor > 0 else size, math.isqrt(size)) + 1)
        assert not [m for m in between if size % m == 0]


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"hada_t1": torch.zeros(1)}, "hada_t1, which cannot be read"),
        ({"hada_w1_a": torch.zeros(24, 2)}, "do not suit"),
        ({"lora_down.weight": torch.zeros(2, 9), "lora_up.weight": torch.zeros(24, 2)}, "do not suit"),
        ({"lokr_w1": torch.zeros(2, 2), "lokr_t2": torch.zeros(2)}, "lokr_t2, which cannot be read"),
    ],
)
def test_what_is_no_adapter_of_the_layer_is_said(tensors: dict[str, Tensor], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        from_file(nn.Linear(16, 24), tensors)
