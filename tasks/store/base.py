"""The store: what every adapter promises."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, Protocol

from schema.base import Frozen
from schema.errors import ConfigError, NotFoundError, NumberTakenError
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.parameters import ParameterValue, parse_value
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, RunHistory, TrainingRun


class CampaignRecord(Frozen):
    """A campaign as the store keeps it."""

    name: str
    settings: dict[str, Any]
    status: str
    end_reason: str | None = None
    created_at: datetime
    finished_at: datetime | None = None


class EpochColours(Frozen):
    """How true an epoch's colours were, 0-100; None where no picture promised or showed such a colour."""

    epoch_number: int
    colour: float | None = None
    background_accuracy: float | None = None
    hair_accuracy: float | None = None
    crown_accuracy: float | None = None


class Condition(Frozen):
    """One condition on a parameter: the small vocabulary that every adapter can answer."""

    parameter: str
    operator: Literal["==", "!=", "<", "<=", ">", ">="]
    value: ParameterValue

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``network_dim > 32``.

        Raises:
            ConfigError: not of this form, or an unknown parameter.
        """
        match = re.fullmatch(r"\s*(\w+)\s*(==|!=|<=|>=|<|>)\s*(.+?)\s*", text)
        if match is None:
            raise ConfigError(f"write a condition as 'network_dim > 32', but got {text!r}")
        name, operator, value = match.groups()
        return cls(parameter=name, operator=operator, value=parse_value(name, value))


class Store(Protocol):
    """Keeps campaigns, runs, epochs and findings.

    Safe from several processes and threads. Every save is an upsert by the record's own identity:
    replaying one changes nothing. Raises StoreUnavailableError where a later try may work, StoreError
    where it will not, NotFoundError for what does not exist.
    """

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign; it counts as finished from the first save with a reason to end."""

    def campaigns(self) -> list[CampaignRecord]:
        """All campaigns, oldest first."""

    def save_run(self, run: TrainingRun) -> None:
        """Insert or replace a run."""

    def add_run(self, run: TrainingRun) -> None:
        """Insert a run whose number must be free in its campaign; NumberTakenError where another run has it."""

    def save_epoch(self, epoch: EpochResult) -> None:
        """Insert or replace an epoch of a run that is in the store."""

    def run(self, campaign: str, number: int) -> TrainingRun:
        """One run."""

    def runs(self, campaign: str | None = None) -> list[TrainingRun]:
        """Runs of one campaign or of all, oldest first."""

    def find_runs(self, where: Sequence[Condition]) -> list[TrainingRun]:
        """Runs whose parameters meet every condition; numbers compare as numbers."""

    def epochs(self, run_uid: uuid.UUID) -> list[EpochResult]:
        """Epochs of a run in order."""

    def colour_by_epoch(self, run_uid: uuid.UUID) -> list[EpochColours]:
        """Colour accuracy of a run's epochs in order."""

    def history(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs with their epochs, oldest first."""

    def save_refusal(self, refusal: RefusedProposal) -> None:
        """Insert or replace a refused proposal."""

    def refusals(self, campaign: str) -> list[RefusedProposal]:
        """What the gate refused, in order."""

    def save_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Make these the campaign's proposed experiments; those no longer proposed are dropped."""

    def hypotheses(self, campaign: str) -> list[Hypothesis]:
        """Next experiments, the first priority first."""

    def save_analysis(self, analysis: Analysis) -> None:
        """Keep an analysis; the newest of a campaign is the one that counts."""

    def latest_analysis(self, campaign: str) -> Analysis | None:
        """The newest analysis, if there is one."""

    def save_principle(self, principle: Principle) -> None:
        """Insert or replace a principle."""

    def principles(self) -> list[Principle]:
        """All principles of any scope, in the order in which they were found."""

    def save_parameter_analysis(self, run_uid: uuid.UUID, effects: Sequence[ParameterEffect]) -> None:
        """Keep what the parameters did as it was known after a run that is in the store."""

    def parameter_analysis(self, run_uid: uuid.UUID) -> list[ParameterEffect]:
        """What was known of the parameters after a run; nothing where nothing was kept."""

    def save_rating(self, rating: HumanRating) -> None:
        """Insert or replace what a person says of an epoch of a run that is in the store."""

    def ratings(self, run_uid: uuid.UUID) -> list[HumanRating]:
        """What people said of a run's epochs, in order."""

    def save_vote(self, vote: PictureVote) -> None:
        """Insert or replace a person's choice between pictures of two runs that are in the store."""

    def votes(self, run_uid: uuid.UUID) -> list[PictureVote]:
        """Choices in which a run is the first of the two, by picture."""

    def save_artifact(self, artifact: Artifact) -> None:
        """Insert or replace where a file of a run lies."""

    def artifacts(self, run_uid: uuid.UUID) -> list[Artifact]:
        """Files of a run, by epoch and path."""

    def close(self) -> None:
        """Let go of connections."""


def refuse_taken(store: Store, run: TrainingRun) -> None:
    """Check that no other run of the campaign has this run's number.

    Raises:
        NumberTakenError: another one has it.
    """
    try:
        other = store.run(run.campaign, run.number)
    except NotFoundError:
        return
    if other.uid != run.uid:
        raise NumberTakenError(f"campaign {run.campaign} has a run {run.number} of another home already")
