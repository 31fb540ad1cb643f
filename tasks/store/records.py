"""The store: our records as rows of a database's tables."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, RunHistory, TrainingRun
from tasks.store.base import CampaignRecord, Condition, EpochColours, refuse_taken
from tasks.store.known import EPOCH, RUN, KnownHistory, by_start, ours
from tasks.store.rows import Record, records, row_of
from tasks.store.tables import Tables, clean

_COLOURS = tuple(EpochColours.model_fields)
_ANALYSIS = tuple(name for name in Analysis.model_fields if name != "hypotheses")


class RecordStore:
    """Implements `tasks.store.base.Store` on the tables of any database."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        self._known = KnownHistory(tables)

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
        row = row_of(run, RUN)
        if run.notes is None:  # a person may have written some into the table
            del row["notes"]
        self.tables.upsert("training_runs", row, ("uid",))

    def add_run(self, run: TrainingRun) -> None:
        """Insert a run whose number must be free in its campaign.

        Raises:
            NumberTakenError: another run of the campaign has this number.
        """
        try:
            self.save_run(run)
        except StoreUnavailableError:
            raise
        except StoreError:
            refuse_taken(self, run)
            raise

    def save_epoch(self, epoch: EpochResult) -> None:
        """Insert or replace an epoch; its run must be in the store.

        Raises:
            NotFoundError: no such run.
        """
        judged = {"is_photorealistic": epoch.is_photorealistic, "has_wrong_backgrounds": epoch.has_wrong_backgrounds}
        said = {name: value for name, value in judged.items() if value is not None}  # else a person's word stays
        try:
            self.tables.upsert("epoch_results", row_of(epoch, EPOCH) | said, ("uid",))
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
        rows = self.tables.call("find_training_runs", {"conditions": others, "equals": equal}, RUN)
        return by_start(records(TrainingRun, rows))

    def epochs(self, run_uid: uuid.UUID) -> list[EpochResult]:
        """Epochs of a run in order."""
        rows = self.tables.select("epoch_results", EPOCH, {"run_uid": str(run_uid)}, ("epoch_number", "uid"))
        return records(EpochResult, [row for row in rows if row["quantitative_metrics"] is not None])

    def colour_by_epoch(self, run_uid: uuid.UUID) -> list[EpochColours]:
        """Colour accuracy of a run's epochs in order."""
        return self._read(EpochColours, "v_epoch_metrics_progression", {"run_uid": str(run_uid)}, ("epoch_number",))

    def history(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs with their epochs, oldest first; without the measurements of single pictures."""
        return self._known.read(campaign)

    def save_refusal(self, refusal: RefusedProposal) -> None:
        """Insert or replace a refused proposal."""
        self.tables.upsert("refused_proposals", row_of(refusal, RefusedProposal.model_fields), ("uid",))

    def refusals(self, campaign: str) -> list[RefusedProposal]:
        """What the gate refused, in order."""
        return self._read(RefusedProposal, "refused_proposals", {"campaign": campaign}, ("number", "uid"))

    def save_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Make these the campaign's proposed experiments; those no longer proposed are dropped."""
        rows = [row_of(hypothesis, Hypothesis.model_fields) for hypothesis in hypotheses]
        campaigns = sorted({hypothesis.campaign for hypothesis in hypotheses})
        self.tables.call("replace_hypotheses", {"campaigns": campaigns, "proposals": rows})

    def hypotheses(self, campaign: str) -> list[Hypothesis]:
        """Next experiments, the first priority first."""
        return self._read(Hypothesis, "hypotheses", {"campaign": campaign}, ("priority", "uid"))

    def save_analysis(self, analysis: Analysis) -> None:
        """Keep an analysis; the newest of a campaign is the one that counts."""
        self.tables.upsert("analyses", row_of(analysis, _ANALYSIS), ("campaign", "created_at"))

    def latest_analysis(self, campaign: str) -> Analysis | None:
        """The newest analysis with the hypotheses of now."""
        rows = self.tables.select("analyses", _ANALYSIS, {"campaign": campaign}, ("created_at",))
        if not rows:
            return None
        return records(Analysis, rows[-1:])[0].changed(hypotheses=tuple(self.hypotheses(campaign)))

    def save_principle(self, principle: Principle) -> None:
        """Insert or replace a principle."""
        self.tables.upsert("principles", row_of(principle, Principle.model_fields), ("uid",))

    def principles(self) -> list[Principle]:
        """All principles of any scope, in the order in which they were found."""
        return self._read(Principle, "principles", {}, ("created_at", "uid"))

    def save_parameter_analysis(self, run_uid: uuid.UUID, effects: Sequence[ParameterEffect]) -> None:
        """Keep what the parameters did as it was known after a run.

        Raises:
            NotFoundError: no such run.
        """
        rows = [row_of(effect, ParameterEffect.model_fields) for effect in effects]
        self.tables.call("save_parameter_analysis", {"of_run": str(run_uid), "effects": rows})

    def parameter_analysis(self, run_uid: uuid.UUID) -> list[ParameterEffect]:
        """What was known of the parameters after a run; nothing where nothing was kept."""
        rows = self.tables.select("training_runs", ("parameter_analysis",), {"uid": str(run_uid)}, ("uid",))
        return records(ParameterEffect, rows[0]["parameter_analysis"] or () if rows else ())

    def save_rating(self, rating: HumanRating) -> None:
        """Insert or replace what a person says of an epoch.

        Raises:
            NotFoundError: no such run.
        """
        self.tables.call("save_rating", {"rating": row_of(rating, HumanRating.model_fields)})

    def ratings(self, run_uid: uuid.UUID) -> list[HumanRating]:
        """What people said of a run's epochs, in order."""
        return self._read(HumanRating, "human_ratings", {"run_uid": str(run_uid)}, ("epoch_number", "uid"))

    def save_vote(self, vote: PictureVote) -> None:
        """Insert or replace a person's choice between pictures of two runs.

        Raises:
            NotFoundError: no such run.
        """
        self.tables.upsert("picture_votes", row_of(vote, PictureVote.model_fields), ("uid",))

    def votes(self, run_uid: uuid.UUID) -> list[PictureVote]:
        """Choices in which a run is the first of the two, by picture."""
        return self._read(PictureVote, "picture_votes", {"run_uid": str(run_uid)}, ("picture", "uid"))

    def save_artifact(self, artifact: Artifact) -> None:
        """Insert or replace where a file of a run lies.

        Raises:
            NotFoundError: no such run.
        """
        self.tables.upsert("artifacts", row_of(artifact, Artifact.model_fields), ("uid",))

    def artifacts(self, run_uid: uuid.UUID) -> list[Artifact]:
        """Files of a run, by epoch and path."""
        return self._read(Artifact, "artifacts", {"run_uid": str(run_uid)}, ("epoch_number", "path", "uid"))

    def _runs(self, equal: Mapping[str, Any]) -> list[TrainingRun]:
        return by_start(records(TrainingRun, ours(self.tables.select("training_runs", RUN, equal, ("uid",)))))

    def _read(self, model: type[Record], table: str, equal: Mapping[str, Any], order: Sequence[str]) -> list[Record]:
        return records(model, self.tables.select(table, tuple(model.model_fields), equal, order))
