"""SMAC3 on a replayed table, where it is installed: pip install -r benchmarks/requirements.txt"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from benchmarks.replay import Replay
from benchmarks.searchers import Done
from optimizer.search.space import numeric


def installed() -> bool:
    """Whether SMAC3 can be imported here."""
    return importlib.util.find_spec("smac") is not None


def search(replay: Replay, seed: int, budget: int) -> list[Done]:
    """Search with SMAC3's facade for expensive functions, told the worst quality so far for a failure."""
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    with tempfile.TemporaryDirectory() as folder:
        scenario = Scenario(
            _space(replay, seed), deterministic=True, n_trials=budget, seed=seed, output_directory=Path(folder)
        )
        facade = HyperparameterOptimizationFacade(scenario, _never, overwrite=True, logging_level=False)
        done: list[Done] = []
        while len(done) < budget:
            asked = facade.ask()
            setting = {name: _plain(asked.config[name]) for name in replay.space.distributions}
            ran = replay.run(setting)
            done.append(Done(setting, ran.quality, ran.cost, ran.failed))
            worst = min((d.quality for d in done if d.quality is not None), default=0.0)
            facade.tell(asked, TrialValue(cost=100.0 - (worst if ran.quality is None else ran.quality)))
    return done


def _never(config: object, seed: int) -> float:
    """SMAC3 insists on a function, but is asked and told here."""
    raise NotImplementedError


def _space(replay: Replay, seed: int) -> Any:
    from ConfigSpace import ConfigurationSpace

    space = ConfigurationSpace(seed=seed)
    for name, distribution in replay.space.distributions.items():
        space.add(_parameter(name, distribution))
    return space


def _parameter(name: str, d: BaseDistribution) -> Any:
    from ConfigSpace import Categorical, Float, Integer

    if isinstance(d, CategoricalDistribution):
        return Categorical(name, list(d.choices), ordered=numeric(d))
    if isinstance(d, IntDistribution):
        return Integer(name, (d.low, d.high), log=d.log)
    assert isinstance(d, FloatDistribution)
    return Float(name, (d.low, d.high), log=d.log)


def _plain(value: Any) -> Any:
    """A value of numpy's as Python's own."""
    return value.item() if hasattr(value, "item") else value
