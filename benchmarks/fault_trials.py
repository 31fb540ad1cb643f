"""Real trials of the demo's tiny model, healthy and with planted faults; finished ones are kept and not run again."""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from benchmarks.faults import PICTURES, Fault, healthy
from demo.portraits import write_dataset
from demo.workspace import PACKAGE, SIZE
from optimizer.control.objective import best_epoch, quality_of
from schema.parameters import Parameters, with_defaults
from schema.prompts import PromptSuite, load_prompts
from schema.runs import EpochMetrics, EpochResult, Outcome, RunHistory, RunStatus, TrainingRun, epoch_uid
from tasks.metrics.sets import training_pictures, with_set_measures
from tasks.metrics.suite import as_bytes, measure, summarise
from tasks.sampling.pipeline import Sampler
from tasks.training.config import write_config
from tasks.training.dataset import dataset_fingerprint, find_pictures
from tasks.training.events import EpochEvent, FailedEvent, FinishedEvent
from tasks.training.launch import TrainerProcess
from tasks.training.warm import WarmTrainer

_START = datetime(2026, 1, 1, tzinfo=UTC)
_NAMESPACE = uuid.UUID("6a3f1d52-95a6-4e58-9ef0-54a3f2f6c0d1")
_STEPS = 10
_MOST_EPOCHS = 6  # measured of one trial: drawing costs more than training here


@dataclass(frozen=True)
class Trial:
    """A finished trial: what was planted (None: nothing), the run, and its data set."""

    fault: Fault | None
    run: RunHistory
    dataset: Path


class Laboratory:
    """Runs trials one after the other in a work folder."""

    def __init__(self, folder: Path, base: Path = PACKAGE / "base", prompts: Path = PACKAGE / "prompts.toml") -> None:
        """Args: folder: keeps finished trials; base: the model's folder; prompts: the suite each epoch is judged by."""
        self._folder, self._base = folder, base
        folder.mkdir(parents=True, exist_ok=True)
        self._suite: PromptSuite = load_prompts(prompts).changed(steps=_STEPS)
        self._sampler = Sampler(str(base), "cpu", 1)
        self._warm = WarmTrainer(folder / "warm.log", 1)

    def close(self) -> None:
        """End the waiting trainer."""
        self._warm.close()

    def trial(self, fault: Fault | None, seed: int) -> Trial:
        """The trial of a fault, run if it is not kept."""
        parameters = healthy(seed)
        if fault is not None:
            parameters = fault.change(parameters)
        label = f"{fault.name if fault else 'healthy'} {seed}"
        identity = json.dumps([label, parameters, self._base.name, _STEPS], sort_keys=True)
        place = self._folder / hashlib.sha256(identity.encode()).hexdigest()[:16]
        if not (place / "run.json").exists():
            shutil.rmtree(place, ignore_errors=True)
            self._lay_out(place / "portraits", fault, seed)
            run = self._run(place, with_defaults(parameters), seed)
            (place / "run.part").write_text(run.model_dump_json(), encoding="utf-8")
            (place / "run.part").rename(place / "run.json")
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
        text = (place / "run.json").read_text(encoding="utf-8")
        return Trial(fault, RunHistory.model_validate_json(text), place / "portraits")

    def _lay_out(self, folder: Path, fault: Fault | None, seed: int) -> None:
        write_dataset(folder, PICTURES, 7, SIZE)
        if fault is not None and fault.plant is not None:
            fault.plant(folder, random.Random(seed))

    def _run(self, place: Path, parameters: Parameters, seed: int) -> RunHistory:
        uid = uuid.uuid5(_NAMESPACE, place.name)
        run = TrainingRun(
            uid=uid, campaign="faults", number=seed, run_name=f"run-{place.name[:6]}", status=RunStatus.FINISHED,
            base_model=str(self._base.name), dataset=dataset_fingerprint(place / "portraits"),
            num_images=len(find_pictures(place / "portraits")), all_parameters=parameters,
            started_at=_START + timedelta(hours=seed),
        )  # fmt: skip
        write_config(
            place / "trial.toml", parameters, base_model=str(self._base), dataset_dir=place / "portraits",
            output_dir=place / "checkpoints", output_name="fault", cache_dir=self._folder / "latents",
        )  # fmt: skip
        epochs: list[EpochResult] = []
        with TrainerProcess(place / "trial.toml", place, "cpu", 1, self._warm) as trainer:
            for event in trainer.follow():
                if isinstance(event, EpochEvent):
                    run = run.changed(epochs_done=event.epoch, total_training_time=event.time_trained)
                    if self._wanted(event.epoch, int(parameters["max_train_epochs"] or 1)):
                        epochs.append(self._judged(event, uid, place / "portraits"))
                elif isinstance(event, FailedEvent):
                    run = run.changed(outcome=event.outcome, failure=event.sentence)
                elif isinstance(event, FinishedEvent):
                    run = run.changed(outcome=Outcome.OK)
        best = best_epoch(RunHistory(run=run, epochs=tuple(epochs)).curve)
        if best is not None:
            run = run.changed(best_epoch=best[0], quality=best[1])
        return RunHistory(run=run, epochs=tuple(epochs))

    def _wanted(self, epoch: int, total: int) -> bool:
        """Whether an epoch is judged: all of a short run, else the evenly spread ones."""
        return epoch == total or epoch % max(1, round(total / _MOST_EPOCHS)) == 0

    def _judged(self, event: EpochEvent, uid: uuid.UUID, dataset: Path) -> EpochResult:
        metrics = self._measured(Path(event.checkpoint), dataset)
        return EpochResult(
            uid=epoch_uid(uid, event.epoch), run_uid=uid, epoch_number=event.epoch, quality=quality_of(metrics),
            train_loss=event.loss, seconds=event.seconds, quantitative_metrics=metrics, created_at=_START,
        )  # fmt: skip

    def _measured(self, checkpoint: Path, dataset: Path) -> EpochMetrics:
        drawn = self._sampler.draw(self._suite, checkpoint)
        prompts = [p for p in self._suite.prompts for _ in self._suite.seeds]
        metrics = summarise(measure(drawn, [p.expectation for p in prompts]))
        training = training_pictures(tuple(path for path, _ in find_pictures(dataset)))
        return with_set_measures(metrics, as_bytes(drawn), [p.name for p in prompts], training)
