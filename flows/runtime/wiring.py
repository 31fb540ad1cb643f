"""The one place that picks: settings to a concrete store, study, sampler and trainer."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from flows.runtime import progress
from flows.runtime.prefect_login import forget_server
from flows.runtime.secret_blocks import open_settings
from optimizer.effects.principles import in_force, scope_of
from optimizer.history import related
from optimizer.search.gate import Gate
from optimizer.search.gate_report import ledger
from optimizer.search.space import Space
from optimizer.search.study import CampaignStudy
from optimizer.search.surrogate import Surrogate
from schema.campaign import Campaign, CampaignFile, load_campaign
from schema.errors import ConfigError, NotFoundError, StoreError
from schema.findings import GateLedger
from schema.parameters import Parameters
from schema.prompts import PromptSuite, load_prompts
from schema.runs import EpochResult, RunHistory, TrainingRun, run_uid
from schema.settings import Settings
from tasks import gpus
from tasks.base_model import check_base_model
from tasks.child_process import child_environment
from tasks.claims import Claim
from tasks.home import Home, TrialFolder, missing_database
from tasks.identity import settle
from tasks.store.address import postgres_address
from tasks.store.base import CampaignRecord, Store
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.objects import LocalObjects, ObjectStore
from tasks.store.outbox import OutboxStore
from tasks.store.postgres import PostgresStore, alone, patient_connect, wait_for_server
from tasks.store.rebase import rebase_database, rebase_files
from tasks.store.records import RecordStore
from tasks.store.tables import Tables
from tasks.training.config import check_supported, load_config, write_config
from tasks.training.dataset import dataset_fingerprint, num_images
from tasks.training.launch import TrainerProcess
from tasks.training.sd_scripts import SdScriptsProcess, check_sd_scripts
from tasks.training.warm import WarmTrainer

if TYPE_CHECKING:
    from tasks.sampling.pipeline import Sampler


@dataclass(frozen=True)
class Services:
    """What every command of one home shares."""

    home: Home
    settings: Settings
    store: OutboxStore
    tables: Tables
    address: Callable[[], str]
    embedded: EmbeddedPostgres | None
    warm: WarmTrainer | None

    @property
    def database_url(self) -> str:
        """Return the address of the database; a server of ours may come back at another port."""
        return self.address()

    @property
    def optuna_url(self) -> str:
        """Optuna keeps its tables in a schema of its own in the same database."""
        return self._optuna.replace("postgresql://", "postgresql+psycopg://")

    def optuna_connect(self) -> Callable[[], object]:
        """How Optuna connects: a server of ours is started, for another one it waits."""
        return patient_connect(lambda: self._optuna, self._start_or_wait)

    def _start_or_wait(self) -> None:
        if self.embedded is not None:
            self.embedded.start()
        else:
            wait_for_server(self._optuna)

    @property
    def _optuna(self) -> str:
        url = self.database_url
        return url + ("&" if "?" in url else "?") + "options=-csearch_path%3Doptuna"

    @property
    def objects(self) -> ObjectStore:
        """Where files are kept: in the home, with copies in a bucket where one is named.

        Raises:
            ConfigError: a bucket without a project.
        """
        url, key, bucket = self.settings.supabase_url, self.settings.supabase_key, self.settings.bucket
        if bucket is None:
            return LocalObjects(self.home.root)
        if url is None or key is None:
            raise ConfigError("PIXELLOOP_BUCKET is set, so set SUPABASE_URL and SUPABASE_KEY as well")
        from tasks.store.bucket import BucketObjects  # a second that most commands can do without

        return BucketObjects(url, key, bucket)

    def prefect_url(self) -> str:
        """Address of Prefect's own database, made if it is missing."""
        if self.embedded is None:
            raise ConfigError("DATABASE_URL is set, so run a Prefect server of your own and set PREFECT_API_URL")
        return self.embedded.ensure_database("prefect")

    def campaign(self, name: str | None) -> CampaignRecord:
        """A campaign by name, or the newest that was run here; runs of earlier days only if there is nothing else.

        Raises:
            NotFoundError: there is none; the message lists those that exist.
        """
        known = sorted(self.store.campaigns(), key=lambda record: "file" in record.settings)
        if not known:
            raise NotFoundError(f"no campaign in {self.home.root}: start one with 'pixelloop run campaign.toml'")
        if name is None:
            return known[-1]
        for record in known:
            if name == record.name:
                return record
        raise NotFoundError(f"no campaign {name} in {self.home.root}: there is {', '.join(c.name for c in known)}")

    def ledger(self, name: str, history: Sequence[RunHistory]) -> GateLedger:
        """What the gate did to a campaign with these runs."""
        file = self.campaign(name).settings.get("campaign", {}).get("campaign", {})
        least = file.get("failed_quality", Campaign.model_fields["failed_quality"].default)
        return ledger(history, self.store.refusals(name), least)

    def alone_with_principles(self) -> contextlib.AbstractContextManager[None]:
        """Keep others out from reading principles to writing them: analyses of all campaigns, and the user's word."""
        return alone(patient_connect(self.address, self._start_or_wait), "/principles")

    def revive(self) -> None:
        """Start the database again where it is ours and has died."""
        if self.embedded is not None:
            self.embedded.start()

    def close(self) -> None:
        """Let go of the trainer and of the database; the last one out stops it."""
        if self.warm is not None:
            self.warm.close()
        self.store.close()
        if self.embedded is not None:
            self.embedded.stop_if_idle()


_homes: dict[Path, Services] = {}
_campaigns: dict[tuple[Path, Path], Context] = {}
_sessions: list[None] = []
_pinned: list[tuple[Claim, str]] = []  # with the GPUs that it was chosen from
_LOOK = 5.0  # seconds between looks for a free GPU: trials take minutes


def open_home(home: str) -> Services:
    """Start or join the home's database and bring it up to date; once a process and home."""
    place = Home.at(Path(home))
    if place.root not in _homes:
        _homes[place.root] = _open_home(place)
    return _homes[place.root]


def _open_home(place: Home) -> Services:
    settings = open_settings()
    embedded, address = _database(place, settings)
    shared = embedded is None or settings.supabase_url is not None
    before = place.uid
    moved = settle(place.root, shared, lambda former: _follow(place, embedded, former))
    if moved is not None:
        _say(moved)
    if place.uid != before:
        forget_server(place.prefect)
    migrate(address())
    kept = _store(settings, address, embedded)
    store = OutboxStore(kept, place.outbox, lambda sentence: progress.listener.message(sentence))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(place.compiled))
    warm = WarmTrainer(place.warm_log, settings.threads) if settings.warm_trainer else None
    return Services(place, settings, store, kept.tables, address, embedded, warm)


def _database(place: Home, settings: Settings) -> tuple[EmbeddedPostgres | None, Callable[[], str]]:
    """Start the home's own server, or check the address of the user's.

    Raises:
        StoreError: the home had a database, which is not there.
    """
    if settings.database_url is not None:
        url = postgres_address(settings.database_url.get_secret_value())
        return None, lambda: url
    embedded = EmbeddedPostgres(place.postgres, _say)
    if settings.supabase_url is None and embedded.is_missing() and place.has_trials():
        raise StoreError(missing_database(place))
    embedded.start()
    return embedded, embedded.url


def _say(sentence: str) -> None:
    """Tell what was repaired, also where no campaign's messages are shown; stdout may be read by a program."""
    if isinstance(progress.listener, progress.TerminalListener):
        progress.listener.message(sentence)
    else:
        print(f"pixelloop: {sentence}", file=sys.stderr)


def _follow(place: Home, embedded: EmbeddedPostgres | None, former: str) -> bool:
    """Change the home's former path wherever it is saved; a database of the user's own may serve other homes too."""
    if embedded is not None:
        if not embedded.is_alone():
            return False  # whoever runs here still works with the former path
        for database in embedded.databases():
            rebase_database(embedded.url(database), former, str(place.root))
    rebase_files(place.root / "runs", former, str(place.root))
    return True


def _store(settings: Settings, address: Callable[[], str], embedded: EmbeddedPostgres | None) -> RecordStore:
    """Runs are kept on Supabase where a project is named; Optuna and Prefect need a Postgres beside it all the same."""
    if settings.supabase_url is None:
        return PostgresStore(address, embedded.start if embedded is not None else None)
    if settings.supabase_key is None:
        raise ConfigError("SUPABASE_URL is set, but SUPABASE_KEY is not: set it to the project's secret key")
    from tasks.store.supabase import SupabaseStore  # a second that most commands can do without

    return SupabaseStore(settings.supabase_url, settings.supabase_key)


@dataclass(frozen=True)
class Context:
    """Everything one campaign needs; cheap to open again in another process."""

    services: Services
    file: CampaignFile
    path: Path
    space: Space
    suite: PromptSuite
    study: CampaignStudy
    gate: Gate
    dataset: str

    @property
    def name(self) -> str:
        """Name of the campaign."""
        return self.file.campaign.name

    @property
    def home(self) -> Home:
        """Where everything lies."""
        return self.services.home

    @property
    def store(self) -> Store:
        """Where everything is kept."""
        return self.services.store

    @property
    def device(self) -> str:
        """The device of trainer and sampler."""
        return gpus.pick_device(self.services.settings.device)

    def folder(self, number: int) -> TrialFolder:
        """Folder of a trial."""
        return self.home.trial(self.name, number)

    def owns(self, run: TrainingRun) -> bool:
        """Return whether the run belongs to this home: see `Home.owns`."""
        return self.home.owns(run)

    def related(self) -> list[RunHistory]:
        """All runs on this base model and data set, of any campaign: what decisions compare with."""
        return related(self.store.history(), self.file.base_model, self.dataset)

    def surrogate(self, history: Sequence[RunHistory]) -> Surrogate:
        """A model of what is known so far."""
        campaign = self.file.campaign
        return Surrogate.fit(history, self.space, campaign.failed_quality, self.file.base_model, self.dataset)

    def new_run(self, number: int, parameters: Parameters) -> TrainingRun:
        """The record of a run that is about to start."""
        return TrainingRun(
            uid=run_uid(self.home.uid, self.name, number),
            campaign=self.name,
            number=number,
            run_name=f"{self.name}-{number:03d}",
            base_model=self.file.base_model,
            dataset=self.dataset,
            num_images=num_images(self.file.dataset_dir),
            all_parameters=parameters,
            started_at=datetime.now(UTC),
        )

    def trainer(self, run: TrainingRun) -> TrainerProcess:
        """The trainer's process for a run, not yet started; started again it resumes."""
        folder = self.folder(run.number)
        write_config(
            folder.config,
            run.all_parameters,
            base_model=self.file.base_model,
            dataset_dir=self.file.dataset_dir,
            output_dir=folder.checkpoints,
            output_name=run.run_name,
            cache_dir=self.home.latents,
        )
        threads = self.services.settings.threads
        if self.file.sd_scripts is not None:
            return SdScriptsProcess(
                load_config(folder.config), folder.root, self.device, threads, *self.file.sd_scripts
            )
        return TrainerProcess(folder.config, folder.root, self.device, threads, self.services.warm)

    def sampler(self) -> Sampler:
        """The pipeline that draws, loaded once a process."""
        return _sampler(self.file.base_model, self.device, self.services.settings.threads)

    def base(self) -> EpochResult | None:
        """What the base model draws without a LoRA, if it was measured."""
        settings = self.services.campaign(self.name).settings
        return EpochResult.model_validate(settings["base"]) if "base" in settings else None


def open_campaign(campaign_file: str, home: str) -> Context:
    """Read a campaign and open its study; once a process, campaign and home.

    Raises:
        ConfigError: something in the files is wrong; one sentence says what.
    """
    key = (Path(campaign_file).resolve(), Home.at(Path(home)).root)
    if key not in _campaigns:
        _campaigns[key] = _open_campaign(key[0], home)
    return _campaigns[key]


def read_campaign(path: Path) -> tuple[CampaignFile, PromptSuite, str]:
    """A campaign's file, prompts and data set's fingerprint, held against all that can be known before a start.

    Raises:
        ConfigError: something in them is wrong; one sentence says what.
        BadDataError: there are no pictures.
    """
    file = load_campaign(path)
    check_base_model(file.base_model)
    suite = load_prompts(file.prompts_file)
    space = Space.of(file)
    for setting in file.start:
        if problems := space.problems(setting):
            raise ConfigError(f"{path}: [[start]]: {'; '.join(problems)}: change it or the search space")
    check_supported(space.complete({}), str(path))
    if file.sd_scripts is not None:
        check_sd_scripts(*file.sd_scripts)
    return file, suite, dataset_fingerprint(file.dataset_dir)


def _open_campaign(path: Path, home: str) -> Context:
    file, suite, fingerprint = read_campaign(path)
    services = open_home(home)
    space = Space.of(file, in_force(services.store.principles(), scope_of(file.base_model, fingerprint)))
    campaign = file.campaign
    study = CampaignStudy.open(
        campaign.name, services.optuna_url, space, campaign.sampler, campaign.seed, services.optuna_connect()
    )
    gate = Gate(file.gate, space, campaign.seed)
    return Context(services, file, path, space, suite, study, gate, fingerprint)


@contextlib.contextmanager
def session() -> Iterator[None]:
    """Whatever is opened inside is closed when the outermost session of the process ends."""
    _sessions.append(None)
    try:
        yield
    finally:
        _sessions.pop()
        if not _sessions:
            _close_all()


def _close_all() -> None:
    """Forget what was opened and stop what nobody else uses."""
    for context in _campaigns.values():
        context.study.close()
    _campaigns.clear()
    for services in _homes.values():
        services.close()
    _homes.clear()
    while _pinned:
        claim, os.environ[gpus.VISIBLE] = _pinned.pop()
        claim.release()


def pin_gpu(wanted: str) -> None:
    """Make one GPU, which no other campaign has, the only one of this process; wait until one is free.

    Args:
        wanted: the device from the settings. One that is named by its number is shared.

    Raises:
        ConfigError: there is no such device.
    """
    if _pinned or gpus.pick_device(wanted) != "cuda":
        return
    names, told = gpus.visible(), False
    while (taken := gpus.take(names)) is None:
        if not told:
            progress.listener.message(f"all GPUs ({', '.join(names)}) are taken by other campaigns: waiting for one")
        told = True
        time.sleep(_LOOK)
    _pinned.append((taken[1], ",".join(names)))
    os.environ[gpus.VISIBLE] = taken[0]


def side_by_side(parallel: int) -> int:
    """How many trials run at a time: as many as GPUs where the campaign says 0."""
    wanted = _pinned[0][1].split(",") if _pinned else [""]
    return parallel or len(wanted)


def unpinned() -> dict[str, str]:
    """The environment of a process that is to find a GPU of its own."""
    return child_environment({gpus.VISIBLE: _pinned[0][1]} if _pinned else {})


@functools.lru_cache(maxsize=1)
def _sampler(base_model: str, device: str, threads: int) -> Sampler:
    from tasks.sampling.pipeline import Sampler  # torch: seconds that most commands can do without

    return Sampler(base_model, device, threads)
