from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Optimizer
from transformers.optimization import Adafactor

from schema.errors import ConfigError
from schema.parameters import with_defaults
from tasks.training.config import TrainingConfig
from tasks.training.growth import Growth
from tasks.training.network import Dropouts, LoRA, LoRANetwork


def config(text: str | None, dim: int = 2) -> TrainingConfig:
    parameters = with_defaults({"network_dim": dim, "progressive_rank": text})
    return TrainingConfig(
        pretrained_model_name_or_path="", train_data_dir=Path(), output_dir=Path(), parameters=parameters
    )


def test_each_epoch_has_its_rank() -> None:
    growth = Growth.of(config("3:4,5:16"))
    assert [growth.rank(epoch) for epoch in range(1, 7)] == [2, 2, 4, 4, 16, 16]
    assert Growth.of(config(None)).rank(9) == 2


@pytest.mark.parametrize("text", ["4", "a:b", "1:8", "3:2", "3:8,2:16", "3:8,4:8", "1:2:3"])
def test_what_is_no_growth_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="progressive_rank"):
        Growth.of(config(text))


@pytest.mark.parametrize("optimizer", ["AdamW8bit", "Prodigy"])
def test_an_optimizer_that_cannot_grow_is_refused_before_training(optimizer: str) -> None:
    asked = config("3:4")
    parameters = {**asked.parameters, "optimizer_type": optimizer}
    with pytest.raises(ConfigError, match=f"the state of {optimizer} cannot grow"):
        Growth.of(asked.changed(parameters=parameters))
    Growth.of(asked.changed(parameters={**parameters, "progressive_rank": None}))


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
    "Adafactor": lambda p: Adafactor(p, lr=1e-2, relative_step=False, scale_parameter=False, beta1=0.9),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_optimizer_keeps_what_it_knows_and_trains_the_new_ranks(name: str) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(6, 5)
    adapter = LoRA(layer, LoRA.factors(layer, 2), 2.0, Dropouts())
    adapter.attach()
    network = LoRANetwork({"lora_unet_x": adapter})
    optimizer: Optimizer = OPTIMIZERS[name](list(network.parameters()))
    x = torch.randn(8, 6)

    def step() -> None:
        optimizer.zero_grad()
        layer(x).square().sum().backward()
        optimizer.step()

    for _ in range(3):
        step()
    known: list[dict[str, Any]] = [dict(optimizer.state[p]) for p in network.parameters()]
    before = layer(x).detach()
    Growth(2, ((2, 4),)).grow([network], optimizer, 4)
    assert adapter.rank == 4
    assert torch.allclose(layer(x), before, atol=1e-6)
    for old, weight in zip(known, network.parameters(), strict=True):
        for key, value in optimizer.state[weight].items():
            if isinstance(value, torch.Tensor) and value.dim():
                assert torch.equal(value[tuple(slice(0, n) for n in old[key].shape)], old[key])
            else:
                assert value == old[key]
    step()
    assert adapter.lora_up[:, 2:].abs().sum() > 0
    assert adapter.lora_up[:, 2:].abs().max() < 0.05  # no leap for want of a second moment


def test_an_optimizer_that_cannot_grow_is_said() -> None:
    layer = nn.Linear(6, 5)
    network = LoRANetwork({"x": LoRA(layer, LoRA.factors(layer, 2), 2.0, Dropouts())})
    optimizer = torch.optim.SGD(list(network.parameters()), lr=1.0)
    for weight in network.parameters():
        optimizer.state[weight] = {"state1": torch.zeros(7)}
    with pytest.raises(ConfigError, match="cannot grow"):
        Growth(2, ((2, 4),)).grow([network], optimizer, 4)
