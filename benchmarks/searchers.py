"""The opponents: Optuna's samplers on a replayed table, as their user would run them.

Each is told a penalty for failures, the worst quality finished so far: none of them learns from a failed
trial, and GPSampler would walk into the same hole for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler

from benchmarks.replay import Replay
from optimizer.search.space import numeric
from schema.parameters import Parameters, ParameterValue


@dataclass(frozen=True)
class Done:
    """A trial that was paid for.

    Attributes:
        setting: what was tried.
        quality: of its best checkpoint; None if it failed.
        cost: in full runs.
        failed: it broke.
    """

    setting: Parameters
    quality: float | None
    cost: float
    failed: bool


Searcher = Callable[[Replay, int, int], list[Done]]
"""Search a replayed table with a seed and a number of trials."""


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


def _median() -> BasePruner:
    return MedianPruner(n_startup_trials=5, n_warmup_steps=2)


def opponent(sampler: Callable[[int], BaseSampler], pruner: Callable[[], BasePruner] = NopPruner) -> Searcher:
    """A searcher that runs an Optuna study."""

    def search(replay: Replay, seed: int, budget: int) -> list[Done]:
        study = optuna.create_study(direction="maximize", sampler=sampler(seed), pruner=pruner())
        asked = {name: _ordered(d) for name, d in replay.space.distributions.items()}
        return [_trial(study, asked, replay) for _ in range(budget)]

    return search


OPPONENTS: dict[str, Searcher] = {
    "random": opponent(_random),
    "tpe": opponent(_tpe),
    "gp": opponent(_gp),
    "tpe+median": opponent(_tpe, _median),
}


def _trial(study: optuna.Study, asked: Mapping[str, BaseDistribution], replay: Replay) -> Done:
    trial = study.ask(dict(asked))
    setting = {name: _plain(trial.params[name], d) for name, d in replay.space.distributions.items()}
    ran = replay.run(setting)
    for step, quality in enumerate(ran.curve, start=1):
        trial.report(float(quality), step)
        if step < ran.total and trial.should_prune():
            # A pruned run has its checkpoints like any other; the sampler learns its last value.
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return Done(setting, float(ran.curve[:step].max()), step / ran.total, False)
    worst = min((t.value for t in study.get_trials(deepcopy=False) if t.value is not None), default=0.0)
    study.tell(trial, worst if ran.quality is None else ran.quality)
    return Done(setting, ran.quality, ran.cost, ran.failed)


def _ordered(d: BaseDistribution) -> BaseDistribution:
    """Choices that are numbers by their place, so that a sampler knows their order."""
    return IntDistribution(0, len(d.choices) - 1) if isinstance(d, CategoricalDistribution) and numeric(d) else d


def _plain(value: ParameterValue, d: BaseDistribution) -> ParameterValue:
    if isinstance(d, CategoricalDistribution) and numeric(d) and isinstance(value, int):
        found: ParameterValue = d.choices[value]
        return found
    return value
