"""Wrap a campaign's Optuna study, which the dashboard shows.

The study records every decision. `optimizer.search.proposer` draws new settings from its trials alone, so a killed
process loses nothing.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Container, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    check_distribution_compatibility,
)
from optuna.exceptions import StorageInternalError
from optuna.samplers import RandomSampler
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from optimizer.search.proposer import CONSTRAINT, VIOLATION, Proposer
from optimizer.search.space import Space
from optimizer.search.surrogate import Surrogate
from schema.errors import ConfigError, NotFoundError, TrialError
from schema.findings import GateVerdict
from schema.parameters import Parameters, ParameterValue
from schema.runs import Outcome, RunHistory
from schema.states import GateRule

_LEGACY = "constraints"  # the only form of constraints that optuna-dashboard 0.21 shows
_HOME = "home"  # trial attribute: identity of the home that asked for it
_ELSEWHERE = "elsewhere"  # trial attribute: it only reserves the number of another home's run


Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def _retry_once(method: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Retry a method once if the database connection broke. Recording the same thing twice changes nothing.

    If `ask` is cut off after its write, the trial stays open, like that of a killed process.
    """

    @functools.wraps(method)
    def retrying(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        try:
            return method(*args, **kwargs)
        except (StorageInternalError, OperationalError):
            return method(*args, **kwargs)

    return retrying


@dataclass(frozen=True)
class Proposal:
    """Hold a setting to try: the number of its trial, and the searched parameters.

    Attributes:
        home: Identity of the home that asked for it; None for trials of earlier versions.
    """

    number: int
    parameters: Parameters
    home: str | None = None


class CampaignStudy:
    """Access the study of one campaign. Each process opens its own; hold `alone` while asking for a trial."""

    def __init__(self, study: optuna.Study, storage: RDBStorage, space: Space, proposer: Proposer) -> None:
        self.study = study
        self.storage = storage
        self._space = space
        self._proposer = proposer
        self._study_id = storage.get_study_id_from_name(study.study_name)

    @classmethod
    def open(
        cls,
        name: str,
        storage_url: str,
        space: Space,
        sampler: str,
        seed: int,
        connect: Callable[[], object] | None = None,
    ) -> CampaignStudy:
        """Open the study of a campaign, creating it if needed.

        Args:
            name: Name of the campaign.
            storage_url: SQLAlchemy URL of Optuna's tables.
            space: Search space.
            sampler: ``model``, ``tpe``, ``gp`` or ``random``.
            seed: Seed of the search.
            connect: Makes a connection to the database, if that may first have to be started.

        Raises:
            ConfigError: The sampler is unknown, or the campaign searched a parameter with other choices or on another
                scale before.
        """
        proposer = Proposer(space, sampler, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # otherwise each ask logs the creation of its shadow study
        storage = RDBStorage(storage_url, engine_kwargs=_engine(storage_url, connect))
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            sampler=RandomSampler(seed=seed),  # never used: all values are chosen before the trial opens
        )
        _check_unchanged(study, space)
        return cls(study, storage, space, proposer)

    def close(self) -> None:
        """Close all connections to the database."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @_retry_once
    def ask(
        self, suggested: Parameters | None = None, surrogate: Surrogate | None = None, home: str | None = None
    ) -> Proposal:
        """Open the next trial and return its proposal.

        The same trials always give the same proposal. Draws that break a hard rule or repeat an earlier
        trial are discarded.

        Args:
            suggested: Values of searched parameters to run. The sampler chooses the others.
            surrogate: Model of past runs, which the sampler ``model`` uses.
            home: Identity of the home that asks.

        Raises:
            ConfigError: The suggestion lies outside the search space, or no setting follows the rules.
        """
        problems = self._space.problems(suggested or {})
        if problems:
            raise ConfigError(f"a suggested setting cannot run: {'; '.join(problems)}; change it or the search space")
        complete = suggested is not None and set(suggested) == set(self._space.names)
        drawn = {} if complete else self._proposer.draw(self._trials(), surrogate)
        # A single write: a kill leaves no trial without values, and no other process can take the same draw.
        opened = create_trial(
            state=TrialState.RUNNING,
            params={**drawn, **(suggested or {})},
            distributions=self._space.distributions,
            user_attrs={} if home is None else {_HOME: home},
        )
        trial_id = self.storage.create_new_trial(self._study_id, template_trial=opened)
        trial = self.storage.get_trial(trial_id)
        return Proposal(trial.number, dict(trial.params), home)

    @_retry_once
    def skip(self, taken: Container[int]) -> None:
        """Reserve the next trial numbers as long as runs of other homes have them.

        Each number gets a failed trial without values, so that a run and its trial always have the same number.
        The sampler ignores such trials.

        Args:
            taken: Numbers of runs in the campaign.
        """
        number = len(self._trials())
        while number in taken:
            place = create_trial(state=TrialState.FAIL, user_attrs={_ELSEWHERE: True})
            self.storage.create_new_trial(self._study_id, template_trial=place)
            number += 1

    @_retry_once
    def give_up(self, number: int) -> None:
        """End an open trial, because a run of another home has its number."""
        trial = self._frozen(number)
        if not trial.state.is_finished():
            self._note(trial, _ELSEWHERE, True)
            self.study.tell(number, state=TrialState.FAIL)

    @_retry_once
    def holds(self, number: int) -> bool:
        """Return whether a number belongs to a trial of this study, not to a run of another home."""
        trials = self._trials()
        return number < len(trials) and not _is_elsewhere(trials[number])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the campaign's lock, so that one process at a time asks for trials. Do not nest it.

        Postgres releases the lock of a dead process. SQLite has no such lock, so only one process may use it.
        """
        if self.storage.engine.dialect.name != "postgresql":
            yield
            return
        key = {"name": f"pixelloop/{self.study.study_name}"}
        with self.storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            # A session lock in autocommit mode. In a transaction, one would stay open while a proposal is drawn.
            connection.execute(text("select pg_advisory_lock(hashtextextended(:name, 0))"), key)
            try:
                yield
            finally:
                with contextlib.suppress(DBAPIError):  # the server is gone, and the lock with it
                    connection.execute(text("select pg_advisory_unlock(hashtextextended(:name, 0))"), key)

    @_retry_once
    def running(self) -> list[Proposal]:
        """Return the open trials in order. A restarted campaign continues these."""
        return [self._reopened(t) for t in self._trials(TrialState.RUNNING)]

    @_retry_once
    def is_open(self, number: int) -> bool:
        """Return whether a trial has not ended yet."""
        return not self._frozen(number).state.is_finished()

    @_retry_once
    def untried(self, settings: Sequence[Parameters]) -> list[Parameters]:
        """Return the settings that no trial has used yet."""
        past = [t.params for t in self._trials() if not _is_elsewhere(t)]
        return [s for s in settings if not any(all(p.get(k) == v for k, v in s.items()) for p in past)]

    @_retry_once
    def refuse(self, number: int, verdict: GateVerdict) -> None:
        """End a trial that the gate refused. Repeating the call changes nothing."""
        trial = self._frozen(number)
        if trial.state.is_finished():
            return
        for key, value in (("gate", verdict.rule), ("reason", verdict.reason), ("p_fail", verdict.p_fail)):
            self._note(trial, key, value)
        # Repeating a known result does not make a setting bad, so it must not push the sampler away.
        self._constrain(trial, -VIOLATION if verdict.rule == GateRule.KNOWN_RESULT else VIOLATION)
        self.study.tell(number, state=TrialState.PRUNED)

    @_retry_once
    def report(self, number: int, epoch: int, quality: float) -> None:
        """Add an epoch's quality (0-100) to the learning curve of an open trial. A value once reported is final."""
        trial = self._frozen(number)
        if not trial.state.is_finished() and epoch not in trial.intermediate_values:
            optuna.Trial(self.study, self.trial_id(number)).report(quality, epoch)

    @_retry_once
    def finish(self, number: int, outcome: Outcome, quality: float | None) -> None:
        """End a trial that ran. Repeating the call changes nothing.

        Raises:
            TrialError: The trial already ended with another state or quality.
        """
        state, value = _ending(outcome, quality)
        trial = self._frozen(number)
        if trial.state.is_finished():
            if trial.state is state and (value is None or math.isclose(value, trial.value or 0.0, abs_tol=1e-6)):
                return
            raise TrialError(
                f"trial {number} ended before as {trial.state.name} ({trial.value}) and cannot become {state.name} "
                f"({value}): Optuna keeps the first; look which process told it"
            )
        self._note(trial, "outcome", str(outcome))
        # Samplers ignore failed trials, so these need no constraint.
        if state is not TrialState.FAIL:
            self._constrain(trial, -VIOLATION if state is TrialState.COMPLETE else VIOLATION)
        self.study.tell(number, value, state=state)

    @_retry_once
    def note(self, number: int, key: str, value: Any) -> None:
        """Save a JSON value on an open trial, for the dashboard."""
        self._note(self._frozen(number), key, value)

    @_retry_once
    def trial_id(self, number: int) -> int:
        """Return Optuna's own id of a trial.

        Raises:
            NotFoundError: There is no such trial.
        """
        try:
            return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        except KeyError:
            raise NotFoundError(f"study {self.study.study_name} has no trial {number}: see its trials") from None

    def warm_start(self, history: Sequence[RunHistory]) -> int:
        """Let the sampler learn from runs of other campaigns, without adding them to the study.

        Args:
            history: Runs on the same base model and data set (see `optimizer.history.related`). Qualities
                of other runs are not comparable and would mislead the sampler.

        Returns:
            Number of runs used: the newest 300 that lie inside the current search space.
        """
        return self._proposer.adopt(history)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self.trial_id(number))

    def _reopened(self, trial: FrozenTrial) -> Proposal:
        """Return an open trial with all its values, suggesting those that it lacks.

        Trials of earlier versions may lack values: they wrote one at a time, and a kill could come in between.
        """
        again = optuna.Trial(self.study, self.trial_id(trial.number))
        values = {n: _suggest(again, n, d) for n, d in self._space.distributions.items()}
        return Proposal(trial.number, values, trial.user_attrs.get(_HOME))

    def _note(self, trial: FrozenTrial, key: str, value: Any) -> None:
        # Compare with the trial as read before: reading an open trial again costs as much as a write.
        if trial.user_attrs.get(key) != value:
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def _constrain(self, trial: FrozenTrial, violation: float) -> None:
        if CONSTRAINT not in trial.constraints:
            optuna.Trial(self.study, trial._trial_id).set_constraint(CONSTRAINT, violation)
        self.storage.set_trial_system_attr(trial._trial_id, _LEGACY, [violation])


def _is_elsewhere(trial: FrozenTrial) -> bool:
    return _ELSEWHERE in trial.user_attrs


def _check_unchanged(study: optuna.Study, space: Space) -> None:
    """Raise a `ConfigError` if a parameter changed its type, scale or choices. Optuna only lets ranges change."""
    for trial in study.get_trials(deepcopy=False):
        for name in trial.distributions.keys() & space.distributions.keys():
            try:
                check_distribution_compatibility(trial.distributions[name], space.distributions[name])
            except ValueError:
                raise ConfigError(
                    f"campaign {study.study_name} has searched {name} with other choices or on another scale before: "
                    "take the change back, or give the campaign a new name"
                ) from None


def _engine(url: str, connect: Callable[[], object] | None) -> dict[str, Any]:
    # The server may drop an idle connection during a long training epoch, so test connections before use.
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if not url.startswith("sqlite"):
        settings["pool_size"] = 2
    return settings if connect is None else {**settings, "creator": connect}


def _ending(outcome: Outcome, quality: float | None) -> tuple[TrialState, float | None]:
    """Return the state and value of an ended trial. Samplers ignore FAIL, so the setting may be proposed again."""
    if outcome.blames_parameters:
        return TrialState.PRUNED, None
    if outcome.failed or quality is None:
        return TrialState.FAIL, None
    return TrialState.COMPLETE, quality


def _suggest(trial: optuna.Trial, name: str, d: BaseDistribution) -> ParameterValue:
    value: ParameterValue
    if isinstance(d, FloatDistribution):
        value = trial.suggest_float(name, d.low, d.high, step=d.step, log=d.log)
    elif isinstance(d, IntDistribution):
        value = trial.suggest_int(name, d.low, d.high, step=d.step, log=d.log)
    elif isinstance(d, CategoricalDistribution):
        value = trial.suggest_categorical(name, d.choices)
    return value
