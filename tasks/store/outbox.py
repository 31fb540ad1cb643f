"""A store that goes on where the database does not: rows wait on disk and are sent later, in order, once.

Each save is a letter: a line in ``waiting.jsonl`` until the database has taken it. All saves are upserts, so one that
was taken just before a kill may be sent again. A letter that can never be taken is set aside in ``refused.jsonl``
with the reason. What is read comes from the database, or from a copy in memory while that is away; the copy is made
before the first save, so that only those who save pay for it.
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from schema.findings import Analysis, Hypothesis, ParameterEffect, Principle, RefusedProposal
from schema.runs import Artifact, EpochResult, HumanRating, PictureVote, RunHistory, TrainingRun
from tasks.durable import replace_text
from tasks.store.base import CampaignRecord, Condition, EpochColours, Store
from tasks.store.memory import MemoryStore

Answer = TypeVar("Answer")
_RETRY = 5.0  # seconds between looks whether the database is back


class OutboxStore:
    """Implements `tasks.store.base.Store` before another one. Several processes may share the folder."""

    def __init__(self, store: Store, folder: Path, tell: Callable[[str], None] = lambda _: None) -> None:
        """Args: folder: where letters wait; tell: is given a sentence when the database goes or comes back."""
        self._store, self._folder, self._tell = store, folder, tell
        self._waiting, self._refused = folder / "waiting.jsonl", folder / "refused.jsonl"
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
        """Letters that wait."""
        return len(_lines(self._waiting))

    def refused(self) -> list[dict[str, Any]]:
        """Letters that were set aside: what was to be saved, and the reason why it could not be."""
        return [json.loads(line) for line in _lines(self._refused)]

    def flush(self) -> bool:
        """Send what waits, in order; True if nothing waits any more."""
        with self._lock, self._one_process():
            self._looked = time.monotonic()
            letters = _lines(self._waiting)
            for sent, letter in enumerate(letters):
                try:
                    self._send(json.loads(letter))
                except StoreUnavailableError as error:
                    _write(self._waiting, letters[sent:])
                    self._is_away(error)
                    return False
            _write(self._waiting, [])
            if letters and self._away:
                self._tell(f"the database is back: {len(letters)} rows that waited are in it")
            self._away = False
            return True

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign."""
        self._copy.save_campaign(name, settings, status, end_reason)
        self._post("campaign", {"name": name, "settings": settings, "status": status, "end_reason": end_reason})

    def save_run(self, run: TrainingRun) -> None:
        """Insert or replace a run."""
        self._copy.save_run(run)
        self._post("run", run.model_dump(mode="json"))

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

    def _post(self, kind: str, data: dict[str, Any]) -> None:
        letter = {"kind": kind, "data": data}
        with self._lock:
            if self._reachable():
                try:
                    self._send(letter)
                except StoreUnavailableError as error:
                    self._is_away(error)
                else:
                    return
            with self._one_process():
                _append(self._waiting, letter)

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
        if not self._away and not _lines(self._waiting):
            return True
        return time.monotonic() - self._looked > _RETRY and self.flush()

    def _send(self, letter: dict[str, Any]) -> None:
        try:
            _SAVE[letter["kind"]](self._store, letter["data"])
        except StoreUnavailableError:
            raise
        except (StoreError, NotFoundError) as error:
            _append(self._refused, letter | {"reason": str(error)})
            self._tell(f"the database refuses a row, which is set aside in {self._refused}: {error}")

    def _is_away(self, error: StoreUnavailableError) -> None:
        if not self._away:
            self._tell(f"{error}; the campaign goes on, rows wait in {self._waiting}")
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
        for letter in map(json.loads, _lines(self._waiting)):
            _SAVE[letter["kind"]](copy, letter["data"])
        return copy

    @contextmanager
    def _one_process(self) -> Iterator[None]:
        """Between processes; the lock between threads is held already."""
        with (self._folder / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


_SAVE: dict[str, Callable[[Store, dict[str, Any]], None]] = {
    "campaign": lambda store, data: store.save_campaign(**data),
    "run": lambda store, data: store.save_run(TrainingRun.model_validate(data)),
    "epoch": lambda store, data: store.save_epoch(EpochResult.model_validate(data)),
    "refusal": lambda store, data: store.save_refusal(RefusedProposal.model_validate(data)),
    "hypotheses": lambda store, data: store.save_hypotheses([Hypothesis.model_validate(h) for h in data["hypotheses"]]),
    "analysis": lambda store, data: store.save_analysis(Analysis.model_validate(data)),
    "principle": lambda store, data: store.save_principle(Principle.model_validate(data)),
    "effects": lambda store, data: store.save_parameter_analysis(
        uuid.UUID(data["run_uid"]), [ParameterEffect.model_validate(e) for e in data["effects"]]
    ),
    "vote": lambda store, data: store.save_vote(PictureVote.model_validate(data)),
    "rating": lambda store, data: store.save_rating(HumanRating.model_validate(data)),
    "artifact": lambda store, data: store.save_artifact(Artifact.model_validate(data)),
}


def _lines(path: Path) -> list[str]:
    """Whole lines; one that a kill has torn was never promised to be kept."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").split("\n")[:-1] if line]


def _append(path: Path, letter: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(letter) + "\n")
        file.flush()
        os.fsync(file.fileno())


def _write(path: Path, lines: list[str]) -> None:
    if lines or path.exists():
        replace_text(path, (line + "\n" for line in lines))
