"""Rank the possible causes of a run's issues: unusual settings, known risks, findings of the data audit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from optimizer.diagnosis.known_causes import judged
from optimizer.diagnosis.reference_runs import ALPHAS, Departure, Healthy
from optimizer.search.rules import Rule, text_of
from schema.findings import DataAudit, Level, LikelyCause
from schema.parameters import PARAMETERS
from schema.runs import RunHistory
from schema.states import IssueName

# All weights are chosen by hand and checked together on planted faults: the right cause came first for all 45 runs,
# without a false alarm on 20 healthy ones (benchmarks/RESULTS.md). Distances are in shares of a search range.
_NEAR = 0.15  # distance from healthy runs up to which a setting is not suspicious
_SCALE = 0.3  # distance at which the odds of a setting are 1
_FAR = 0.5  # distance from which a setting is reported even if no harm was measured
_MAX_ODDS = 6.0  # of a distant setting, so that it cannot hide all other causes
_UNKNOWN = 0.3  # odds of a cause that is not listed here, so that a single suspect is not certain
_EXPLAINS, _EXPLAINS_NOT = 3.0, 0.5  # factors on the odds of a cause that explains an observed issue, or none
_MIN_ODDS = 0.1  # below these a cause is not worth reading
_CLEARING_RUNS = 2  # healthy runs with the same risk that clear it

BLOWN_UP = frozenset((IssueName.DIVERGED, IssueName.COLLAPSED, IssueName.LOW_QUALITY, IssueName.OSCILLATING))
FALSE_COLOURS = frozenset(
    (IssueName.WRONG_BACKGROUND, IssueName.WRONG_HAIR, IssueName.TWO_TONED_HAIR, IssueName.MISSING_CROWN)
)
SOFT = frozenset((IssueName.BLURRED, IssueName.NOISY_PALETTE, IssueName.PHOTOREALISTIC))
UNLEARNT = (
    frozenset(
        (
            IssueName.LOW_QUALITY,
            IssueName.UNDERTRAINED,
            IssueName.PHOTOREALISTIC,
            IssueName.BLURRED,
            IssueName.NOISY_PALETTE,
        )
    )
    | FALSE_COLOURS
)
OVERDONE = frozenset((IssueName.OVERTRAINED, IssueName.MEMORISED))


@dataclass(frozen=True)
class _Risk:
    """Describe a setting that is known to spoil training, whatever past runs show."""

    factor: str
    rules: tuple[str, ...]
    sentence: str
    fix: str
    odds: float
    explains: frozenset[str] | None = None  # issues it can cause; None: any


_RISKS = (
    _Risk("learning_rate", ("learning_rate >= 0.005",), "so high a learning rate destroys what the base model knew",
          "lower learning_rate tenfold", 0.5, BLOWN_UP),
    _Risk("keep_tokens", ("shuffle_caption == true", "keep_tokens == 0"),
          "shuffling moves the first tag", "set keep_tokens = 1", 0.6),
    _Risk("color_aug", ("color_aug == true",),
          "random colour shifts spoil exact colours", "set color_aug = false", 0.8),
    _Risk("noise_offset", ("noise_offset > 0.2",), "so high a noise offset shifts flat colours",
          "lower noise_offset to 0.1 or less", 0.8),
    _Risk("network_dim", ("network_dim >= 256",), "so high a rank has room for photographs and noise",
          "lower network_dim to 32 or less", 0.6),
    _Risk("caption_dropout_rate", ("caption_dropout_rate > 0.4",),
          "so many dropped captions loosen the tie of words and pictures", "lower caption_dropout_rate", 0.6),
    _Risk("caption_tag_dropout_rate", ("caption_tag_dropout_rate > 0.5",),
          "so many dropped tags loosen the tie of words and features", "lower caption_tag_dropout_rate", 0.6),
    _Risk("resize_interpolation", ("resize_interpolation != nearest",),
          "interpolation softens pixel art's edges where pictures are scaled", "set resize_interpolation = nearest",
          0.3),
)  # fmt: skip

_DATA: dict[str, tuple[str, float, frozenset[str]]] = {
    "caption_mismatch": ("captions", 3.0, FALSE_COLOURS | {IssueName.LOW_QUALITY}),
    "shared_code": ("captions", 3.0, FALSE_COLOURS | {IssueName.LOW_QUALITY}),
    "code_without_feature": ("captions", 0.8, FALSE_COLOURS),
    "equal_captions": ("captions", 0.8, FALSE_COLOURS | OVERDONE),
    "too_many_tokens": ("captions", 0.6, FALSE_COLOURS),
    "unprotected_trigger": ("captions", 0.0, frozenset()),  # the risk "keep_tokens" reports this
    "soft_edges": ("data", 3.0, SOFT | {IssueName.LOW_QUALITY}),
    "fractional_upscaling": ("data", 0.3, SOFT),
    "duplicates": ("data", 0.8, OVERDONE),
    "mixed_sizes": ("data", 0.5, SOFT),
    "few_pictures": ("data", 2.0, OVERDONE | FALSE_COLOURS | {IssueName.LOW_QUALITY}),
}
"""By check: category, odds if every picture is affected, and the issues that it explains."""

_TOO_HIGH: dict[str, frozenset[str]] = {
    "learning_rate": BLOWN_UP | OVERDONE, "unet_lr": BLOWN_UP | OVERDONE, "text_encoder_lr": BLOWN_UP | FALSE_COLOURS,
    "network_alpha": BLOWN_UP, "conv_alpha": BLOWN_UP | SOFT,
    "network_dim": BLOWN_UP | SOFT | OVERDONE | {IssueName.OOM},
    "conv_dim": BLOWN_UP | SOFT, "max_train_epochs": OVERDONE, "noise_offset": BLOWN_UP | FALSE_COLOURS | SOFT,
    "train_batch_size": frozenset((IssueName.OOM, IssueName.UNDERTRAINED)), "resolution": frozenset((IssueName.OOM,)),
    "caption_dropout_rate": FALSE_COLOURS, "caption_tag_dropout_rate": FALSE_COLOURS,
}  # fmt: skip
_TOO_LOW: dict[str, frozenset[str]] = {
    "learning_rate": UNLEARNT, "unet_lr": UNLEARNT, "text_encoder_lr": FALSE_COLOURS, "network_alpha": UNLEARNT,
    "network_dim": UNLEARNT, "conv_dim": SOFT, "max_train_epochs": UNLEARNT, "keep_tokens": FALSE_COLOURS,
}  # fmt: skip
"""Issues that a parameter explains when it is higher, or lower, than in healthy runs. Parameters not listed may explain
any issue."""


@dataclass(frozen=True)
class _Suspect:
    """Hold a possible cause, its odds, and the issues it explains; None: any."""

    cause: LikelyCause
    odds: float
    explains: frozenset[str] | None
    clear: bool = True  # report it even if no harm was measured


def likely_causes(
    run: RunHistory, healthy: Healthy, audit: DataAudit | None, issues: Sequence[str]
) -> tuple[LikelyCause, ...]:
    """Return possible causes by their probability, the likeliest first.

    The odds of a cause grow with the distance of its setting from healthy runs, or with the share of pictures that a
    finding affects. They are raised if it explains an observed issue, and lowered if it explains none. Its confidence
    is its share of all odds, which include those of an unlisted cause.

    Args:
        run: The run to explain.
        healthy: Good runs to compare with. Without any, only known risks and the data are suspects.
        audit: Audit of the run's data set; None if there is none.
        issues: Names of the run's issues. Without any, only clear suspects are returned.
    """
    suspects: dict[str, _Suspect] = {}
    for suspect in (*_from_audit(run, audit), *_from_settings(run, healthy), *_from_risks(run, healthy, issues)):
        # Audit, settings and risks may blame the same factor. It counts once, with its highest odds.
        known = suspects.get(suspect.cause.factor, suspect)
        surer = max(known, suspect, key=lambda s: s.odds)
        suspects[suspect.cause.factor] = replace(surer, clear=known.clear or suspect.clear)
    weighed = [(s.cause, s.odds * _factor(s.explains, issues)) for s in suspects.values() if issues or s.clear]
    total = sum(odds for _, odds in weighed) + _UNKNOWN
    ranked = sorted((pair for pair in weighed if pair[1] >= _MIN_ODDS), key=lambda pair: -pair[1])
    return tuple(cause.changed(confidence=odds / total) for cause, odds in ranked)


def _factor(explains: frozenset[str] | None, issues: Sequence[str]) -> float:
    if not issues or explains is None:
        return 1.0
    return _EXPLAINS if explains & set(issues) else _EXPLAINS_NOT


def _from_settings(run: RunHistory, healthy: Healthy) -> Iterator[_Suspect]:
    for departure in healthy.departures(run):
        if departure.size > _NEAR:
            yield _as_suspect(departure, healthy)


def _as_suspect(d: Departure, healthy: Healthy) -> _Suspect:
    spec = PARAMETERS[d.name]
    ratio = f" / {ALPHAS[d.name]}" if d.name in ALPHAS else ""
    usual = _span_text(d)
    explains = None if d.high is None else (_TOO_HIGH if d.high else _TOO_LOW).get(d.name)
    number = d.name == "num_images"
    fix = "add different pictures" if number else f"set {d.name}{ratio} {_target_text(d)}, as healthy runs have it"
    odds = min((d.size / _SCALE) ** 2, _MAX_ODDS)
    factor = "few_pictures" if number else d.name
    return _Suspect(
        LikelyCause(
            factor=factor, category=str(spec.category),
            sentence=f"{d.name}{ratio} = {text_of(d.value)} where {_comparison_text(d, healthy)} {usual}",
            recommendation=fix, confidence=0.0, evidence=tuple(h.run.run_name for h in healthy.runs[:5]),
        ),
        0.0 if number and d.high else odds, explains, d.size >= _FAR,
    )  # fmt: skip


def _comparison_text(d: Departure, healthy: Healthy) -> str:
    """Return whom a setting is compared with, as '6 healthy runs have'."""
    if d.runs == len(healthy.runs):
        return f"{d.runs} healthy runs have"
    return f"the {d.runs} healthy runs that use it have" if d.runs > 1 else "the one healthy run that uses it has"


def _target_text(d: Departure) -> str:
    """Return where to set a parameter, as 'to 8' or 'between 0.0002 and 0.002'."""
    low, high = d.usual[0], d.usual[-1]
    span = d.high is not None and text_of(low) != text_of(high)
    return f"between {text_of(low)} and {text_of(high)}" if span else f"to {_span_text(d)}"


def _span_text(d: Departure) -> str:
    if d.high is None:
        return " or ".join(text_of(v) for v in d.usual)
    low, high = d.usual[0], d.usual[-1]
    return text_of(low) if low == high else f"{text_of(low)} to {text_of(high)}"


def _from_risks(run: RunHistory, healthy: Healthy, issues: Sequence[str]) -> Iterator[_Suspect]:
    for risk in _RISKS:
        if risk.explains is not None and not risk.explains & set(issues):
            continue
        rules = [Rule.parse(text) for text in risk.rules]
        if not _meets(run, rules) or sum(_meets(h, rules) for h in healthy.runs) >= _CLEARING_RUNS:
            continue
        value = text_of(run.run.all_parameters.get(risk.factor, PARAMETERS[risk.factor].default))
        cause = LikelyCause(
            factor=risk.factor, category=str(PARAMETERS[risk.factor].category),
            sentence=f"{risk.sentence} ({risk.factor} = {value}; general experience)", recommendation=risk.fix,
            confidence=0.0,
        )  # fmt: skip
        yield _Suspect(cause, risk.odds, risk.explains)


def _meets(run: RunHistory, rules: Sequence[Rule]) -> bool:
    used = judged(run.run.all_parameters)
    return all(used[rule.left] is not None and rule.holds(used) for rule in rules)


def _from_audit(run: RunHistory, audit: DataAudit | None) -> Iterator[_Suspect]:
    if audit is None:
        return
    flips = bool(run.run.all_parameters.get("flip_aug"))
    for found in audit.findings:
        category, odds, explains = _DATA.get(found.check, ("data", 0.0, frozenset()))
        factor = found.check
        if found.check == "sided_tags" and flips:
            factor, category, odds, explains = "flip_aug", "data", 3.0, FALSE_COLOURS | SOFT | {IssueName.LOW_QUALITY}
        elif found.level is Level.NOTE:
            continue
        cause = LikelyCause(
            factor=factor, category=category, sentence=found.sentence, recommendation=found.mend, confidence=0.0,
            evidence=(f"audit: {found.check}", *found.files),
        )  # fmt: skip
        # The root lets a finding about few pictures still count.
        yield _Suspect(cause, odds * math.sqrt(found.share), explains, odds >= 1)
