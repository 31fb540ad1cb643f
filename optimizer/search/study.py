"""Asking and telling: the campaign's Optuna study, as the dashboard shows it.

It holds what was decided; what to propose is drawn by `optimizer.search.proposer` from its trials alone, so that
nothing is lost by a kill.
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

_LEGACY = "constraints"  # the only form that optuna-dashboard 0.21 draws
_HOME = "home"  # attribute of a trial: the home that asked for it
_ELSEWHERE = "elsewhere"  # attribute of a trial that only holds the number of another home's run


Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


def _once_more(method: Callable[Arguments, Answer]) -> Callable[Arguments, Answer]:
    """Do it again if the database went away in the middle: all that the study is told may be told twice."""

    @functools.wraps(method)
    def patient(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Answer:
        try:
            return method(*args, **kwargs)
        except (StorageInternalError, OperationalError):
            return method(*args, **kwargs)

    return patient


@dataclass(frozen=True)
class Proposal:
    """What to try: the number of its trial, and the searched parameters.

    Attributes:
        home: identity of the home that asked; None for trials of earlier versions.
    """

    number: int
    parameters: Parameters
    home: str | None = None


class CampaignStudy:
    """One campaign's study. Each process opens its own; who asks is `alone`."""

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
        """Create the study of a campaign, or load it.

        Args:
            name: the campaign's.
            storage_url: SQLAlchemy URL of Optuna's tables.
            space: what is searched.
            sampler: ``model``, ``tpe``, ``gp`` or ``random``.
            seed: of the search.
            connect: makes a connection to the database, for one that may have to be started first.

        Raises:
            ConfigError: no such sampler, or the campaign has searched other kinds of values before.
        """
        proposer = Proposer(space, sampler, seed)
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # else each ask announces its shadow study
        storage = RDBStorage(storage_url, engine_kwargs=_engine(storage_url, connect))
        study = optuna.create_study(
            study_name=name,
            storage=storage,
            direction="maximize",
            load_if_exists=True,
            sampler=RandomSampler(seed=seed),  # never used: all values are fixed before the ask
        )
        _check_unchanged(study, space)
        return cls(study, storage, space, proposer)

    def close(self) -> None:
        """Give the connections back."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    @_once_more
    def ask(
        self, suggested: Parameters | None = None, surrogate: Surrogate | None = None, home: str | None = None
    ) -> Proposal:
        """Open the next trial.

        The same past gives the same proposal, whoever asks. Draws that break a hard rule or repeat an
        earlier trial are drawn again.

        Args:
            suggested: searched parameters to run; those left out are chosen by the sampler.
            surrogate: what is known so far; the sampler ``model`` proposes by it.
            home: identity of the home that asks.

        Raises:
            ConfigError: the suggestion lies outside the search space, or the rules leave nothing of it.
        """
        problems = self._space.problems(suggested or {})
        if problems:
            raise ConfigError(f"a suggested setting cannot run: {'; '.join(problems)}; change it or the search space")
        complete = suggested is not None and set(suggested) == set(self._space.names)
        drawn = {} if complete else self._proposer.draw(self._trials(), surrogate)
        # One write holds all: a kill leaves nothing half chosen, and nobody else can take what was drawn here.
        opened = create_trial(
            state=TrialState.RUNNING,
            params={**drawn, **(suggested or {})},
            distributions=self._space.distributions,
            user_attrs={} if home is None else {_HOME: home},
        )
        trial_id = self.storage.create_new_trial(self._study_id, template_trial=opened)
        trial = self.storage.get_trial(trial_id)
        return Proposal(trial.number, dict(trial.params), home)

    @_once_more
    def skip(self, taken: Container[int]) -> None:
        """Use up the next numbers while runs of other homes have them.

        A failed trial without values takes each number, so that the number of a run stays the number of its trial.
        The sampler learns nothing from such a trial.
        """
        number = len(self._trials())
        while number in taken:
            place = create_trial(state=TrialState.FAIL, user_attrs={_ELSEWHERE: True})
            self.storage.create_new_trial(self._study_id, template_trial=place)
            number += 1

    @_once_more
    def give_up(self, number: int) -> None:
        """End an open trial whose number a run of another home has taken."""
        trial = self._frozen(number)
        if not trial.state.is_finished():
            self._note(trial, _ELSEWHERE, True)
            self.study.tell(number, state=TrialState.FAIL)

    @_once_more
    def holds(self, number: int) -> bool:
        """Return whether the run of this number is a trial of this study, not one of another home's study."""
        trials = self._trials()
        return number < len(trials) and not _is_elsewhere(trials[number])

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for the other processes of this campaign that are in here, and keep them out; not to be nested.

        A server frees what a dead process held. SQLite has no such lock: one process at a time must use it.
        """
        if self.storage.engine.dialect.name != "postgresql":
            yield
            return
        key = {"name": f"pixelloop/{self.study.study_name}"}
        with self.storage.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("select pg_advisory_lock(hashtextextended(:name, 0))"), key)
            try:
                yield
            finally:
                with contextlib.suppress(DBAPIError):  # gone with its server
                    connection.execute(text("select pg_advisory_unlock(hashtextextended(:name, 0))"), key)

    @_once_more
    def running(self) -> list[Proposal]:
        """Trials that were asked for and have not ended, in order: what a restarted campaign goes on with."""
        return [self._reopened(t) for t in self._trials(TrialState.RUNNING)]

    @_once_more
    def is_open(self, number: int) -> bool:
        """Whether a trial has not ended."""
        return not self._frozen(number).state.is_finished()

    @_once_more
    def untried(self, settings: Sequence[Parameters]) -> list[Parameters]:
        """Those of the settings that no trial has had yet."""
        past = [t.params for t in self._trials() if not _is_elsewhere(t)]
        return [s for s in settings if not any(all(p.get(k) == v for k, v in s.items()) for p in past)]

    @_once_more
    def refuse(self, number: int, verdict: GateVerdict) -> None:
        """End a trial that the gate does not let run; telling it twice changes nothing."""
        trial = self._frozen(number)
        if trial.state.is_finished():
            return
        for key, value in (("gate", verdict.rule), ("reason", verdict.reason), ("p_fail", verdict.p_fail)):
            self._note(trial, key, value)
        # A repeat of a good run is no bad setting: it must not push the sampler away from there.
        self._constrain(trial, -VIOLATION if verdict.rule == GateRule.KNOWN_RESULT else VIOLATION)
        self.study.tell(number, state=TrialState.PRUNED)

    @_once_more
    def report(self, number: int, epoch: int, quality: float) -> None:
        """Add an epoch's quality to the trial's learning curve; an epoch told before stays as it is."""
        trial = self._frozen(number)
        if not trial.state.is_finished() and epoch not in trial.intermediate_values:
            optuna.Trial(self.study, self.trial_id(number)).report(quality, epoch)

    @_once_more
    def finish(self, number: int, outcome: Outcome, quality: float | None) -> None:
        """End a trial that ran; telling the same end twice changes nothing.

        Raises:
            TrialError: the trial has ended in another way before.
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
        if state is not TrialState.FAIL:
            self._constrain(trial, -VIOLATION if state is TrialState.COMPLETE else VIOLATION)
        self.study.tell(number, value, state=state)

    @_once_more
    def note(self, number: int, key: str, value: Any) -> None:
        """Keep a JSON value on an open trial, for the dashboard."""
        self._note(self._frozen(number), key, value)

    @_once_more
    def trial_id(self, number: int) -> int:
        """Optuna's own id of a trial.

        Raises:
            NotFoundError: there is no such trial.
        """
        try:
            return self.storage.get_trial_id_from_study_id_trial_number(self._study_id, number)
        except KeyError:
            raise NotFoundError(f"study {self.study.study_name} has no trial {number}: see its trials") from None

    def warm_start(self, history: Sequence[RunHistory]) -> int:
        """Let the sampler learn from runs of other studies; they stay out of the visible study.

        Args:
            history: runs on the same base model and data set (see `optimizer.history.related`); others
                are on another scale of quality and would mislead.

        Returns:
            How many count: those that lie inside today's search space, the newest 300.
        """
        return self._proposer.adopt(history)

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or None)

    def _frozen(self, number: int) -> FrozenTrial:
        return self.storage.get_trial(self.trial_id(number))

    def _reopened(self, trial: FrozenTrial) -> Proposal:
        """An open trial with all its values: a kill may have come between the ask and the last of them."""
        again = optuna.Trial(self.study, self.trial_id(trial.number))
        values = {n: _suggest(again, n, d) for n, d in self._space.distributions.items()}
        return Proposal(trial.number, values, trial.user_attrs.get(_HOME))

    def _note(self, trial: FrozenTrial, key: str, value: Any) -> None:
        # The trial as it was read before: each reading of an open trial costs as much as a write.
        if trial.user_attrs.get(key) != value:
            self.storage.set_trial_user_attr(trial._trial_id, key, value)

    def _constrain(self, trial: FrozenTrial, violation: float) -> None:
        if CONSTRAINT not in trial.constraints:
            optuna.Trial(self.study, trial._trial_id).set_constraint(CONSTRAINT, violation)
        self.storage.set_trial_system_attr(trial._trial_id, _LEGACY, [violation])


def _is_elsewhere(trial: FrozenTrial) -> bool:
    return _ELSEWHERE in trial.user_attrs


def _check_unchanged(study: optuna.Study, space: Space) -> None:
    """Optuna lets a span move, but not a parameter change its kind, scale or choices within a study."""
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
    # A training epoch is long enough for the server to drop an idle connection.
    settings: dict[str, Any] = {"pool_pre_ping": True}
    if not url.startswith("sqlite"):
        settings["pool_size"] = 2
    return settings if connect is None else {**settings, "creator": connect}


def _ending(outcome: Outcome, quality: float | None) -> tuple[TrialState, float | None]:
    """State and value of an ended trial. FAIL tells the sampler nothing: the setting may come again."""
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
