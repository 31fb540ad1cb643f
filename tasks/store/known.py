"""The history of all runs, read once and then kept up with what has changed.

Every decision asks for all runs ever. Each row notes the transaction that last changed it, and a look asks for those
that were not yet over at the look before: only what is new comes over the wire, and nothing is missed however long
another writer takes. That some were deleted shows in the number of rows, and then all are read again.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterable

from schema.runs import EpochResult, RunHistory, TrainingRun
from tasks.store.rows import records
from tasks.store.tables import Row, Tables

RUN = tuple(TrainingRun.model_fields)
EPOCH = tuple(EpochResult.model_fields)


class KnownHistory:
    """Safe from several threads. Raises what `Tables` raises; what is known then stays as it was."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._lock = threading.Lock()
        self._seen: str | None = None
        self._runs: dict[uuid.UUID, TrainingRun] = {}
        self._epochs: dict[uuid.UUID, dict[uuid.UUID, EpochResult]] = {}
        self._whole: dict[uuid.UUID, RunHistory] = {}

    def read(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs of one campaign or of all with their epochs, oldest first.

        One campaign alone is read by itself until all have been asked for.
        """
        with self._lock:
            if campaign is not None and self._seen is None:
                return self._read_campaign(campaign)
            self._update()
            runs = [run for run in self._runs.values() if campaign in (None, run.campaign)]
            return [self._history(run) for run in by_start(runs)]

    def _read_campaign(self, campaign: str) -> list[RunHistory]:
        equal = {"campaign": campaign}
        epochs: dict[uuid.UUID, list[EpochResult]] = {}
        for epoch in records(EpochResult, self._tables.select("v_epochs", EPOCH, equal, ("uid",))):
            epochs.setdefault(epoch.run_uid, []).append(epoch)
        runs = records(TrainingRun, ours(self._tables.select("training_runs", RUN, equal, ("uid",))))
        return [RunHistory(run=run, epochs=in_order(epochs.get(run.uid, ()))) for run in by_start(runs)]

    def _update(self) -> None:
        (size,) = self._tables.call("history_size", {}, ("runs", "epochs", "horizon"))
        self._take(self._seen)
        if (len(self._runs), sum(map(len, self._epochs.values()))) != (size["runs"], size["epochs"]):
            self._runs, self._epochs, self._whole = {}, {}, {}  # some were deleted
            self._take(None)
        self._seen = size["horizon"]

    def _take(self, since: str | None) -> None:
        """Take over what was changed from a transaction on, or everything."""
        asked = {"since": since}
        runs = records(TrainingRun, self._tables.call("runs_changed_since", asked, RUN))
        epochs = records(EpochResult, self._tables.call("epochs_changed_since", asked, EPOCH))
        for run in runs:
            self._runs[run.uid] = run
            self._whole.pop(run.uid, None)
        for epoch in epochs:
            self._epochs.setdefault(epoch.run_uid, {})[epoch.uid] = epoch
            self._whole.pop(epoch.run_uid, None)

    def _history(self, run: TrainingRun) -> RunHistory:
        if run.uid not in self._whole:
            epochs = in_order(self._epochs.get(run.uid, {}).values())
            self._whole[run.uid] = RunHistory(run=run, epochs=epochs)
        return self._whole[run.uid]


def ours(rows: Iterable[Row]) -> list[Row]:
    """Rows that a user's own table had before carry no parameters of ours: they are not runs of ours."""
    return [row for row in rows if row["all_parameters"] is not None and row["campaign"] is not None]


def by_start(runs: Iterable[TrainingRun]) -> list[TrainingRun]:
    """Oldest first."""
    return sorted(runs, key=lambda run: (run.started_at, run.number))


def in_order(epochs: Iterable[EpochResult]) -> tuple[EpochResult, ...]:
    """By number; two of one number, as a user's import may have them, by identity."""
    return tuple(sorted(epochs, key=lambda epoch: (epoch.epoch_number, epoch.uid)))
