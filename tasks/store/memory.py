"""The store in memory: what the outbox answers from while the database is away."""

from __future__ import annotations

import operator
import threading
import uuid
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from schema.errors import NotFoundError
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, RunHistory, TrainingRun
from schema.states import HypothesisState
from tasks.store.base import CampaignRecord, Condition, EpochColours, refuse_taken
from tasks.store.tables import clean

Record = TypeVar("Record", TrainingRun, EpochResult)
Item = TypeVar("Item")
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip


class MemoryStore:
    """Implements `tasks.store.base.Store`; forgets everything with the process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._campaigns: dict[str, CampaignRecord] = {}
        self._runs: dict[uuid.UUID, TrainingRun] = {}
        self._epochs: dict[uuid.UUID, dict[uuid.UUID, EpochResult]] = {}
        self._refusals: dict[uuid.UUID, RefusedProposal] = {}
        self._hypotheses: dict[uuid.UUID, Hypothesis] = {}
        self._analyses: dict[str, Analysis] = {}
        self._principles: dict[uuid.UUID, Principle] = {}
        self._effects: dict[uuid.UUID, tuple[ParameterEffect, ...]] = {}
        self._votes: dict[uuid.UUID, PictureVote] = {}
        self._ratings: dict[uuid.UUID, HumanRating] = {}
        self._artifacts: dict[uuid.UUID, Artifact] = {}

    def close(self) -> None:
        """Nothing to let go of."""

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign; it counts as finished from the first save with a reason to end."""
        with self._lock:
            known, now = self._campaigns.get(name), datetime.now(UTC)
            finished = None if end_reason is None else (known and known.finished_at) or now
            self._campaigns[name] = CampaignRecord(
                name=name, settings=clean(settings), status=status, end_reason=end_reason,
                created_at=known.created_at if known else now, finished_at=finished,
            )  # fmt: skip

    def take_campaign(self, record: CampaignRecord) -> None:
        """Take a campaign over as another store has it."""
        with self._lock:
            self._campaigns[record.name] = record

    def take_history(self, history: Sequence[RunHistory]) -> None:
        """Take runs and epochs over as another store has them."""
        with self._lock:
            for known in history:
                self._runs[known.run.uid] = known.run
                self._epochs.setdefault(known.run.uid, {}).update((e.uid, e) for e in known.epochs)

    def campaigns(self) -> list[CampaignRecord]:
        """All campaigns, oldest first."""
        return sorted(self._all(self._campaigns), key=lambda c: (c.created_at, c.name))

    def save_run(self, run: TrainingRun) -> None:
        """Insert or replace a run."""
        with self._lock:
            self._runs[run.uid] = _cleaned(run)

    def add_run(self, run: TrainingRun) -> None:
        """Insert a run whose number must be free in its campaign.

        Raises:
            NumberTakenError: another run of the campaign has this number.
        """
        with self._lock:
            refuse_taken(self, run)
            self.save_run(run)

    def save_epoch(self, epoch: EpochResult) -> None:
        """Insert or replace an epoch of a run that is in the store.

        Raises:
            NotFoundError: no such run.
        """
        with self._lock:
            self._demand(epoch.run_uid, f"epoch {epoch.epoch_number}")
            self._epochs.setdefault(epoch.run_uid, {})[epoch.uid] = _cleaned(epoch)

    def run(self, campaign: str, number: int) -> TrainingRun:
        """One run.

        Raises:
            NotFoundError: no such run.
        """
        for run in self._all(self._runs):
            if (run.campaign, run.number) == (campaign, number):
                return run
        raise NotFoundError(f"no run {number} in campaign {campaign}")

    def runs(self, campaign: str | None = None) -> list[TrainingRun]:
        """Runs of one campaign or of all, oldest first."""
        found = [run for run in self._all(self._runs) if campaign in (None, run.campaign)]
        return sorted(found, key=lambda run: (run.started_at, run.number))

    def find_runs(self, where: Sequence[Condition]) -> list[TrainingRun]:
        """Runs whose parameters meet every condition; values of another kind never do."""
        return [run for run in self.runs() if all(_meets(run, condition) for condition in where)]

    def epochs(self, run_uid: uuid.UUID) -> list[EpochResult]:
        """Epochs of a run in order."""
        return sorted(self._all(self._epochs.get(run_uid, {})), key=lambda epoch: epoch.epoch_number)

    def colour_by_epoch(self, run_uid: uuid.UUID) -> list[EpochColours]:
        """Colour accuracy of a run's epochs in order."""
        names = [name for name in EpochColours.model_fields if name != "epoch_number"]
        return [
            EpochColours(
                epoch_number=epoch.epoch_number,
                **{name: getattr(epoch.quantitative_metrics.mean, name, None) for name in names},
            )
            for epoch in self.epochs(run_uid)
        ]

    def history(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs with their epochs, oldest first."""
        return [RunHistory(run=run, epochs=tuple(self.epochs(run.uid))) for run in self.runs(campaign)]

    def save_refusal(self, refusal: RefusedProposal) -> None:
        """Insert or replace a refused proposal."""
        with self._lock:
            self._refusals[refusal.uid] = refusal

    def refusals(self, campaign: str) -> list[RefusedProposal]:
        """What the gate refused, in order."""
        found = [refusal for refusal in self._all(self._refusals) if refusal.campaign == campaign]
        return sorted(found, key=lambda refusal: refusal.number)

    def save_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Make these the campaign's proposed experiments; those no longer proposed are dropped."""
        with self._lock:
            theirs, kept = {h.campaign for h in hypotheses}, {h.uid for h in hypotheses}
            gone = [h.uid for h in self._hypotheses.values()
                    if h.campaign in theirs and h.state == HypothesisState.PROPOSED and h.uid not in kept]  # fmt: skip
            for uid in gone:
                del self._hypotheses[uid]
            self._hypotheses |= {h.uid: h for h in hypotheses}

    def hypotheses(self, campaign: str) -> list[Hypothesis]:
        """Next experiments, the first priority first."""
        found = [h for h in self._all(self._hypotheses) if h.campaign == campaign]
        return sorted(found, key=lambda h: h.priority)

    def save_analysis(self, analysis: Analysis) -> None:
        """Keep an analysis; the newest of a campaign is the one that counts."""
        with self._lock:
            known = self._analyses.get(analysis.campaign)
            if known is None or known.created_at <= analysis.created_at:
                self._analyses[analysis.campaign] = analysis

    def latest_analysis(self, campaign: str) -> Analysis | None:
        """The newest analysis with the hypotheses of now."""
        found = self._analyses.get(campaign)
        return found and found.changed(hypotheses=tuple(self.hypotheses(campaign)))

    def save_principle(self, principle: Principle) -> None:
        """Insert or replace a principle."""
        with self._lock:
            self._principles[principle.uid] = principle

    def principles(self) -> list[Principle]:
        """All principles of any scope, in the order in which they were found."""
        return sorted(self._all(self._principles), key=lambda p: (p.created_at, str(p.uid)))

    def save_parameter_analysis(self, run_uid: uuid.UUID, effects: Sequence[ParameterEffect]) -> None:
        """Keep what the parameters did as it was known after a run that is in the store.

        Raises:
            NotFoundError: no such run.
        """
        with self._lock:
            self._demand(run_uid, "an analysis")
            self._effects[run_uid] = tuple(map(_cleaned, effects))

    def parameter_analysis(self, run_uid: uuid.UUID) -> list[ParameterEffect]:
        """What was known of the parameters after a run; nothing where nothing was kept."""
        with self._lock:
            return list(self._effects.get(run_uid, ()))

    def save_rating(self, rating: HumanRating) -> None:
        """Insert or replace what a person says of an epoch of a run that is in the store.

        Raises:
            NotFoundError: no such run.
        """
        with self._lock:
            self._demand(rating.run_uid, f"the rating of epoch {rating.epoch_number}")
            self._ratings[rating.uid] = _cleaned(rating)

    def ratings(self, run_uid: uuid.UUID) -> list[HumanRating]:
        """What people said of a run's epochs, in order."""
        found = [rating for rating in self._all(self._ratings) if rating.run_uid == run_uid]
        return sorted(found, key=lambda rating: (rating.epoch_number, str(rating.uid)))

    def save_vote(self, vote: PictureVote) -> None:
        """Insert or replace a person's choice between pictures of two runs that are in the store.

        Raises:
            NotFoundError: no such run.
        """
        with self._lock:
            for run in (vote.run_uid, vote.other_run_uid):
                self._demand(run, f"the vote on {vote.picture}")
            self._votes[vote.uid] = _cleaned(vote)

    def votes(self, run_uid: uuid.UUID) -> list[PictureVote]:
        """Choices in which a run is the first of the two, by picture."""
        found = [vote for vote in self._all(self._votes) if vote.run_uid == run_uid]
        return sorted(found, key=lambda vote: (vote.picture, str(vote.uid)))

    def save_artifact(self, artifact: Artifact) -> None:
        """Insert or replace where a file of a run lies.

        Raises:
            NotFoundError: no such run.
        """
        with self._lock:
            self._demand(artifact.run_uid, artifact.path)
            self._artifacts[artifact.uid] = _cleaned(artifact)

    def artifacts(self, run_uid: uuid.UUID) -> list[Artifact]:
        """Files of a run, by epoch and path."""
        found = [artifact for artifact in self._all(self._artifacts) if artifact.run_uid == run_uid]
        return sorted(found, key=lambda a: (a.epoch_number is None, a.epoch_number or 0, a.path))

    def _demand(self, run: uuid.UUID, what: str) -> None:
        if run not in self._runs:
            raise NotFoundError(f"{what} belongs to run {run}, which is not in the store")

    def _all(self, records: dict[Any, Item]) -> list[Item]:
        with self._lock:
            return list(records.values())


def _cleaned(record: Any) -> Any:
    """As it would come back from a database."""
    return type(record).model_validate(
        {k: v for k, v in clean(record.model_dump(mode="json")).items() if v is not None}
    )


def _meets(run: TrainingRun, condition: Condition) -> bool:
    value = run.all_parameters.get(condition.parameter)
    if value is None or condition.value is None or _kind(value) != _kind(condition.value):
        return False
    return _OPERATORS[condition.operator](value, condition.value)


def _kind(value: object) -> str:
    """The type as JSON has it."""
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
