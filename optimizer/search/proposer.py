"""The sampler's next choice.

``model`` asks the surrogate, the same that the gate judges by. Optuna's samplers see a *shadow* study in
memory that is rebuilt at each draw. It holds the campaign's trials and past campaigns' runs, and tells each
sampler of refusals and failures in the form that it learns from: they all ignore failed trials, and GPSampler
also ignores pruned ones, to the point of proposing the same bad setting for ever.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, RandomSampler, TPESampler
from optuna.storages import InMemoryStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import qmc

from optimizer.history import best_quality, failed, informative
from optimizer.search.acquisition import Acquisition
from optimizer.search.space import Space
from optimizer.search.surrogate import Surrogate
from schema.errors import ConfigError
from schema.parameters import Parameters
from schema.runs import RunHistory
from schema.states import GateRule

CONSTRAINT = "fails"
"""Optuna's constraint on every ended trial: above 0 for settings that failed or were refused."""

VIOLATION = 0.5
"""Size of the constraint where it is broken; kept ones have it negative."""

_STARTUP = 6
_STARTUP_MODEL = 4
_GOOD = 5
_SOBOL = 6  # log2 of the points that fill the space at the start
_REDRAWS = 16
_ADOPTED = 300


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=False, n_startup_trials=_STARTUP, constant_liar=True)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


MODEL = "model"
_SAMPLERS = {"tpe": _tpe, "gp": _gp, "random": _random}


class Proposer:
    """Draws settings; remembers only the past campaigns it was given."""

    def __init__(self, space: Space, sampler: str, seed: int) -> None:
        """Pick the sampler.

        Raises:
            ConfigError: it is none of ``model``, ``tpe``, ``gp``, ``random``.
        """
        if sampler not in (MODEL, *_SAMPLERS):
            raise ConfigError(f"sampler must be one of {', '.join((MODEL, *_SAMPLERS))}, but got {sampler!r}")
        self._space = space
        self._sampler = sampler
        self._seed = seed
        self._adopted: list[FrozenTrial] = []

    def adopt(self, history: Sequence[RunHistory]) -> int:
        """Learn from runs of other campaigns.

        Returns:
            How many count: those that lie inside today's search space, the newest 300.
        """
        adopted = [self._adopt(h) for h in informative(history)]
        self._adopted = [t for t in adopted if t is not None][-_ADOPTED:]
        return len(self._adopted)

    def draw(self, trials: Sequence[FrozenTrial], surrogate: Surrogate | None) -> Parameters:
        """The sampler's next choice that keeps the rules and is no repeat.

        The same trials and the same surrogate give the same choice, whoever asks.

        Args:
            trials: all of the campaign's study.
            surrogate: what is known; the sampler ``model`` begins without it, the others never look.

        Raises:
            ConfigError: the rules leave nothing of the search space.
        """
        known = {self._space.key(self._space.settled(t.params)) for t in trials if _decided(t)}
        if self._sampler == MODEL:
            points = self._by_model(trials, surrogate)
        else:
            shadow = self._shadow(trials)
            points = self._startup(len(trials)) if self._few_known(shadow) else []
        for setting in map(self._space.at, points):
            if self._usable(setting, known):
                return setting
        drawn = {} if self._sampler == MODEL else self._by_optuna(shadow, known)
        return drawn or self._any_usable(len(trials), known)

    def _by_optuna(self, shadow: optuna.Study, known: set[str]) -> Parameters:
        """What the sampler proposes to its shadow; nothing if that is always a repeat or breaks a rule."""
        for _ in range(_REDRAWS):
            asked = shadow.ask(self._space.distributions)
            if self._usable(asked.params, known):
                return dict(asked.params)
            self._dismiss(shadow, asked)
        return {}

    def _by_model(self, trials: Sequence[FrozenTrial], surrogate: Surrogate | None) -> Sequence[NDArray[np.float64]]:
        """Points of the unit cube, the most promising first."""
        number = len(trials)
        if surrogate is None or surrogate.weight < _STARTUP_MODEL or surrogate.quality is None:
            points = self._startup(number)
            return points if number else [self._unit(self._space.likely()), *points]
        # What runs, and what was refused, is taken as if it had come out as expected: no twins beside it.
        open_now = [t.params for t in trials if _open(t) and self._inside(t.params)]
        running = np.array([self._space.encode(self._space.settled(p)) for p in open_now])
        rng = np.random.default_rng([self._seed, number])
        good = [i for i in np.argsort(-surrogate.worth)[:_GOOD] if np.isfinite(surrogate.worth[i])]
        return list(Acquisition(surrogate, running, surrogate.best).ranked(surrogate.units[good], rng))

    def _unit(self, searched: Parameters) -> NDArray[np.float64]:
        return np.array([self._space.unit(name, searched[name]) for name in self._space.names])

    def _dismiss(self, shadow: optuna.Study, asked: optuna.Trial) -> None:
        """Make the sampler look elsewhere."""
        if self._sampler == "gp":
            shadow.tell(asked, _worst(shadow.get_trials(deepcopy=False)))
        else:
            asked.set_constraint(CONSTRAINT, VIOLATION)
            shadow.tell(asked, state=TrialState.PRUNED)

    def _few_known(self, shadow: optuna.Study) -> bool:
        return self._sampler != "random" and len(shadow.get_trials(deepcopy=False)) < _STARTUP

    def _startup(self, number: int) -> list[NDArray[np.float64]]:
        """Points that fill the space evenly; each trial takes its own of one sequence."""
        sobol = qmc.Sobol(len(self._space.names), rng=np.random.default_rng(self._seed))
        return list(sobol.random_base2(_SOBOL)[number % 2**_SOBOL :][:_REDRAWS])

    def _any_usable(self, number: int, known: set[str]) -> Parameters:
        """A random setting that keeps the rules, a new one if there is one.

        Raises:
            ConfigError: the rules leave nothing of the search space.
        """
        rng = np.random.default_rng([self._seed, number])
        allowed = [s for s in map(self._space.at, rng.random((1000, len(self._space.names)))) if self._usable(s, set())]
        if not allowed:
            rules = ", ".join(f"'{rule}'" for rule in self._space.rules)
            raise ConfigError(f"the rules {rules} leave nothing of the search space: loosen them or widen the space")
        return next((s for s in allowed if self._usable(s, known)), allowed[0])

    def _usable(self, searched: Parameters, known: set[str]) -> bool:
        if self._space.key(self._space.settled(searched)) in known:
            return False
        return not self._space.violations(self._space.complete(searched))

    def _shadow(self, trials: Sequence[FrozenTrial]) -> optuna.Study:
        """The study the sampler sees: past campaigns first, then this one's trials."""
        storage = InMemoryStorage()
        seed = int(np.random.SeedSequence([self._seed, len(trials)]).generate_state(1)[0])
        shadow = optuna.create_study(storage=storage, direction="maximize", sampler=_SAMPLERS[self._sampler](seed))
        seen = [*self._adopted, *(t for t in trials if _tells(t) and self._inside(t.params))]
        worst = _worst(seen)
        for trial in seen:
            # GPSampler reads COMPLETE trials only: what failed becomes as bad as the worst seen, else it asks again.
            bad = trial.state is TrialState.PRUNED
            value, state = (worst, TrialState.COMPLETE) if bad and self._sampler == "gp" else (trial.value, trial.state)
            shadow.add_trial(_told(self._space.distributions, trial.params, state, value, self._sampler != "gp"))
        return shadow

    def _inside(self, searched: Parameters) -> bool:
        """False for trials from before an edit of the search space, and for half opened ones."""
        return set(searched) == set(self._space.names) and not self._space.problems(searched)

    def _adopt(self, run: RunHistory) -> FrozenTrial | None:
        # Optuna models jointly only what every past trial has, in the same distributions: re-declare it.
        settled = self._space.searched(self._space.filled(run.run.all_parameters))
        if len(settled) < len(self._space.names) or self._space.problems(settled):
            return None
        good = not failed(run, 0.0)
        return _told(
            self._space.distributions, settled, TrialState.COMPLETE if good else TrialState.PRUNED, best_quality(run)
        )


def _tells(trial: FrozenTrial) -> bool:
    """True for trials the sampler learns from; a refused repeat would only be counted twice."""
    return trial.state is not TrialState.FAIL and trial.user_attrs.get("gate") != GateRule.KNOWN_RESULT


def _open(trial: FrozenTrial) -> bool:
    """True for what runs, and for what the gate refused as bad."""
    refused = trial.state is TrialState.PRUNED and trial.user_attrs.get("gate") not in (None, GateRule.KNOWN_RESULT)
    return trial.state is TrialState.RUNNING or refused


def _decided(trial: FrozenTrial) -> bool:
    """True where asking for the same again would bring nothing: a crash, though, says nothing of the setting."""
    return trial.state not in (TrialState.FAIL, TrialState.WAITING)


def _worst(trials: Sequence[FrozenTrial]) -> float:
    return min((t.value for t in trials if t.state is TrialState.COMPLETE and t.value is not None), default=0.0)


def _told(
    distributions: dict[str, BaseDistribution],
    params: Parameters,
    state: TrialState,
    value: float | None,
    constrained: bool = True,
) -> FrozenTrial:
    ended = state in (TrialState.COMPLETE, TrialState.PRUNED)
    violation = {CONSTRAINT: -VIOLATION if state is TrialState.COMPLETE else VIOLATION}
    return create_trial(
        state=state,
        params=params,
        distributions=distributions,
        value=value if state is TrialState.COMPLETE else None,
        constraints=violation if ended and constrained else None,
    )
