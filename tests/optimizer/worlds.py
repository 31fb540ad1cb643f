"""Synthetic trainings: a smooth peak of quality inside the space, failure above a learning rate."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from optimizer.search.space import Space
from schema.campaign import CampaignFile
from schema.parameters import Parameters
from schema.runs import (
    EpochMetrics,
    EpochResult,
    Outcome,
    PictureMetrics,
    RunHistory,
    RunStatus,
    TrainingRun,
    epoch_uid,
)

START = datetime(2026, 1, 1, tzinfo=UTC)
CLIFF = 1e-2
"""Learning rate above which a run diverges."""

SEARCH: dict[str, Any] = {
    "learning_rate": {"low": 1e-5, "high": 1e-1, "log": True},
    "network_dim": {"low": 4, "high": 128, "log": True},
    "optimizer_type": {"choices": ["AdamW", "Lion", "Prodigy"]},
    "caption_dropout_rate": {"low": 0.0, "high": 0.2},
}


def campaign_file(search: dict[str, Any] | None = None, **more: Any) -> CampaignFile:
    campaign = {"name": "night", "base_model": "base", "dataset": "data"}
    return CampaignFile.model_validate({"campaign": campaign, "search": search or SEARCH, **more})


def space_of(search: dict[str, Any] | None = None, **more: Any) -> Space:
    return Space.of(campaign_file(search, **more))


def peak(parameters: Parameters) -> float | None:
    """Quality of a setting, 80 at its best; None above the cliff."""
    rate, dim = float(parameters["learning_rate"] or 0), float(parameters["network_dim"] or 0)
    if rate > CLIFF:
        return None
    loss = 12 * (math.log10(rate) + 3.2) ** 2 + 3 * (math.log2(dim) - 4.5) ** 2
    return max(80 - loss - {"AdamW": 0, "Lion": 8, "Prodigy": 4}[str(parameters["optimizer_type"])], 0.0)


def picture(overall: float = 60.0, **more: Any) -> PictureMetrics:
    """Metrics of a picture with nothing wrong but its overall score."""
    clean = {
        "edge_sharpness": 95.0, "pixel_art_purity": 90.0, "palette_size": 16, "palette_score": 100.0,
        "dithering_score": 100.0, "photorealism": 3.0, "grid_confidence": 0.9, "style": overall, "overall": overall,
        "background_accuracy": 95.0, "hair_accuracy": 95.0,
    }  # fmt: skip
    return PictureMetrics.model_validate({**clean, **more})


def metrics(overall: float = 60.0, shares: dict[str, float] | None = None, **more: Any) -> EpochMetrics:
    return EpochMetrics.model_validate({"mean": picture(overall, **more), **(shares or {})})


def a_run(
    number: int,
    parameters: Parameters,
    quality: float | None = None,
    outcome: Outcome | None = None,
    curve: Sequence[float] = (),
    epochs: Sequence[EpochMetrics] = (),
    **more: Any,
) -> RunHistory:
    """An ended run; diverged if nothing is said of it."""
    found = list(epochs) or [metrics(q) for q in curve]
    run = TrainingRun(
        uid=uuid.UUID(int=number),
        campaign=more.pop("campaign", "night"),
        number=number,
        run_name=f"night-{number:03d}",
        status=RunStatus.FINISHED,
        outcome=outcome or (Outcome.DIVERGED if quality is None and not curve and not epochs else Outcome.OK),
        base_model=more.pop("base_model", "base"),
        dataset=more.pop("dataset", "data"),
        all_parameters=parameters,
        quality=quality if quality is not None else max((m.mean.overall for m in found if m.mean), default=None),
        epochs_done=max(len(curve), len(epochs)),
        started_at=START + timedelta(hours=number),
        **more,
    )
    return RunHistory(run=run, epochs=tuple(_epoch(run, i + 1, m) for i, m in enumerate(found)))


def _epoch(run: TrainingRun, number: int, found: EpochMetrics) -> EpochResult:
    return EpochResult(
        uid=epoch_uid(run.uid, number),
        run_uid=run.uid,
        epoch_number=number,
        quality=found.mean.overall if found.mean else None,
        quantitative_metrics=found,
        created_at=START,
    )


def random_runs(space: Space, n: int, seed: int, noise: float = 1.5, first: int = 0) -> list[RunHistory]:
    """Runs at random settings of the synthetic world."""
    rng = np.random.default_rng(seed)
    runs = []
    for number in range(first, first + n):
        parameters = space.complete(space.at(rng.random(len(space.names))))
        truth = peak(parameters)
        quality = None if truth is None else float(np.clip(truth + rng.normal(0, noise), 0, 100))
        runs.append(a_run(number, parameters, quality))
    return runs
