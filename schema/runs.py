"""Define the records of training runs, their epochs, and the measurements of each picture."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from pydantic import Field, computed_field, model_validator

from schema.base import Frozen
from schema.findings import Diagnosis, GateVerdict, Prediction
from schema.parameters import PARAMETERS, Parameters, ParameterValue
from schema.states import ArtifactKind, GateRule, IssueName

_NAMESPACE = uuid.UUID("7c1c2f0e-5f0c-4d0e-9d2a-6b1b6f6f6c01")
"""Never change this: all stored identities are derived from it."""


def run_uid(home_uid: uuid.UUID, campaign: str, number: int) -> uuid.UUID:
    """Return the identity of a run. It is deterministic, so a repeated write changes nothing.

    Args:
        home_uid: Identity of the pixelloop home that runs the trial.
        campaign: Name of the campaign.
        number: Number of the trial in the campaign, from 0.
    """
    return uuid.uuid5(_NAMESPACE, f"{home_uid}/{campaign}/{number}")


def epoch_uid(run: uuid.UUID, epoch: int) -> uuid.UUID:
    """Return the identity of an epoch result. Epochs count from 1, as in kohya's scripts."""
    return uuid.uuid5(run, f"epoch/{epoch}")


def imported_uid(identity: str) -> uuid.UUID:
    """Return the identity of an imported run. Importing the same files again gives the same identity."""
    return uuid.uuid5(_NAMESPACE, f"imported/{identity}")


def rating_uid(run: uuid.UUID, epoch: int) -> uuid.UUID:
    """Return the identity of a person's rating of an epoch. A new rating replaces the old one."""
    return uuid.uuid5(run, f"rating/{epoch}")


def vote_uid(run: uuid.UUID, epoch: int, other: uuid.UUID, other_epoch: int, picture: str) -> uuid.UUID:
    """Return the identity of a vote between the pictures of two epochs. A later vote replaces an earlier one."""
    return uuid.uuid5(run, f"vote/{epoch}/{other}/{other_epoch}/{picture}")


def artifact_uid(run: uuid.UUID, path: str) -> uuid.UUID:
    """Return the identity of a file of a run."""
    return uuid.uuid5(run, f"artifact/{path}")


def refusal_uid(home_uid: uuid.UUID, campaign: str, number: int) -> uuid.UUID:
    """Return the identity of a refused proposal."""
    return uuid.uuid5(_NAMESPACE, f"{home_uid}/{campaign}/{number}/refused")


class Outcome(StrEnum):
    """Name how a run ended."""

    OK = "ok"
    STOPPED_EARLY = "stopped early"
    DIVERGED = "diverged"
    OUT_OF_MEMORY = "out of memory"
    BAD_DATA = "bad data"
    DISK_FULL = "disk full"
    HUNG = "hung"
    CRASHED = "crashed"

    @property
    def failed(self) -> bool:
        """Return whether the run ended without a usable result."""
        return self not in (Outcome.OK, Outcome.STOPPED_EARLY)

    @property
    def blames_parameters(self) -> bool:
        """Return whether the parameters, not the machine or the data, are the likely cause."""
        return self in (Outcome.DIVERGED, Outcome.OUT_OF_MEMORY)


class RunStatus(StrEnum):
    """Name the state of a run in the store."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"


class PictureMetrics(Frozen):
    """Hold the measurements of one picture. Scores are 0-100 and higher is better, unless stated otherwise.

    None means *not promised by the prompt* or *not measurable*. Averages leave such a part out
    and never count it as zero.
    """

    background_accuracy: float | None = Field(None, description="background colour against the promised one")
    hair_accuracy: float | None = Field(None, description="hair's dominant colour against the promised one")
    hair_two_tone: bool | None = Field(None, description="hair shows two hues in two areas; None: no hair found")
    hair_two_tone_score: float | None = Field(None, description="0-1, how far and how cleanly two hues are apart")
    crown_accuracy: float | None = Field(None, description="crown present on the head, in the promised colour")
    crown_present: bool | None = Field(
        None, description="a crown was found; None if none was promised, or its colour is that of hair or background"
    )
    accessories: dict[str, float] = Field({}, description="0-100 each for a promised hat, sunglasses, ...; 0: absent")
    colour_purity: float | None = Field(None, description="solid regions are of one colour")
    colour_bleeding: float | None = Field(
        None, description="share of a region that has another region's promised colour, 0-100; LOWER is better"
    )
    edge_sharpness: float = Field(description="share of edges completed within one pixel")
    pixel_art_purity: float = Field(description="edges lie on a pixel grid and cells are flat")
    palette_size: int = Field(description="perceptually distinct colours on the native grid (a count)")
    palette_score: float = Field(description="100 where the palette size is normal for pixel art")
    dithering_score: float = Field(description="100 for none or ordered dithering, low for noise")
    stray_pixels: float | None = Field(
        None, description="share of art pixels unlike all four neighbours, 0-1; real sprites have up to 0.16"
    )
    smooth_gradients: float | None = Field(None, description="share of neighbouring pixels with a slight step, 0-1")
    antialiasing: float | None = Field(None, description="share of edges that take more than one pixel, 0-1")
    grid_agreement: float | None = Field(None, description="share of pixels that have their art pixel's colour, 0-1")
    photorealism: float = Field(description="0 pixel art .. 100 photograph; LOWER is better")
    grid_scale: float | None = Field(None, description="size of an art pixel in picture pixels; None: no grid")
    grid_left: float | None = Field(None, description="where the first whole art pixel starts, in picture pixels")
    grid_top: float | None = None
    grid_confidence: float = Field(description="0-1, edge energy on the grid beyond chance")
    colour: float | None = Field(None, description="weighted mean of the colour parts that were promised")
    style: float = Field(description="weighted mean of the style parts")
    overall: float = Field(description="colour and style together: the figure that is optimised")
    background_colour: str | None = Field(None, description="hex code of the dominant background colour found")
    hair_colour: str | None = Field(None, description="hex code of the dominant hair colour found")

    @property
    def is_photorealistic(self) -> bool:
        """Return whether smooth gradients outweigh the grid. The threshold was set on 400 photographs."""
        return self.photorealism > 50.0


class EpochMetrics(Frozen):
    """Hold the measurements of one epoch's pictures: their mean, and what the mean hides."""

    mean: PictureMetrics | None = Field(None, description="None where no picture could be measured")
    worst: float | None = Field(None, description="overall of the worst prompt, 0-100")
    two_tone_share: float | None = Field(None, description="share of pictures with two-toned hair, 0-1")
    crown_share: float | None = Field(None, description="share of promised crowns that are present, 0-1")
    photorealistic_share: float = Field(0.0, description="share of photorealistic pictures, 0-1")
    seed_spread: float | None = Field(None, description="standard deviation of `overall` over seeds, mean of prompts")
    diversity: float | None = Field(
        None, description="0-100, how outlines differ between prompts; below 35 one face for every prompt"
    )
    memorised_share: float | None = Field(None, description="share of pictures that copy a training picture, 0-1")
    worst_prompts: dict[str, str] = Field({}, description="by attribute, the prompt it is least true to")
    share: float = Field(1.0, gt=0, le=1, description="of the prompt suite that was drawn; below 1 it could not win")
    pictures: tuple[PictureMetrics, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _computed(cls, data: Any) -> Any:
        """Drop `color_accuracy`: rows from the database include it, but it is computed from `mean`."""
        return {k: v for k, v in data.items() if k != "color_accuracy"} if isinstance(data, dict) else data

    @computed_field(description="colour accuracy of the mean picture by part, 0-100; null where not promised")
    def color_accuracy(self) -> dict[str, float | None]:
        """Return the colour accuracy by part (0-100): overall, background, hair, crown, purity, and each accessory."""
        mean = self.mean
        if mean is None:
            return {}
        return {
            "overall": mean.colour, "background": mean.background_accuracy, "hair": mean.hair_accuracy,
            "crown": mean.crown_accuracy, "purity": mean.colour_purity, **mean.accessories,
        }  # fmt: skip


class EpochResult(Frozen):
    """Record one epoch of one run. Writing it again replaces the row."""

    uid: uuid.UUID
    run_uid: uuid.UUID
    epoch_number: int = Field(ge=0, description="from 1 as kohya's; 0 is the base model without a LoRA")
    quality: float | None = Field(None, ge=0, le=100)
    train_loss: float | None = None
    seconds: float | None = Field(None, description="training time of the epoch")
    evaluation_seconds: float | None = Field(None, description="drawing and measuring")
    checkpoint: str | None = Field(None, description="path of the LoRA file, relative to the home")
    sample_sheet: str | None = Field(None, description="path of the sample sheet, relative to the home")
    quantitative_metrics: EpochMetrics = EpochMetrics()
    diagnosed_issues: tuple[Diagnosis, ...] = ()
    recommendations: tuple[str, ...] = ()
    created_at: datetime

    @property
    def is_photorealistic(self) -> bool | None:
        """Return whether the pictures were diagnosed as photorealistic; None if no picture was measured."""
        return None if self.quantitative_metrics.mean is None else self._has(IssueName.PHOTOREALISTIC)

    @property
    def has_wrong_backgrounds(self) -> bool | None:
        """Return whether wrong background colours were diagnosed; None if no promised background was measured."""
        mean = self.quantitative_metrics.mean
        return None if mean is None or mean.background_accuracy is None else self._has(IssueName.WRONG_BACKGROUND)

    def _has(self, issue: str) -> bool:
        return any(found.issue == issue for found in self.diagnosed_issues)


class HumanRating(Frozen):
    """Record a person's rating of one epoch. Each score is 0-10."""

    uid: uuid.UUID
    run_uid: uuid.UUID
    epoch_number: int = Field(ge=0)
    visual: float | None = Field(None, ge=0, le=10, description="how good the pictures look")
    style: float | None = Field(None, ge=0, le=10, description="how well they match the style")
    prompt: float | None = Field(None, ge=0, le=10, description="how well they do what the prompts say")
    words: str | None = None
    created_at: datetime

    @property
    def quality(self) -> float | None:
        """Return the mean score on the scale of measured quality (0-100); None without scores."""
        scores = [score for score in (self.visual, self.style, self.prompt) if score is not None]
        return 10 * sum(scores) / len(scores) if scores else None


class PictureVote(Frozen):
    """Record a person's blind choice between two epochs' pictures of the same prompt and seed."""

    uid: uuid.UUID
    run_uid: uuid.UUID
    epoch_number: int = Field(ge=0)
    other_run_uid: uuid.UUID
    other_epoch_number: int = Field(ge=0)
    picture: str = Field(description="name of the picture's file without its ending: prompt and seed")
    choice: Literal["first", "second", "tie"] = Field(description="first: of `run_uid`, second: of `other_run_uid`")
    created_at: datetime


class Artifact(Frozen):
    """Record a file of a run: where it is stored, its kind, size and checksum."""

    uid: uuid.UUID
    run_uid: uuid.UUID
    epoch_number: int | None = None
    kind: ArtifactKind
    path: str = Field(description="key in its storage; of the local one a path from the home")
    storage: str = Field(description="local, or the name of the bucket")
    bytes: int | None = None
    sha256: str | None = None
    created_at: datetime


class TrainingRun(Frozen):
    """Record one training run: its parameters, its progress and how it ended."""

    uid: uuid.UUID
    campaign: str
    number: int = Field(ge=0, description="number of the trial in the campaign")
    run_name: str
    status: RunStatus = RunStatus.RUNNING
    outcome: Outcome | None = None
    failure: str | None = Field(None, description="one sentence, for outcomes that failed")
    base_model: str
    model_type: str = "sd15"
    dataset: str = Field(description="name and content hash of the data set")
    num_images: int | None = None
    all_parameters: Parameters
    quality: float | None = Field(None, ge=0, le=100, description="objective: quality of the best epoch")
    best_epoch: int | None = None
    best_checkpoint: str | None = None
    epochs_done: int = 0
    total_training_time: float | None = Field(None, description="seconds of training, without evaluation")
    peak_memory_mb: float | None = None
    predicted: Prediction | None = None
    verdict: GateVerdict | None = None
    root_cause_diagnosis: tuple[Diagnosis, ...] = ()
    recommended_next_steps: tuple[str, ...] = ()
    notes: str | None = Field(None, description="what a person wrote of the run")
    sources: dict[str, str] = Field({}, description="where each value of an imported run was read")
    started_at: datetime
    finished_at: datetime | None = None

    def diagnosed(self, found: Sequence[Diagnosis]) -> TrainingRun:
        """Return a copy of the run in which these diagnoses and their recommendations replace the earlier ones."""
        steps = tuple(dict.fromkeys(diagnosis.recommendation for diagnosis in found))
        return self.changed(root_cause_diagnosis=tuple(found), recommended_next_steps=steps)

    @property
    def time_at_work(self) -> float | None:
        """Return the seconds spent on training and evaluation, by a monotonic clock; None if not recorded."""
        seconds = self.all_parameters.get("time_at_work")
        return float(seconds) if isinstance(seconds, int | float) else None

    @property
    def is_half(self) -> bool:
        """Return whether the run is an arm of a paired test. Both arms must train and be measured in full."""
        return self.verdict is not None and self.verdict.rule is GateRule.PAIRED_TEST


class RunHistory(Frozen):
    """Join a run with its epochs, in order. Every decision is made from these."""

    run: TrainingRun
    epochs: tuple[EpochResult, ...] = ()

    @property
    def curve(self) -> tuple[tuple[int, float], ...]:
        """Return the (epoch, quality) pairs of the measured epochs, in order. Quality is 0-100."""
        return tuple((e.epoch_number, e.quality) for e in self.epochs if e.quality is not None)


def difference(first: TrainingRun, second: TrainingRun) -> dict[str, tuple[ParameterValue, ParameterValue]]:
    """Return the parameters that differ between two runs, with both values. Derived parameters are left out."""
    a, b = first.all_parameters, second.all_parameters
    names = sorted(name for name in {*a, *b} if name not in PARAMETERS or not PARAMETERS[name].derived)
    return {name: (a.get(name), b.get(name)) for name in names if a.get(name) != b.get(name)}
