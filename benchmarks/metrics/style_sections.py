"""The figures of one measure each: what is right, what is wrong, and on which pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks.metrics import planted
from benchmarks.metrics.pictures import Picture
from benchmarks.scores import auc, mean
from schema.runs import PictureMetrics

PURE = 60.0
"""Purity from which a picture passes as pixel art."""

SCALE_TOLERANCE = 0.02
_WORST = 6


@dataclass(frozen=True)
class Measured:
    """A picture with what was measured on it."""

    picture: Picture
    metrics: PictureMetrics

    @property
    def group(self) -> str:
        """Its kind; coarsely stored pixel art is a kind of its own."""
        group, quality = self.picture.group, self.picture.quality
        if group not in ("whole", "fractional", "phase"):
            return group
        if quality is None:
            return f"{group} png"
        return "jpeg 60-75" if quality < 85 else f"{group} jpeg 85-95"

    @property
    def counts(self) -> bool:
        """False for pixel art whose grid hardly survives: x2, blur, JPEG below 85."""
        return self.group not in ("jpeg 60-75", "blur", "x2")


@dataclass(frozen=True)
class Section:
    """Figures of one measure, and the pictures that it does worst on."""

    title: str
    figures: dict[str, float]
    worst: Sequence[str] = ()

    def lines(self) -> Iterable[str]:
        """As printed."""
        yield f"\n{self.title}"
        for name, value in self.figures.items():
            yield f"  {name:44s}{value:9.4f}"
        yield from (f"    worst: {line}" for line in self.worst)


def grid(some: Sequence[Measured]) -> Section:
    """Share of pixel art whose scale is found; where cells are two pixels wide, 'no grid' is right."""
    art = [m for m in some if m.picture.pixel_art]
    figures = {"scale right": mean([_scale_right(m) for m in art if m.counts])}
    figures |= {f"  {name}": mean([_scale_right(m) for m in kind]) for name, kind in _by_group(art).items()}
    wrong = [m for m in art if m.counts and not _scale_right(m)]
    told = [f"{m.picture.name}: found {m.metrics.grid_scale}" for m in wrong[:_WORST]]
    return Section("grid", figures, told)


def purity(some: Sequence[Measured], tried: Sequence[Measured]) -> Section:
    """Pixel art against what is none."""
    art = [m for m in some if m.picture.pixel_art and m.counts]
    other = [m for m in some if not m.picture.pixel_art]
    plain = [m for m in other if m.group not in ("coarse JPEG", "8-px layout", "doubled photo")]
    high, low = [_purity(m) for m in art], [_purity(m) for m in other]
    passed, refused = [v >= PURE for v in high], [v < PURE for v in low]
    figures = {
        "AUC": auc(high, low),
        "AUC without deceiving ones": auc(high, [_purity(m) for m in plain]),
        "accuracy at 60": mean([*passed, *refused]),
        "pixel art that passes": mean(passed),
        "other that passes": 1 - mean(refused),
    }
    softer = [m for m in tried if m.group in ("crisp", "bilinear", "bicubic", "blur 2", "two-coloured")]
    for name, kind in _by_group([*some, *softer]).items():
        figures[f"  passes: {name}"] = mean([_purity(m) >= PURE for m in kind])
    worst = [*_told(sorted(art, key=_purity), _purity), *_told(sorted(other, key=_purity, reverse=True), _purity)]
    return Section("purity", figures, worst)


def photorealism(some: Sequence[Measured]) -> Section:
    """The flag: raised on pixel art by mistake, and on photographs rightly."""
    art = [m for m in some if m.picture.pixel_art and m.counts]
    photographs = [m for m in some if m.group in ("photo", "skt", "coarse JPEG")]
    figures = {
        "flag on pixel art (wrong)": mean([m.metrics.is_photorealistic for m in art]),
        "flag on photographs (right)": mean([m.metrics.is_photorealistic for m in photographs]),
        "AUC photographs against pixel art": auc([_photo(m) for m in photographs], [_photo(m) for m in art]),
    }
    for name, kind in _by_group(some).items():
        figures[f"  flag: {name}"] = mean([m.metrics.is_photorealistic for m in kind])
    worst = [*_told(sorted(art, key=_photo, reverse=True), _photo), *_told(sorted(photographs, key=_photo), _photo)]
    return Section("photorealism", figures, worst)


def sharpness(tried: Sequence[Measured]) -> Section:
    """Sharply enlarged sprites against the same ones enlarged or blurred smoothly."""
    kinds = _by_group([m for m in tried if m.group in ("crisp", "bilinear", "bicubic", "blur 2")])
    crisp = [_sharp(m) for m in kinds.pop("crisp", [])]
    soft = [m for kind in kinds.values() for m in kind]
    figures = {"AUC": auc(crisp, [_sharp(m) for m in soft]), "mean, crisp": mean(crisp)}
    figures |= {f"mean, {name}": mean([_sharp(m) for m in kind]) for name, kind in kinds.items()}
    return Section("sharpness", figures, _told(sorted(soft, key=_sharp, reverse=True), _sharp))


def palette(tried: Sequence[Measured]) -> Section:
    """Counted against planted colours."""
    some = [m for m in tried if m.group == "palette"]
    figures = {"mean absolute error": mean([_miscounted(m) for m in some])}
    for name, wanted in (("PNG", None), ("JPEG 90", 90)):
        figures[f"  {name}"] = mean([_miscounted(m) for m in some if m.picture.quality == wanted])
    figures["counted exactly"] = mean([_miscounted(m) == 0 for m in some])
    return Section("palette", figures, _told(sorted(some, key=_miscounted, reverse=True), _miscounted))


def dithering(some: Sequence[Measured], tried: Sequence[Measured]) -> Section:
    """Ordered dither against error diffusion and noise; pixel art, mostly without any, must not be blamed."""
    kinds = {name: kind for name, kind in _by_group(tried).items() if name in planted.DITHERS}
    ordered = [m for kind in kinds.values() for m in kind if m.picture.truth == 1]
    other = [m for kind in kinds.values() for m in kind if m.picture.truth == 0]
    figures = {"AUC": auc([_dither(m) for m in ordered], [_dither(m) for m in other])}
    for name in planted.DISORDER:
        figures[f"  AUC against {name}"] = auc([_dither(m) for m in ordered], [_dither(m) for m in kinds.get(name, [])])
    figures |= {f"mean, {name}": mean([_dither(m) for m in kind]) for name, kind in kinds.items()}
    art = [m for m in some if m.picture.pixel_art and m.counts]
    figures["mean, pixel art"] = mean([_dither(m) for m in art])
    figures["pixel art at 90 and above"] = mean([_dither(m) >= 90 for m in art])
    worst = [*_told(sorted(ordered, key=_dither), _dither), *_told(sorted(other, key=_dither, reverse=True), _dither)]
    return Section("dithering", figures, worst)


def stray(tried: Sequence[Measured]) -> Section:
    """Share of lone cells against the planted share."""
    some = [m for m in tried if m.group == "stray"]
    figures = {"mean absolute error": mean([_misstrayed(m) for m in some])}
    for name, wanted in (("PNG", None), ("JPEG 90", 90)):
        figures[f"  {name}"] = mean([_misstrayed(m) for m in some if m.picture.quality == wanted])
    return Section("stray pixels", figures, _told(sorted(some, key=_misstrayed, reverse=True), _misstrayed))


def two_coloured(tried: Sequence[Measured]) -> Section:
    """Backgrounds of two colours, both promised: still pixel art, and still what was promised."""
    some = [m for m in tried if m.group == "two-coloured"]
    figures = {
        "mean background accuracy": mean([_ground(m) for m in some]),
        "accuracy at 80 and above": mean([_ground(m) >= 80 for m in some]),
        "scale right": mean([_scale_right(m) for m in some]),
        "purity passes": mean([_purity(m) >= PURE for m in some]),
    }
    return Section("two-coloured backgrounds", figures, _told(sorted(some, key=_ground), _ground))


def noise(tried: Sequence[Measured]) -> Section:
    """How surely a noisy picture scores below the clean one: by purity on pixels, by stray pixels on cells."""
    figures = {}
    pairs: tuple[tuple[str, str, Callable[[Measured], float]], ...] = (
        ("pixel noise", "purity", lambda m: -_purity(m)),
        ("pixel noise", "style", lambda m: -m.metrics.style),
        ("pixel noise", "photorealism", _photo),
        ("cell noise", "stray pixels", lambda m: m.metrics.stray_pixels or 0.0),
        ("cell noise", "dithering", lambda m: -_dither(m)),
        ("cell noise", "style", lambda m: -m.metrics.style),
    )
    for group, measure_name, pick in pairs:
        levels: dict[float | None, list[float]] = defaultdict(list)
        for m in tried:
            if m.group == group:
                levels[m.picture.truth].append(pick(m))
        for sigma in planted.NOISES:
            figures[f"AUC {group} {sigma:2d}, {measure_name}"] = auc(levels[sigma], levels[0])
    return Section("noise", figures)


def _scale_right(m: Measured) -> bool:
    wanted, got = m.picture.scale, m.metrics.grid_scale
    if wanted is None or wanted < 3:
        return got is None
    return got is not None and abs(got / wanted - 1) <= SCALE_TOLERANCE


def _by_group(some: Iterable[Measured]) -> dict[str, list[Measured]]:
    kinds: dict[str, list[Measured]] = defaultdict(list)
    for m in some:
        kinds[m.group].append(m)
    return dict(kinds)


def _told(some: Sequence[Measured], pick: Callable[[Measured], float]) -> list[str]:
    return [f"{pick(m):8.3f}  {m.picture.name}" for m in some[:_WORST]]


def _purity(m: Measured) -> float:
    return m.metrics.pixel_art_purity


def _photo(m: Measured) -> float:
    return m.metrics.photorealism


def _sharp(m: Measured) -> float:
    return m.metrics.edge_sharpness


def _dither(m: Measured) -> float:
    return m.metrics.dithering_score


def _ground(m: Measured) -> float:
    return m.metrics.background_accuracy or 0.0


def _miscounted(m: Measured) -> float:
    return abs(m.metrics.palette_size - (m.picture.truth or 0))


def _misstrayed(m: Measured) -> float:
    return abs((m.metrics.stray_pixels or 0.0) - (m.picture.truth or 0))
