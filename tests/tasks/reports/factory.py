"""Synthetic histories: whole, typed records as a night leaves them."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from schema.findings import (
    Analysis,
    Decision,
    Diagnosis,
    Evidence,
    GateLedger,
    GateVerdict,
    Hypothesis,
    ParameterEffect,
    Prediction,
    RefusedProposal,
)
from schema.parameters import Parameters, with_defaults
from schema.runs import (
    EpochMetrics,
    EpochResult,
    Outcome,
    PictureMetrics,
    RunHistory,
    RunStatus,
    TrainingRun,
    epoch_uid,
    refusal_uid,
    run_uid,
)

HOME = uuid.UUID(int=7)
START = datetime(2026, 11, 20, 22, 0, tzinfo=UTC)


def picture_metrics(quality: float, **changes: Any) -> PictureMetrics:
    """Figures that go with a quality."""
    figures: dict[str, Any] = {
        "background_accuracy": quality - 4, "hair_accuracy": quality + 3, "crown_accuracy": None,
        "edge_sharpness": quality, "pixel_art_purity": quality, "palette_size": 24, "palette_score": 90.0,
        "dithering_score": 95.0, "photorealism": 100 - quality, "grid_confidence": 0.8, "colour": quality - 1,
        "style": quality + 1, "overall": quality,
    }  # fmt: skip
    return PictureMetrics(**{**figures, **changes})


def diagnosis(issue: str = "wrong_background", **changes: Any) -> Diagnosis:
    """A diagnosis as the analysis writes it."""
    fields: dict[str, Any] = {
        "issue": issue, "category": "captions", "severity": 0.6, "confidence": 0.7,
        "cause": "Background and hair share one hex code in 14 captions.",
        "recommendation": "Give each feature its own colour word.", "evidence": ("background_accuracy 41.0",),
    }  # fmt: skip
    return Diagnosis(**{**fields, **changes})


def epoch(run: uuid.UUID, number: int, quality: float | None, sheet: str | None = None, **changes: Any) -> EpochResult:
    """One epoch; `quality` None means that no picture could be measured."""
    mean = None if quality is None else picture_metrics(quality)
    fields: dict[str, Any] = {
        "uid": epoch_uid(run, number), "run_uid": run, "epoch_number": number, "quality": quality,
        "train_loss": 0.2 / max(number, 1), "seconds": 300.0, "evaluation_seconds": 20.0, "sample_sheet": sheet,
        "quantitative_metrics": EpochMetrics(mean=mean),
        "diagnosed_issues": (diagnosis("noisy_palette"),) if quality is not None and quality < 35 else (),
        "created_at": START + timedelta(minutes=6 * number),
    }  # fmt: skip
    return EpochResult(**{**fields, **changes})


def history(
    number: int,
    curve: tuple[float | None, ...],
    parameters: Parameters | None = None,
    outcome: Outcome | None = Outcome.OK,
    home: Path | None = None,
    **changes: Any,
) -> RunHistory:
    """A run with a quality for each epoch; with a `home`, sample sheets are drawn into it."""
    uid = run_uid(HOME, "night", number)
    sheets = [draw_sheet(home, number, place, quality) for place, quality in enumerate(curve, start=1)]
    epochs = tuple(epoch(uid, n, q, sheet) for n, (q, sheet) in enumerate(zip(curve, sheets, strict=True), start=1))
    measured = [(q, n) for n, q in enumerate(curve, start=1) if q is not None]
    best = max(measured, default=None)
    start = START + timedelta(hours=number)
    fields: dict[str, Any] = {
        "uid": uid, "campaign": "night", "number": number, "run_name": f"night-{number:03d}", "outcome": outcome,
        "status": RunStatus.RUNNING if outcome is None else RunStatus.FINISHED, "base_model": "sd15",
        "dataset": "portraits:0a1b", "all_parameters": with_defaults(parameters or {}),
        "quality": best[0] if best and outcome is not None else None,
        "best_epoch": best[1] if best and outcome is not None else None,
        "epochs_done": len(curve), "total_training_time": 300.0 * len(curve) if curve else None,
        "started_at": start, "finished_at": None if outcome is None else start + timedelta(minutes=45),
    }  # fmt: skip
    return RunHistory(run=TrainingRun(**{**fields, **changes}), epochs=epochs)


def draw_sheet(home: Path | None, number: int, epoch_number: int, quality: float | None) -> str | None:
    """A sheet of six little faces that get tidier with the quality; returns its path from the home."""
    if home is None:
        return None
    path = home / "runs" / "night" / f"{number:03d}" / "samples" / f"epoch-{epoch_number:03d}.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = Image.new("RGB", (6 * 24, 24), "#333333")
    pen = ImageDraw.Draw(sheet)
    colours = ("#2fa84f", "#2f6fd6", "#e8c63a", "#7d3fb2", "#1f9e9a", "#ee8fb4")
    for place, colour in enumerate(colours):
        left = place * 24
        pen.rectangle((left, 0, left + 23, 23), fill=colour)
        pen.rectangle((left + 7, 5, left + 16, 9), fill=colours[(place + number) % 6])
        pen.rectangle((left + 7, 9, left + 16, 18), fill="#d9a577")
        pen.point([(left + 9, 12), (left + 14, 12)], fill="#1b1d24")
        for wrong in range(int((100 - (quality or 0)) / 4)):
            pen.point((left + (wrong * 7 + epoch_number) % 24, (wrong * 11 + number) % 24), fill="#999999")
    sheet.resize((6 * 96, 96), Image.Resampling.NEAREST).save(path)
    return path.relative_to(home).as_posix()


def prediction(quality: float = 70.0, **changes: Any) -> Prediction:
    """A prediction of +-8 around a quality."""
    fields: dict[str, Any] = {"quality": quality, "low": quality - 8, "high": quality + 8, "p_fail": 0.1, "n": 9}
    return Prediction(**{**fields, **changes})


def verdict(decision: Decision = Decision.RUN, **changes: Any) -> GateVerdict:
    """A judgement of the gate."""
    refused = decision is Decision.SKIP
    fields: dict[str, Any] = {
        "decision": decision, "rule": "known_failure" if refused else "accepted",
        "reason": "3 of 3 runs with network_dim >= 64 failed: photorealistic." if refused else "No known failure.",
        "evidence": ("night-003", "night-005") if refused else (), "p_fail": 0.86 if refused else 0.08,
    }  # fmt: skip
    return GateVerdict(**{**fields, **changes})


def refusal(number: int, **changes: Any) -> RefusedProposal:
    """A proposal that the gate refused."""
    fields: dict[str, Any] = {
        "uid": refusal_uid(HOME, "night", number), "campaign": "night", "number": number,
        "parameters": with_defaults({"network_dim": 96, "learning_rate": 8e-4}),
        "verdict": verdict(Decision.SKIP), "predicted": prediction(22.0), "created_at": START,
    }  # fmt: skip
    return RefusedProposal(**{**fields, **changes})


def effect(parameter: str, size: float, **changes: Any) -> ParameterEffect:
    """An effect with an interval of +-5."""
    fields: dict[str, Any] = {
        "parameter": parameter, "n": 11, "effect": size, "low": size - 5, "high": size + 5, "p_value": 0.01,
        "best": "<= 0.0005", "importance": 0.4, "verdict": "critical", "evidence": Evidence.OBSERVED,
    }  # fmt: skip
    return ParameterEffect(**{**fields, **changes})


def hypothesis(priority: int, change: Parameters, **changes: Any) -> Hypothesis:
    """A next experiment."""
    fields: dict[str, Any] = {
        "uid": uuid.UUID(int=100 + priority), "campaign": "night", "priority": priority, "change": change,
        "parameters": with_defaults(change), "expected": prediction(84.0), "gain": 2.5, "created_at": START,
        "rationale": "The best three runs have the smallest rank, and none below 8 was tried.",
    }  # fmt: skip
    return Hypothesis(**{**fields, **changes})


def ledger(*refusals: RefusedProposal, **changes: Any) -> GateLedger:
    """What the gate did."""
    return GateLedger(refusals=refusals, **changes)


def analysis(**changes: Any) -> Analysis:
    """What was learnt."""
    fields: dict[str, Any] = {
        "campaign": "night", "n_runs": 6, "created_at": START + timedelta(hours=9),
        "effects": (
            effect("network_dim", 31.5, confounded_with=("network_alpha",)),
            effect("learning_rate", 12.0, verdict="secondary", evidence=Evidence.TESTED, p_value=0.0004),
            effect("keep_tokens", 0.8, verdict="none detected", p_value=0.71, best="", importance=None),
        ),
        "hypotheses": (hypothesis(1, {"network_dim": 8}), hypothesis(2, {"learning_rate": 3e-4, "keep_tokens": 1})),
    }  # fmt: skip
    return Analysis(**{**fields, **changes})


def night(home: Path | None = None) -> list[RunHistory]:
    """Six runs: four that ended well, one that diverged, one that ran out of memory before its first epoch."""
    broken = (diagnosis("photorealistic", category="architecture", cause="A rank of 64 and more learns photographs."),)
    return [
        history(0, (31, 48, 60, 66, 64), {"network_dim": 16, "learning_rate": 1e-4}, home=home,
                predicted=prediction(50.0, n=0), verdict=verdict(), root_cause_diagnosis=(diagnosis(),)),
        history(1, (44, 62, 78.25, 75, 70), {"network_dim": 16, "learning_rate": 4e-4, "keep_tokens": 1}, home=home,
                predicted=prediction(74.0), verdict=verdict(),
                best_checkpoint="runs/night/001/checkpoints/e3.safetensors",
                recommended_next_steps=("Try network_dim 8.",)),
        history(2, (40, 55, 61), {"network_dim": 32, "learning_rate": 3e-4}, Outcome.STOPPED_EARLY, home=home,
                predicted=prediction(66.0), verdict=verdict()),
        history(3, (18, 9), {"network_dim": 96, "learning_rate": 1e-3}, Outcome.DIVERGED, home=home, verdict=verdict(),
                failure="The loss left the finite range at step 412.", root_cause_diagnosis=broken),
        history(4, (35, 52, 58, 63, None), {"network_dim": 8, "learning_rate": 2e-4, "keep_tokens": 3}, home=home,
                predicted=prediction(71.0), verdict=verdict()),
        history(5, (), {"network_dim": 128, "learning_rate": 2e-4}, Outcome.OUT_OF_MEMORY,
                failure="CUDA ran out of memory at step 1.", root_cause_diagnosis=broken),
    ]  # fmt: skip


def base_model(home: Path | None = None) -> EpochResult:
    """What the base model draws without a LoRA."""
    return epoch(uuid.UUID(int=1), 0, 22.5, draw_sheet(home, 900, 0, 22.5), train_loss=None)
