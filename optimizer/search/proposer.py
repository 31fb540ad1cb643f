"""Draw the next setting to try.

The sampler ``model`` uses the surrogate that the gate uses as well. Optuna's samplers see a *shadow* study in memory,
rebuilt for each draw from the campaign's trials and the runs of past campaigns. It presents refusals and failures
in the form that each sampler learns from: all of them ignore failed trials, and GPSampler also ignores pruned ones, so
that it would propose the same bad setting for ever.
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
"""Name of Optuna's constraint on every ended trial: above 0 for settings that failed or were refused."""

VIOLATION = 0.5
"""Value of the constraint where it is violated; its negative where it is met. Optuna only looks at the sign."""

_STARTUP = 6
"""Space-filling trials before Optuna's samplers choose. Chosen by hand."""

_STARTUP_MODEL = 4
"""Weight of past runs before the surrogate chooses. Eight needed more trials (benchmarks/RESULTS.md)."""

_GOOD = 5
"""Best runs to search around. Chosen by hand; the acquisition uses as many."""

_SOBOL = 6  # log2 of the number of space-filling points; far more than the start-up takes
_REDRAWS = 16
"""Draws before we give up on a sampler that repeats trials or breaks rules. Chosen by hand."""

_ADOPTED = 300
"""Newest runs of past campaigns to learn from, as many as the surrogate uses. It bounds the time of a draw."""


def _tpe(seed: int) -> BaseSampler:
    return TPESampler(seed=seed, multivariate=True, group=False, n_startup_trials=_STARTUP, constant_liar=True)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, n_startup_trials=_STARTUP, warn_independent_sampling=False)


def _random(seed: int) -> BaseSampler:
    return RandomSampler(seed=seed)


MODEL = "model"
_SAMPLERS = {"tpe": _tpe, "gp": _gp, "random": _random}


class Proposer:
    """Draw settings. The only state is the list of past runs given to `adopt`."""

    def __init__(self, space: Space, sampler: str, seed: int) -> None:
        """Choose the sampler.

        Raises:
            ConfigError: The sampler is not ``model``, ``tpe``, ``gp`` or ``random``.
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
            Number of runs used: the newest 300 that lie inside the current search space.
        """
        adopted = [self._adopt(h) for h in informative(history)]
        self._adopted = [t for t in adopted if t is not None][-_ADOPTED:]
        return len(self._adopted)

    def draw(self, trials: Sequence[FrozenTrial], surrogate: Surrogate | None) -> Parameters:
        """Draw the next setting that follows the rules and repeats no trial.

        If no new setting can be found, a repeat is drawn. The same trials and surrogate always give the same setting.

        Args:
            trials: All trials of the campaign's study.
            surrogate: Model of past runs for the sampler ``model``; None while there is none. Other samplers ignore it.

        Raises:
            ConfigError: No setting of the search space follows the rules.
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
        # Every candidate broke a rule or was a repeat, so fall back to other draws.
        drawn = {} if self._sampler == MODEL else self._by_optuna(shadow, known)
        return drawn or self._any_usable(len(trials), known)

    def _by_optuna(self, shadow: optuna.Study, known: set[str]) -> Parameters:
        """Draw from the shadow study; empty if every draw repeats a trial or breaks a rule."""
        for _ in range(_REDRAWS):
            asked = shadow.ask(self._space.distributions)
            if self._usable(asked.params, known):
                return dict(asked.params)
            self._dismiss(shadow, asked)
        return {}

    def _by_model(self, trials: Sequence[FrozenTrial], surrogate: Surrogate | None) -> Sequence[NDArray[np.float64]]:
        """Return points of the unit cube, the most promising first."""
        number = len(trials)
        if surrogate is None or surrogate.weight < _STARTUP_MODEL or surrogate.quality is None:
            points = self._startup(number)
            # The first trial is the setting most likely to work, so that there is a result to improve on.
            return points if number else [self._unit(self._space.likely()), *points]
        # Active and refused trials count as if they ended as expected. Otherwise parallel trials would be duplicates.
        open_now = [t.params for t in trials if _open(t) and self._inside(t.params)]
        running = np.array([self._space.encode(self._space.settled(p)) for p in open_now])
        rng = np.random.default_rng([self._seed, number])
        good = [i for i in np.argsort(-surrogate.levels)[:_GOOD] if np.isfinite(surrogate.levels[i])]
        return list(Acquisition(surrogate, running, surrogate.best).ranked(surrogate.units[good], rng))

    def _unit(self, searched: Parameters) -> NDArray[np.float64]:
        return np.array([self._space.unit(name, searched[name]) for name in self._space.names])

    def _dismiss(self, shadow: optuna.Study, asked: optuna.Trial) -> None:
        """End a draw that cannot be used as a failure, so that the sampler looks elsewhere."""
        if self._sampler == "gp":
            shadow.tell(asked, _worst(shadow.get_trials(deepcopy=False)))
        else:
            asked.set_constraint(CONSTRAINT, VIOLATION)
            shadow.tell(asked, state=TrialState.PRUNED)

    def _few_known(self, shadow: optuna.Study) -> bool:
        return self._sampler != "random" and len(shadow.get_trials(deepcopy=False)) < _STARTUP

    def _startup(self, number: int) -> list[NDArray[np.float64]]:
        """Return space-filling points. Each trial starts at its own place of one Sobol sequence."""
        sobol = qmc.Sobol(len(self._space.names), rng=np.random.default_rng(self._seed))
        return list(sobol.random_base2(_SOBOL)[number % 2**_SOBOL :][:_REDRAWS])

    def _any_usable(self, number: int, known: set[str]) -> Parameters:
        """Draw a random setting that follows the rules, preferably one that no trial had.

        Raises:
            ConfigError: None of 1000 random settings follows the rules.
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
        """Build the study that the sampler sees: runs of past campaigns, then this campaign's trials."""
        storage = InMemoryStorage()
        # A seed from the number of trials: a restarted campaign draws the same setting again.
        seed = int(np.random.SeedSequence([self._seed, len(trials)]).generate_state(1)[0])
        shadow = optuna.create_study(storage=storage, direction="maximize", sampler=_SAMPLERS[self._sampler](seed))
        seen = [*self._adopted, *(t for t in trials if _is_evidence(t) and self._inside(t.params))]
        worst = _worst(seen)
        for trial in seen:
            # GPSampler only reads COMPLETE trials. Failures get the worst observed value, or it would repeat them.
            bad = trial.state is TrialState.PRUNED
            value, state = (worst, TrialState.COMPLETE) if bad and self._sampler == "gp" else (trial.value, trial.state)
            shadow.add_trial(_as_trial(self._space.distributions, trial.params, state, value, self._sampler != "gp"))
        return shadow

    def _inside(self, searched: Parameters) -> bool:
        """Return False for trials from before a change of the search space, and for trials without all values."""
        return set(searched) == set(self._space.names) and not self._space.problems(searched)

    def _adopt(self, run: RunHistory) -> FrozenTrial | None:
        # Optuna only models parameters jointly that all trials have with the same distributions: declare them anew.
        settled = self._space.searched(self._space.filled(run.run.all_parameters))
        if len(settled) < len(self._space.names) or self._space.problems(settled):
            return None
        # Low quality is no failure here: the value itself tells the sampler.
        good = not failed(run, 0.0)
        return _as_trial(
            self._space.distributions, settled, TrialState.COMPLETE if good else TrialState.PRUNED, best_quality(run)
        )


def _is_evidence(trial: FrozenTrial) -> bool:
    """Return whether the sampler learns from a trial. A refused repeat would count its setting twice."""
    return trial.state is not TrialState.FAIL and trial.user_attrs.get("gate") != GateRule.KNOWN_RESULT


def _open(trial: FrozenTrial) -> bool:
    """Return whether a trial is active, or was refused by the gate as bad."""
    refused = trial.state is TrialState.PRUNED and trial.user_attrs.get("gate") not in (None, GateRule.KNOWN_RESULT)
    return trial.state is TrialState.RUNNING or refused


def _decided(trial: FrozenTrial) -> bool:
    """Return whether repeating a trial is pointless. A crash says nothing about the setting, so it may be repeated."""
    return trial.state not in (TrialState.FAIL, TrialState.WAITING)


def _worst(trials: Sequence[FrozenTrial]) -> float:
    return min((t.value for t in trials if t.state is TrialState.COMPLETE and t.value is not None), default=0.0)


def _as_trial(
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
