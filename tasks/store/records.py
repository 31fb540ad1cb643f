"""The store: our records as rows of a database's tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError

from schema.base import Frozen
from schema.errors import NotFoundError, StoreError
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, RunHistory, TrainingRun
from tasks.store.base import CampaignRecord, Condition, EpochColours
from tasks.store.tables import Row, Tables, clean

Record = TypeVar("Record", bound=Frozen)

_RUN = tuple(TrainingRun.model_fields)
_EPOCH = tuple(EpochResult.model_fields)
_COLOURS = tuple(EpochColours.model_fields)
_ANALYSIS = tuple(name for name in Analysis.model_fields if name != "hypotheses")


class RecordStore:
    """Implements `tasks.store.base.Store` on the tables of any database."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def close(self) -> None:
        """Let go of connections; the next call opens new ones."""
        self.tables.close()

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign; it counts as finished from the first save with a reason to end."""
        arguments = {"name": name, "settings": settings, "status": status, "end_reason": end_reason}
        self.tables.call("save_campaign", clean(arguments))

    def campaigns(self) -> list[CampaignRecord]:
        """All campaigns, oldest first."""
        return self._read(CampaignRecord, "campaigns", {}, ("created_at", "name"))

    def save_run(self, run: TrainingRun) -> None:
        """Insert or replace a run."""
        row = _row(run, _RUN)
        if run.notes is None:  # a person may have written some into the table
            del row["notes"]
        self.tables.upsert("training_runs", row, ("uid",))

    def save_epoch(self, epoch: EpochResult) -> None:
        """Insert or replace an epoch; its run must be in the store.

        Raises:
            NotFoundError: no such run.
        """
        judged = {"is_photorealistic": epoch.is_photorealistic, "has_wrong_backgrounds": epoch.has_wrong_backgrounds}
        said = {name: value for name, value in judged.items() if value is not None}  # else a person's word stays
        try:
            self.tables.upsert("epoch_results", _row(epoch, _EPOCH) | said, ("uid",))
        except NotFoundError:
            raise NotFoundError(
                f"epoch {epoch.epoch_number} belongs to run {epoch.run_uid}, which is not in the store"
            ) from None

    def run(self, campaign: str, number: int) -> TrainingRun:
        """One run.

        Raises:
            NotFoundError: no such run.
        """
        found = self._runs({"campaign": campaign, "number": number})
        if not found:
            raise NotFoundError(f"no run {number} in campaign {campaign}")
        return found[0]

    def runs(self, campaign: str | None = None) -> list[TrainingRun]:
        """Runs of one campaign or of all, oldest first."""
        return self._runs({} if campaign is None else {"campaign": campaign})

    def find_runs(self, where: Sequence[Condition]) -> list[TrainingRun]:
        """Runs whose parameters meet every condition; numbers compare as numbers."""
        equal = {c.parameter: c.value for c in where if c.operator == "=="}
        others = [c.model_dump(mode="json") for c in where if c.operator != "=="]
        rows = self.tables.call("find_training_runs", {"conditions": others, "equals": equal}, _RUN)
        return _by_start(_records(TrainingRun, rows))

    def epochs(self, run_uid: uuid.UUID) -> list[EpochResult]:
        """Epochs of a run in order."""
        rows = self.tables.select("epoch_results", _EPOCH, {"run_uid": str(run_uid)}, ("epoch_number", "uid"))
        return _records(EpochResult, [row for row in rows if row["quantitative_metrics"] is not None])

    def colour_by_epoch(self, run_uid: uuid.UUID) -> list[EpochColours]:
        """Colour accuracy of a run's epochs in order."""
        return self._read(EpochColours, "v_epoch_metrics_progression", {"run_uid": str(run_uid)}, ("epoch_number",))

    def history(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs with their epochs, oldest first; without the measurements of single pictures."""
        epochs: dict[uuid.UUID, list[EpochResult]] = {}
        where = {} if campaign is None else {"campaign": campaign}
        rows = self.tables.select("v_epochs", _EPOCH, where, ("run_uid", "epoch_number", "uid"))
        for epoch in _records(EpochResult, rows):
            epochs.setdefault(epoch.run_uid, []).append(epoch)
        return [RunHistory(run=run, epochs=tuple(epochs.get(run.uid, ()))) for run in self.runs(campaign)]

    def save_refusal(self, refusal: RefusedProposal) -> None:
        """Insert or replace a refused proposal."""
        self.tables.upsert("refused_proposals", _row(refusal, RefusedProposal.model_fields), ("uid",))

    def refusals(self, campaign: str) -> list[RefusedProposal]:
        """What the gate refused, in order."""
        return self._read(RefusedProposal, "refused_proposals", {"campaign": campaign}, ("number", "uid"))

    def save_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Make these the campaign's proposed experiments; those no longer proposed are dropped."""
        rows = [_row(hypothesis, Hypothesis.model_fields) for hypothesis in hypotheses]
        campaigns = sorted({hypothesis.campaign for hypothesis in hypotheses})
        self.tables.call("replace_hypotheses", {"campaigns": campaigns, "proposals": rows})

    def hypotheses(self, campaign: str) -> list[Hypothesis]:
        """Next experiments, the first priority first."""
        return self._read(Hypothesis, "hypotheses", {"campaign": campaign}, ("priority", "uid"))

    def save_analysis(self, analysis: Analysis) -> None:
        """Keep an analysis; the newest of a campaign is the one that counts."""
        self.tables.upsert("analyses", _row(analysis, _ANALYSIS), ("campaign", "created_at"))

    def latest_analysis(self, campaign: str) -> Analysis | None:
        """The newest analysis with the hypotheses of now."""
        rows = self.tables.select("analyses", _ANALYSIS, {"campaign": campaign}, ("created_at",))
        if not rows:
            return None
        return _records(Analysis, rows[-1:])[0].changed(hypotheses=tuple(self.hypotheses(campaign)))

    def save_principle(self, principle: Principle) -> None:
        """Insert or replace a principle."""
        self.tables.upsert("principles", _row(principle, Principle.model_fields), ("uid",))

    def principles(self) -> list[Principle]:
        """All principles of any scope, in the order in which they were found."""
        return self._read(Principle, "principles", {}, ("created_at", "uid"))

    def save_parameter_analysis(self, run_uid: uuid.UUID, effects: Sequence[ParameterEffect]) -> None:
        """Keep what the parameters did as it was known after a run.

        Raises:
            NotFoundError: no such run.
        """
        rows = [_row(effect, ParameterEffect.model_fields) for effect in effects]
        self.tables.call("save_parameter_analysis", {"of_run": str(run_uid), "effects": rows})

    def parameter_analysis(self, run_uid: uuid.UUID) -> list[ParameterEffect]:
        """What was known of the parameters after a run; nothing where nothing was kept."""
        rows = self.tables.select("training_runs", ("parameter_analysis",), {"uid": str(run_uid)}, ("uid",))
        return _records(ParameterEffect, rows[0]["parameter_analysis"] or () if rows else ())

    def save_rating(self, rating: HumanRating) -> None:
        """Insert or replace what a person says of an epoch.

        Raises:
            NotFoundError: no such run.
        """
        self.tables.call("save_rating", {"rating": _row(rating, HumanRating.model_fields)})

    def ratings(self, run_uid: uuid.UUID) -> list[HumanRating]:
        """What people said of a run's epochs, in order."""
        return self._read(HumanRating, "human_ratings", {"run_uid": str(run_uid)}, ("epoch_number", "uid"))

    def save_vote(self, vote: PictureVote) -> None:
        """Insert or replace a person's choice between pictures of two runs.

        Raises:
            NotFoundError: no such run.
        """
        self.tables.upsert("picture_votes", _row(vote, PictureVote.model_fields), ("uid",))

    def votes(self, run_uid: uuid.UUID) -> list[PictureVote]:
        """Choices in which a run is the first of the two, by picture."""
        return self._read(PictureVote, "picture_votes", {"run_uid": str(run_uid)}, ("picture", "uid"))

    def save_artifact(self, artifact: Artifact) -> None:
        """Insert or replace where a file of a run lies.

        Raises:
            NotFoundError: no such run.
        """
        self.tables.upsert("artifacts", _row(artifact, Artifact.model_fields), ("uid",))

    def artifacts(self, run_uid: uuid.UUID) -> list[Artifact]:
        """Files of a run, by epoch and path."""
        return self._read(Artifact, "artifacts", {"run_uid": str(run_uid)}, ("epoch_number", "path", "uid"))

    def _runs(self, equal: Mapping[str, Any]) -> list[TrainingRun]:
        # Rows that a user's own table had before carry no parameters of ours: they are not runs of ours.
        rows = self.tables.select("training_runs", _RUN, equal, ("uid",))
        ours = [row for row in rows if row["all_parameters"] is not None and row["campaign"] is not None]
        return _by_start(_records(TrainingRun, ours))

    def _read(self, model: type[Record], table: str, equal: Mapping[str, Any], order: Sequence[str]) -> list[Record]:
        return _records(model, self.tables.select(table, tuple(model.model_fields), equal, order))


def _by_start(runs: list[TrainingRun]) -> list[TrainingRun]:
    return sorted(runs, key=lambda run: (run.started_at, run.number))


def _row(record: Frozen, names: Iterable[str]) -> Row:
    """A record as column values."""
    data = clean(record.model_dump(mode="json"))
    return {name: data[name] for name in names}


def _records(model: type[Record], rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Rows as records; a column that is null takes the field's default.

    Raises:
        StoreError: a row was changed to what we cannot read.
    """
    return [_record(model, {k: v for k, v in row.items() if v is not None}) for row in rows]


def _record(model: type[Record], row: Mapping[str, Any]) -> Record:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        which = row.get("run_name") or row.get("uid") or row.get("name") or row.get("campaign")
        column = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{model.__name__} {which} cannot be read: {column}: {first['msg']}; mend that row in the database"
        ) from error
