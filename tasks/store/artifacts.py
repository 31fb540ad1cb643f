"""Files of a run that has ended: which are kept, where, and a row for each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from schema.errors import StoreError
from schema.runs import Artifact, EpochResult, TrainingRun, artifact_uid
from schema.states import ArtifactKind
from tasks.home import Home
from tasks.store.base import Store
from tasks.store.objects import ObjectStore


def superfluous(run: TrainingRun, epochs: Sequence[EpochResult], keep: int | None) -> list[EpochResult]:
    """Epochs whose LoRA file may go: all but the `keep` best ones, and never the run's best.

    Args:
        keep: how many stay; None keeps all. Of equal ones the earlier stays; unmeasured ones go first.
    """
    if keep is None:
        return []
    files = [e for e in epochs if e.checkpoint is not None]
    ranked = sorted(files, key=lambda e: (e.quality is None, -(e.quality or 0.0), e.epoch_number))
    return [e for e in ranked[keep:] if e.checkpoint != run.best_checkpoint]


def settle(
    store: Store, objects: ObjectStore, home: Home, run: TrainingRun, epochs: Sequence[EpochResult], keep: int | None
) -> int:
    """Remove superfluous LoRA files of a run that has ended, and keep all others, every picture too.

    Repeated after a kill it ends the same.

    Returns:
        Number of files that were removed.

    Raises:
        StoreError: a file cannot be read or removed, lies elsewhere, or the storage refuses it.
    """
    gone = superfluous(run, epochs, keep)
    try:
        for epoch in gone:
            home.inside(str(epoch.checkpoint), home.trial(run.campaign, run.number)).unlink(missing_ok=True)
            store.save_epoch(epoch.changed(checkpoint=None))
        for epoch in (e for e in epochs if e not in gone):
            _keep(store, objects, home, run, epoch, ArtifactKind.CHECKPOINT, epoch.checkpoint)
        for epoch in epochs:
            _keep(store, objects, home, run, epoch, ArtifactKind.SHEET, epoch.sample_sheet)
            for picture in _pictures(home, epoch):
                _keep(store, objects, home, run, epoch, ArtifactKind.SAMPLE, home.relative(picture))
    except OSError as error:
        raise StoreError(f"files of {run.run_name} cannot be kept: {error}") from None
    return len(gone)


def _pictures(home: Home, epoch: EpochResult) -> Iterator[Path]:
    """Single pictures lie in the folder that has the sheet's name."""
    if epoch.sample_sheet is not None:
        yield from sorted(home.inside(epoch.sample_sheet).with_suffix("").glob("*.png"))


def _keep(
    store: Store,
    objects: ObjectStore,
    home: Home,
    run: TrainingRun,
    epoch: EpochResult,
    kind: ArtifactKind,
    path: str | None,
) -> None:
    if path is None or not (file := home.inside(path)).exists():
        return
    objects.put(path, file)
    row = Artifact(
        uid=artifact_uid(run.uid, path), run_uid=run.uid, epoch_number=epoch.epoch_number, kind=kind, path=path,
        storage=objects.name, bytes=file.stat().st_size, sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        created_at=run.finished_at or datetime.now(UTC),
    )  # fmt: skip
    store.save_artifact(row)
