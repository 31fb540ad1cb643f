"""The home: one folder that holds the database, the runs and the reports."""

from __future__ import annotations

import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

from schema.errors import ConfigError, StoreError
from schema.runs import TrainingRun, run_uid
from tasks import identity
from tasks.durable import commit, part_of
from tasks.durable import replace_text as replace_text  # many import it from here


@dataclass(frozen=True)
class TrialFolder:
    """Everything that belongs to one trial: ``runs/<campaign>/<number>/``.

    The rows of the database can be rebuilt from it.
    """

    root: Path

    @property
    def config(self) -> Path:
        """The trainer's configuration, in kohya's names."""
        return self.root / "trial.toml"

    @property
    def checkpoints(self) -> Path:
        """Folder of the LoRA files, one an epoch."""
        return self.root / "checkpoints"

    @property
    def claim(self) -> Path:
        """Stands for who runs the trial: several processes may share the home."""
        return self.root / "claim"

    @property
    def traceback(self) -> Path:
        """Where an unexpected error is written down."""
        return self.root / "traceback.txt"

    def samples(self, epoch: int) -> Path:
        """Folder of one epoch's pictures."""
        return self.root / "samples" / f"epoch-{epoch:03d}"

    def sheet(self, epoch: int) -> Path:
        """All pictures of one epoch on one sheet."""
        return self.root / "samples" / f"epoch-{epoch:03d}.png"


@dataclass(frozen=True)
class Home:
    """Paths inside a pixelloop home."""

    root: Path

    @classmethod
    def at(cls, path: Path) -> Home:
        """The home at a path; nothing is made yet."""
        return cls(path.expanduser().resolve())

    @property
    def exists(self) -> bool:
        """True where a home was made before."""
        return self._identity.exists()

    @property
    def uid(self) -> uuid.UUID:
        """Return the identity of the home, which is made at first use.

        Raises:
            ConfigError: its file is broken.
        """
        return identity.of(self._identity).uid

    @property
    def uids(self) -> frozenset[uuid.UUID]:
        """Return the identity of the home and those of the homes that it was copied from.

        Raises:
            ConfigError: its file is broken.
        """
        known = identity.of(self._identity)
        return frozenset((known.uid, *known.earlier))

    def owns(self, run: TrainingRun) -> bool:
        """Return whether a run belongs to this home.

        It does where this home made it, or the home that this one was copied or restored from. Runs of an import or of
        another home on the same store do not.
        """
        return run.uid in {run_uid(uid, run.campaign, run.number) for uid in self.uids}

    @property
    def _identity(self) -> Path:
        return self.root / identity.FILE

    @property
    def postgres(self) -> Path:
        """Folder of the embedded database."""
        return self.root / "postgres"

    @property
    def prefect(self) -> Path:
        """Prefect's own folder, apart from the user's."""
        return self.root / "prefect"

    @property
    def artifacts(self) -> Path:
        """Pictures that optuna-dashboard shows."""
        return self.root / "artifacts"

    @property
    def latents(self) -> Path:
        """Cache of encoded pictures, shared by all trials."""
        return self.root / "latents"

    @property
    def compiled(self) -> Path:
        """Kernels that torch compiled, for later trials."""
        return self.root / "compiled"

    @property
    def warm_log(self) -> Path:
        """What the process says that trainers are forked from."""
        return self.root / "warm-trainer.log"

    @property
    def flow_runs(self) -> Path:
        """Claims of the flow runs that are under way."""
        return self.root / "flow-runs"

    @property
    def workers_log(self) -> Path:
        """What processes say that run trials beside the campaign's own."""
        return self.root / "workers.log"

    @property
    def outbox(self) -> Path:
        """Rows that wait for a database that is away, and those that it refused."""
        return self.root / "outbox"

    @property
    def paused(self) -> Path:
        """Lies here while nothing may train."""
        return self.root / "paused"

    @property
    def at_work(self) -> Path:
        """Stands for what trains here: campaigns, which share it, or a paired test, which has it alone."""
        return self.root / "at-work"

    @property
    def up_claim(self) -> Path:
        """Stands for the process that keeps everything running."""
        return self.root / "up"

    @property
    def up_state(self) -> Path:
        """Where what runs can be reached."""
        return self.root / "up.json"

    @property
    def up_log(self) -> Path:
        """What Prefect's worker and the process that keeps it say."""
        return self.root / "up.log"

    def campaign_file(self, campaign: str) -> Path:
        """Settings of a campaign that came from a form."""
        return self.root / "campaigns" / f"{_plain(campaign)}.toml"

    def trial(self, campaign: str, number: int) -> TrialFolder:
        """Folder of one trial."""
        return TrialFolder(self.root / "runs" / _plain(campaign) / f"{number:03d}")

    def has_trials(self) -> bool:
        """Return whether the home has folders of trials, whose rows were in a database then."""
        try:
            return any(folder.name.isdecimal() and folder.is_dir() for folder in (self.root / "runs").glob("*/*"))
        except OSError:
            return False

    def base_samples(self, campaign: str) -> TrialFolder:
        """Folder of what the base model draws without a LoRA."""
        return TrialFolder(self.root / "runs" / _plain(campaign) / "base")

    def report(self, campaign: str) -> Path:
        """The campaign's report."""
        return self.root / f"report-{_plain(campaign)}.html"

    def impact(self, campaign: str) -> Path:
        """Folder of the campaign's impact report."""
        return self.root / f"impact-{_plain(campaign)}"

    def best_lora(self, campaign: str) -> Path:
        """Copy of the best checkpoint, ready to be taken away."""
        return self.root / f"best-{_plain(campaign)}.safetensors"

    def relative(self, path: Path) -> str:
        """A path as the database keeps it: from the home if inside it, so that the folder can be moved."""
        full = path.resolve()
        return (full.relative_to(self.root) if full.is_relative_to(self.root) else full).as_posix()

    def absolute(self, path: str) -> Path:
        """A path from the database, wherever it leads."""
        return self.root / path

    def inside(self, path: str, folder: TrialFolder | None = None) -> Path:
        """A path from the database that must not lead out: rows may come from a file of somebody else.

        Args:
            folder: must hold it; left out, the home, whose `runs` may be a link to another disk.

        Raises:
            StoreError: it leads out.
        """
        full = self.absolute(path)
        places = (self.root, self.root / "runs") if folder is None else (folder.root,)
        if "\0" in path or not any(full.resolve().is_relative_to(place.resolve()) for place in places):
            raise StoreError(f"{path} of the database lies outside {places[0]}, so it is left alone: mend the row")
        return full


def missing_database(home: Home) -> str:
    """Say that the database of a home with trials is gone; an empty one in its place would hide the loss."""
    return (
        f"the database of {home.root} is missing, though the home holds trials: restore a backup, or set DATABASE_URL "
        f"again if the rows are there, or move {home.root / 'runs'} away to begin anew"
    )


def _plain(campaign: str) -> str:
    """The name, if it is no path; that of a row may be anything.

    Raises:
        ConfigError: it is one.
    """
    if Path(campaign).name != campaign or campaign in ("", "..") or "\0" in campaign:
        raise ConfigError(f"{campaign!r} is no name of a campaign: take letters, digits, - and _")
    return campaign


def copy_atomically(source: Path, target: Path) -> None:
    """Copy a file so that the target is never seen half-written."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(target)
    with source.open("rb") as read, part.open("xb") as written:
        shutil.copyfileobj(read, written)
        written.flush()
        os.fsync(written.fileno())
    commit(part, target)
