"""A store that goes on where the database does not: rows wait on disk and are sent later, in order, once.

Each save is a line in ``waiting.jsonl`` until the database has taken it. All saves are upserts, so one that was taken
just before a kill may be sent again. A row that can never be taken is set aside in ``refused.jsonl`` with the reason.
Reads come from the database, or from a copy in memory while it is away. The copy is made before the first save, so
that only those who save pay for it.
"""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from schema.errors import NotFoundError, NumberTakenError, RowRefusedError, StoreError, StoreUnavailableError
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, RunHistory, TrainingRun
from tasks.store.base import CampaignRecord, Condition, EpochColours, Store
from tasks.store.memory import MemoryStore
from tasks.store.spool import RefusedRow, Save, Spool, parse_row, readable, refused_rows, saving, why

Answer = TypeVar("Answer")
_RETRY = 5.0  # seconds between looks whether the database is back


class OutboxStore:
    """Implements `tasks.store.base.Store` before another one. Several processes may share the folder."""

    def __init__(self, store: Store, folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        """Args: folder: where rows wait; tell: is given a sentence when the database goes or comes back."""
        self._store, self._tell = store, tell
        self._spool = Spool(folder)
        self._lock = threading.RLock()
        self._looked, self._away = 0.0, False
        self._memory: MemoryStore | None = None
        folder.mkdir(parents=True, exist_ok=True)
        self.flush()

    def close(self) -> None:
        """Send what still waits, if the database is there, and let go of it."""
        self.flush()
        self._store.close()

    @property
    def waiting(self) -> int:
        """Count the rows that wait."""
        return len(self._spool.lines())

    def refused(self) -> list[RefusedRow]:
        """Return the rows that were set aside, with the reasons."""
        return refused_rows(self._spool.folder)

    def flush(self) -> bool:
        """Send what waits, in order; True if nothing waits any more."""
        with self._lock, self._spool.lock():
            self._looked = time.monotonic()
            lines = self._spool.lines()
            for sent, line in enumerate(lines):
                try:
                    self._send_line(line)
                except StoreUnavailableError as error:
                    self._spool.replace(lines[sent:])
                    self._is_away(error)
                    return False
            if lines:
                self._spool.replace([])
            if lines and self._away:
                self._tell(f"the database is back: {len(lines)} rows that waited are in it")
            self._away = False
            return True

    def retry(self) -> int:
        """Send the rows that were set aside once more; how many were sent. Those refused again are set aside again."""
        with self._lock, self._spool.lock():
            rows = self._spool.take_refused()
        self.flush()
        return len(rows)

    def drop_refused(self) -> int:
        """Stop counting the rows that were set aside; they stay in ``dropped.jsonl``. Return how many there were."""
        with self._lock, self._spool.lock():
            return self._spool.drop_refused()

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign."""
        self._copy.save_campaign(name, settings, status, end_reason)
        self._post("campaign", {"name": name, "settings": settings, "status": status, "end_reason": end_reason})

    def save_run(self, run: TrainingRun) -> None:
        """Insert or replace a run."""
        self._copy.save_run(run)
        self._post("run", run.model_dump(mode="json"))

    def add_run(self, run: TrainingRun) -> None:
        """Insert a run whose number must be free in its campaign.

        Raises:
            NumberTakenError: another run of the campaign has this number.
            RowRefusedError: the database refuses the row for another reason.
        """
        self._copy.add_run(run)
        try:
            self._post("run", run.model_dump(mode="json"), lambda store: store.add_run(run))
        except NumberTakenError:
            self._memory = None  # made again from the database, where another run has the number
            raise

    def save_epoch(self, epoch: EpochResult) -> None:
        """Insert or replace an epoch of a run that is in the store.

        Raises:
            NotFoundError: no such run.
        """
        self._copy.save_epoch(epoch)
        self._post("epoch", epoch.model_dump(mode="json"))

    def save_refusal(self, refusal: RefusedProposal) -> None:
        """Insert or replace a refused proposal."""
        self._copy.save_refusal(refusal)
        self._post("refusal", refusal.model_dump(mode="json"))

    def save_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Make these the campaign's proposed experiments."""
        self._copy.save_hypotheses(hypotheses)
        self._post("hypotheses", {"hypotheses": [h.model_dump(mode="json") for h in hypotheses]})

    def save_analysis(self, analysis: Analysis) -> None:
        """Keep an analysis."""
        self._copy.save_analysis(analysis)
        self._post("analysis", analysis.model_dump(mode="json"))

    def save_principle(self, principle: Principle) -> None:
        """Insert or replace a principle."""
        self._copy.save_principle(principle)
        self._post("principle", principle.model_dump(mode="json"))

    def save_parameter_analysis(self, run_uid: uuid.UUID, effects: Sequence[ParameterEffect]) -> None:
        """Keep what the parameters did as it was known after a run that is in the store.

        Raises:
            NotFoundError: no such run.
        """
        self._copy.save_parameter_analysis(run_uid, effects)
        self._post("effects", {"run_uid": str(run_uid), "effects": [e.model_dump(mode="json") for e in effects]})

    def save_rating(self, rating: HumanRating) -> None:
        """Insert or replace what a person says of an epoch of a run that is in the store.

        Raises:
            NotFoundError: no such run.
        """
        self._copy.save_rating(rating)
        self._post("rating", rating.model_dump(mode="json"))

    def save_vote(self, vote: PictureVote) -> None:
        """Insert or replace a person's choice between pictures of two runs that are in the store.

        Raises:
            NotFoundError: no such run.
        """
        self._copy.save_vote(vote)
        self._post("vote", vote.model_dump(mode="json"))

    def save_artifact(self, artifact: Artifact) -> None:
        """Insert or replace where a file of a run lies.

        Raises:
            NotFoundError: no such run.
        """
        self._copy.save_artifact(artifact)
        self._post("artifact", artifact.model_dump(mode="json"))

    def campaigns(self) -> list[CampaignRecord]:
        """All campaigns, oldest first."""
        return self._read(lambda store: store.campaigns())

    def run(self, campaign: str, number: int) -> TrainingRun:
        """One run."""
        return self._read(lambda store: store.run(campaign, number))

    def runs(self, campaign: str | None = None) -> list[TrainingRun]:
        """Runs of one campaign or of all, oldest first."""
        return self._read(lambda store: store.runs(campaign))

    def find_runs(self, where: Sequence[Condition]) -> list[TrainingRun]:
        """Runs whose parameters meet every condition."""
        return self._read(lambda store: store.find_runs(where))

    def epochs(self, run_uid: uuid.UUID) -> list[EpochResult]:
        """Epochs of a run in order."""
        return self._read(lambda store: store.epochs(run_uid))

    def colour_by_epoch(self, run_uid: uuid.UUID) -> list[EpochColours]:
        """Colour accuracy of a run's epochs in order."""
        return self._read(lambda store: store.colour_by_epoch(run_uid))

    def history(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs with their epochs, oldest first."""
        return self._read(lambda store: self._shared(store.history(campaign)))

    def refusals(self, campaign: str) -> list[RefusedProposal]:
        """What the gate refused, in order."""
        return self._read(lambda store: store.refusals(campaign))

    def hypotheses(self, campaign: str) -> list[Hypothesis]:
        """Next experiments, the first priority first."""
        return self._read(lambda store: store.hypotheses(campaign))

    def latest_analysis(self, campaign: str) -> Analysis | None:
        """The newest analysis, if there is one."""
        return self._read(lambda store: store.latest_analysis(campaign))

    def principles(self) -> list[Principle]:
        """All principles of any scope, in the order in which they were found."""
        return self._read(lambda store: store.principles())

    def parameter_analysis(self, run_uid: uuid.UUID) -> list[ParameterEffect]:
        """What was known of the parameters after a run; nothing where nothing was kept."""
        return self._read(lambda store: store.parameter_analysis(run_uid))

    def votes(self, run_uid: uuid.UUID) -> list[PictureVote]:
        """Choices in which a run is the first of the two, by picture."""
        return self._read(lambda store: store.votes(run_uid))

    def ratings(self, run_uid: uuid.UUID) -> list[HumanRating]:
        """What people said of a run's epochs, in order."""
        return self._read(lambda store: store.ratings(run_uid))

    def artifacts(self, run_uid: uuid.UUID) -> list[Artifact]:
        """Files of a run, by epoch and path."""
        return self._read(lambda store: store.artifacts(run_uid))

    def _post(self, kind: str, data: dict[str, Any], save: Save | None = None) -> None:
        """Save a row now, or let it wait.

        Raises:
            RowRefusedError: the database refuses a run, without which all else of it would be refused as well.
        """
        row = {"kind": kind, "data": data}
        with self._lock:
            if self._reachable():
                try:
                    self._send(row, save or saving(row))
                except StoreUnavailableError as error:
                    self._is_away(error)
                else:
                    return
            with self._spool.lock():
                self._spool.append(row)

    def _read(self, ask: Callable[[Store], Answer]) -> Answer:
        with self._lock:
            if self._reachable():
                try:
                    return ask(self._store)
                except StoreUnavailableError as error:
                    self._is_away(error)
            return ask(self._copy)

    def _shared(self, history: list[RunHistory]) -> list[RunHistory]:
        """Let the copy hold the same records, so that runs that have ended are in memory once.

        Those that go on keep the measurements of single pictures, which a history leaves out.
        """
        if self._memory is not None:
            self._memory.take_history([known for known in history if known.run.finished_at is not None])
        return history

    def _reachable(self) -> bool:
        """Whether it is worth to ask: everything that waited must be in the database before anything else."""
        if not self._away and not self._spool.lines():
            return True
        return time.monotonic() - self._looked > _RETRY and self.flush()

    def _send_line(self, line: bytes) -> None:
        """Send a line that has waited; what cannot be stored is set aside, so that the lines behind it go on."""
        rows, unreadable = readable(line)
        for part in unreadable:
            self._set_aside(part, "this line cannot be read: it is torn or no JSON")
        for part in rows:
            try:
                row, save = parse_row(part)
            except StoreError as error:
                self._set_aside(part, str(error))
                continue
            with contextlib.suppress(RowRefusedError):  # who saves this run next is refused as well, and stops
                self._send(row, save)

    def _send(self, row: dict[str, Any], save: Save) -> None:
        try:
            save(self._store)
        except (StoreUnavailableError, NumberTakenError):
            raise
        except (StoreError, NotFoundError, ValueError, TypeError) as error:
            self._set_aside(row, why(error))
            if row["kind"] == "run":
                raise RowRefusedError(
                    f"the database refuses run {row['data'].get('run_name')}, so its results could not be kept: "
                    f"{why(error)}; the row is in {self._spool.refused}"
                ) from None

    def _set_aside(self, row: bytes | dict[str, Any], reason: str) -> None:
        with self._spool.lock():
            self._spool.set_aside(row, reason)
        self._tell(f"a row cannot be stored and is set aside in {self._spool.refused}: {reason}")

    def _is_away(self, error: StoreUnavailableError) -> None:
        if not self._away:
            self._tell(f"{error}; the campaign goes on, rows wait in {self._spool.waiting}")
        self._away = True

    @property
    def _copy(self) -> MemoryStore:
        """What decisions are made from, with what still waits on top.

        Raises:
            StoreError: the database cannot be read, and there is no copy yet: without one nothing could go on.
        """
        with self._lock:
            if self._memory is None:
                self._memory = self._copied()
            return self._memory

    def _copied(self) -> MemoryStore:
        copy = MemoryStore()
        copy.take_history(self._store.history())
        for record in self._store.campaigns():
            copy.take_campaign(record)
            for refusal in self._store.refusals(record.name):
                copy.save_refusal(refusal)
            copy.save_hypotheses(self._store.hypotheses(record.name))
            if (analysis := self._store.latest_analysis(record.name)) is not None:
                copy.save_analysis(analysis)
        for principle in self._store.principles():
            copy.save_principle(principle)
        for line in self._spool.lines():
            for part in readable(line)[0]:
                with contextlib.suppress(StoreError, NotFoundError):  # set aside when it is sent
                    parse_row(part)[1](copy)
        return copy
