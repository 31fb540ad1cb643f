"""Find the issues of an epoch's pictures or of a run from measurements alone."""

from __future__ import annotations

from dataclasses import dataclass

from optimizer.control.objective import CurveState, best_epoch, curve_state
from optimizer.history import best_quality, judged_epoch
from schema.runs import EpochMetrics, Outcome, PictureMetrics, RunHistory
from schema.states import IssueName

# Thresholds on scores of 0-100. Those without a reason were chosen by hand, as where a person sees the problem.
_ACCURATE = 60.0  # colour accuracy below which a colour is visibly wrong
_SHARE = 0.25  # share of pictures from which an issue is one of the epoch, not of single pictures
_LATE_FALL = 5.0  # quality points below the best epoch at the end: five times the noise of a prompt suite
_LATE_GAIN = 2.0  # quality points gained in the last epoch: twice the noise of a prompt suite
_SHARP = 40.0  # edge sharpness or pixel art purity below which pictures are blurred
_PALETTE = 60.0  # palette score below which the palette is noisy
_WORN = 50.0  # accessory score below which the accessory is missing
_COLLAPSED = 5.0  # colour score below which no promised colour is anywhere in the picture
_UNDERTRAINED_BY = 20.0  # quality points gained in the last epoch at which undertraining is most severe


@dataclass(frozen=True)
class Issue:
    """Hold one problem, its severity (0-1) and the measurement that shows it."""

    name: IssueName
    category: str
    severity: float
    measurement: str


def picture_issues(metrics: EpochMetrics) -> tuple[Issue, ...]:
    """Return the issues of an epoch's pictures, worst first; none if nothing could be measured."""
    if metrics.mean is None:
        return ()
    if collapsed(metrics):  # noise has every other issue too, which would hide this one
        text = f"no figure to be seen: colours {metrics.mean.colour:.0f}, style {metrics.mean.style:.0f} of 100"
        return (_issue(IssueName.COLLAPSED, "dynamics", 1.0, text),)
    found = [
        _photorealistic(metrics, metrics.mean),
        _colour(IssueName.WRONG_BACKGROUND, "background", metrics.mean.background_accuracy),
        _two_toned(metrics),
        _colour(IssueName.WRONG_HAIR, "hair", metrics.mean.hair_accuracy),
        _missing_crown(metrics),
        _missing_accessory(metrics.mean),
        _memorised(metrics),
        _noisy_palette(metrics.mean),
        _blurred(metrics.mean),
    ]
    return _sorted([issue for issue in found if issue is not None])


def collapsed(metrics: EpochMetrics) -> bool:
    """Return whether the pictures show noise or nothing: none of the promised colours is present."""
    return metrics.mean is not None and metrics.mean.colour is not None and metrics.mean.colour < _COLLAPSED


def run_issues(run: RunHistory, failed_quality: float) -> tuple[Issue, ...]:
    """Return the issues of a run as a whole, worst first: how it ended, and the shape of its learning curve."""
    found = [issue for issue in (_ending(run), _shape(run)) if issue is not None]
    best, judged = best_quality(run), judged_epoch(run)
    # Low quality adds nothing for a run that is already reported as failed or collapsed.
    named = bool(run.run.outcome and run.run.outcome.failed) or (judged and collapsed(judged.quantitative_metrics))
    if best is not None and best < failed_quality and not named:
        text = f"best quality {best:.1f} (a run below {failed_quality:g} counts as failed)"
        found.append(Issue(IssueName.LOW_QUALITY, "dynamics", 1 - best / max(failed_quality, 1e-9) * 0.5, text))
    return _sorted(found)


def _sorted(issues: list[Issue]) -> tuple[Issue, ...]:
    return tuple(sorted(issues, key=lambda issue: -issue.severity))


def _issue(name: IssueName, category: str, severity: float, measurement: str) -> Issue:
    return Issue(name, category, min(max(severity, 0.05), 1.0), measurement)


def _photorealistic(metrics: EpochMetrics, mean: PictureMetrics) -> Issue | None:
    if metrics.photorealistic_share <= _SHARE and not mean.is_photorealistic:
        return None
    severity = max(metrics.photorealistic_share, mean.photorealism / 100)
    text = f"photorealism {mean.photorealism:.0f} of 100, {metrics.photorealistic_share:.0%} of the pictures above 50"
    return _issue(IssueName.PHOTOREALISTIC, "architecture", severity, text)


def _colour(name: IssueName, part: str, accuracy: float | None) -> Issue | None:
    if accuracy is None or accuracy >= _ACCURATE:
        return None
    text = f"{part} accuracy {accuracy:.0f} of 100 (good from {_ACCURATE:g})"
    return _issue(name, "captions", 1 - accuracy / 100, text)


def _two_toned(metrics: EpochMetrics) -> Issue | None:
    share = metrics.two_tone_share
    if share is None or share <= _SHARE:
        return None
    return _issue(IssueName.TWO_TONED_HAIR, "captions", share, f"{share:.0%} of the pictures show two-toned hair")


def _missing_crown(metrics: EpochMetrics) -> Issue | None:
    share = metrics.crown_share
    if share is None or share >= 1 - _SHARE:
        return None
    return _issue(IssueName.MISSING_CROWN, "captions", 1 - share, f"{share:.0%} of the promised crowns are there")


def _missing_accessory(mean: PictureMetrics) -> Issue | None:
    worn = {kind: score for kind, score in mean.accessories.items() if score < _WORN}
    if not worn:
        return None
    text = ", ".join(f"{kind} {score:.0f} of 100" for kind, score in worn.items())
    return _issue(IssueName.MISSING_ACCESSORY, "captions", 1 - min(worn.values()) / 100, text)


def _memorised(metrics: EpochMetrics) -> Issue | None:
    share = metrics.memorised_share
    if share is None or share <= _SHARE:
        return None
    return _issue(IssueName.MEMORISED, "progression", share, f"{share:.0%} of the pictures copy a training picture")


def _noisy_palette(mean: PictureMetrics) -> Issue | None:
    if mean.palette_score >= _PALETTE:
        return None
    text = f"{mean.palette_size} colours, palette score {mean.palette_score:.0f} of 100"
    return _issue(IssueName.NOISY_PALETTE, "architecture", 1 - mean.palette_score / 100, text)


def _blurred(mean: PictureMetrics) -> Issue | None:
    worst = min(mean.edge_sharpness, mean.pixel_art_purity)
    if worst >= _SHARP:
        return None
    text = f"edge sharpness {mean.edge_sharpness:.0f}, pixel art purity {mean.pixel_art_purity:.0f} of 100"
    return _issue(IssueName.BLURRED, "dynamics", 1 - worst / 100, text)


_ENDINGS = {
    Outcome.DIVERGED: (IssueName.DIVERGED, "dynamics"),
    Outcome.OUT_OF_MEMORY: (IssueName.OOM, "resources"),
    Outcome.BAD_DATA: (IssueName.BAD_DATA, "data"),
    Outcome.DISK_FULL: (IssueName.CRASHED, "resources"),
    Outcome.HUNG: (IssueName.CRASHED, "resources"),
    Outcome.CRASHED: (IssueName.CRASHED, "resources"),
}


def _ending(run: RunHistory) -> Issue | None:
    if run.run.outcome not in _ENDINGS:
        return None
    name, category = _ENDINGS[run.run.outcome]
    return Issue(name, category, 1.0, run.run.failure or f"the run ended: {run.run.outcome}")


def _shape(run: RunHistory) -> Issue | None:
    """Return an issue if quality fell after its peak, still rose at the end, or oscillated."""
    best = best_epoch(run.curve)
    if best is None or len(run.curve) < 3:
        return None
    (peak_epoch, peak), (last_epoch, last) = best, run.curve[-1]
    state = curve_state(run.curve)
    if state is CurveState.OSCILLATING:
        return _issue(IssueName.OSCILLATING, "dynamics", 0.5, f"quality goes up and down, {last:.1f} at the end")
    if peak - last > _LATE_FALL:
        text = f"quality {peak:.1f} at epoch {peak_epoch}, {last:.1f} at epoch {last_epoch}"
        return _issue(IssueName.OVERTRAINED, "progression", (peak - last) / max(peak, 1.0), text)
    # Better than all earlier epochs, since a recovery after a dip does not show undertraining.
    gain = last - max(q for _, q in run.curve[:-1])
    if gain > _LATE_GAIN and run.run.outcome is Outcome.OK:
        text = f"quality still rose by {gain:.1f} in the last epoch"
        return _issue(IssueName.UNDERTRAINED, "progression", gain / _UNDERTRAINED_BY, text)
    return None
