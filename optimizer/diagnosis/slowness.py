"""Estimate how long a run takes, and find out whether a run was slow and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from optimizer.search.rules import text_of
from optimizer.search.space import active, filled
from schema.findings import LikelyCause
from schema.parameters import PARAMETERS, Parameters, ParameterValue
from schema.runs import RunHistory

_MIN_RUNS = 3  # other runs needed to compare with; chosen by hand
_MIN_ALIKE = 2
"""Runs with the same costly settings needed to compare with. Fewer than usual, since they differ less. By hand."""

_SLOWER = 1.5  # factor on the time per picture from which a run is slow; chosen by hand
_ALLOWANCE = 3.0  # spreads above the median from which a run is slow; the usual three sigma
_UNKNOWN = 0.3  # odds of a cause that is not listed here, as in `ranking`
_PRIOR = 1.0  # odds of a costly setting that no past run has had; chosen by hand
_SURE = 0.7
"""Confidence that the machine is to blame if runs with the same costly settings were faster. Chosen by hand."""

_MORE_COSTS = ("resolution", "network_dim", "conv_dim")
_FEWER_COST = ("train_batch_size",)
_COSTLY: dict[str, tuple[ParameterValue, str, str]] = {
    "cache_latents": (False, "every picture is encoded anew at each step", "set cache_latents = true"),
    "color_aug": (True, "changed colours keep latents from being cached", "set color_aug = false"),
    "gradient_checkpointing": (True, "checkpointing saves memory and costs a second forward pass",
                               "set gradient_checkpointing = false if memory allows it"),
    "mixed_precision": ("no", "full precision is slower on a GPU", "set mixed_precision = bf16 or fp16"),
    "network_train_unet_only": (False, "the text encoder is trained as well",
                                "set network_train_unet_only = true if captions need no new words"),
}  # fmt: skip
"""Values that cost time, the reason, and the fix."""


@dataclass(frozen=True)
class Slowness:
    """Describe a run that needed more time per picture than others.

    Attributes:
        ratio: Its seconds per picture, divided by the median of the others.
        seconds: Its seconds per picture.
        usual: Median seconds per picture of the others.
        compared: Number of other runs.
        alike: Whether they have the same costly settings, so that none of these is the cause.
    """

    ratio: float
    seconds: float
    usual: float
    compared: int
    alike: bool


def seconds_a_picture(run: RunHistory) -> float | None:
    """Return the training seconds per picture shown, the median over epochs; None if unknown."""
    per_epoch = _pictures_an_epoch(run.run.all_parameters, run.run.num_images)
    spent = [e.seconds for e in run.epochs if e.seconds]
    if not spent and run.run.total_training_time and run.run.epochs_done:
        spent = [run.run.total_training_time / run.run.epochs_done]
    return float(np.median(spent)) / per_epoch if spent and per_epoch else None


def expected_hours(parameters: Parameters, history: Sequence[RunHistory], num_images: int | None) -> float | None:
    """Estimate the hours of a training; None without a run to judge by.

    The estimate uses runs with the same costly settings if there are any, and otherwise all runs.

    Args:
        parameters: Full setting.
        history: Runs on the same base model.
        num_images: Number of pictures in the data set; None if unknown.
    """
    per_epoch = _pictures_an_epoch(parameters, num_images)
    rates = [(h, rate) for h in history if (rate := seconds_a_picture(h)) is not None]
    if per_epoch is None or not rates:
        return None
    wanted = _costs(parameters)
    alike = [rate for h, rate in rates if _costs(h.run.all_parameters) == wanted]
    full = filled(parameters)
    pictures = per_epoch * _number(full["max_train_epochs"])
    # As in kohya, a limit on steps replaces the one on epochs.
    if full["max_train_steps"] is not None:
        a_step = _number(full["train_batch_size"]) * _number(full["gradient_accumulation_steps"])
        pictures = _number(full["max_train_steps"]) * a_step
    return pictures * float(np.median(alike or [rate for _, rate in rates])) / 3600


def slowness(run: RunHistory, history: Sequence[RunHistory]) -> Slowness | None:
    """Return how much slower a run was than others with the same costly settings, or else than all others.

    None unless it needed at least 1.5 times as long per picture as the median, and was three spreads of the others
    (median absolute deviation of logarithms) above it.

    Args:
        run: The run.
        history: Runs on the same base model.
    """
    mine = seconds_a_picture(run)
    others = [(h, rate) for h in history if h.run.uid != run.run.uid and (rate := seconds_a_picture(h)) is not None]
    wanted = _costs(run.run.all_parameters)
    alike = [rate for h, rate in others if _costs(h.run.all_parameters) == wanted]
    if mine is None:
        return None
    for rates, least in ((alike, _MIN_ALIKE), ([rate for _, rate in others], _MIN_RUNS)):
        if len(rates) >= least and (found := _slower(mine, rates, rates is alike)) is not None:
            return found
    return None


def _slower(mine: float, rates: Sequence[float], alike: bool) -> Slowness | None:
    logs = np.log(rates)
    middle = float(np.median(logs))
    # 1.4826 turns a median absolute deviation into the standard deviation of a normal distribution.
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    if math.log(mine) - middle <= max(_ALLOWANCE * spread, math.log(_SLOWER)):
        return None
    return Slowness(mine / math.exp(middle), mine, math.exp(middle), len(rates), alike)


def slow_causes(run: RunHistory, history: Sequence[RunHistory], found: Slowness) -> tuple[LikelyCause, ...]:
    """Return the likely causes of a slow run, likeliest first: the machine, or settings that most runs do not have.

    The odds of a setting are how much slower past runs with it were, or come from experience if there are none.

    Args:
        run: The slow run.
        history: Runs on the same base model.
        found: Result of `slowness` for the run.
    """
    if found.alike:
        text = f"{found.compared} runs whose settings cost the same took {found.usual:.3g} s a picture"
        return (
            LikelyCause(
                factor="machine", category="resources", sentence=f"{text}: something else slowed the machine down",
                recommendation="look what else runs there, and how warm it gets", confidence=_SURE,
            ),
        )  # fmt: skip
    others = [h for h in history if h.run.uid != run.run.uid and seconds_a_picture(h) is not None]
    causes = [(c, odds) for c, odds in (_suspect(name, run, others, found) for name in _names()) if c and odds > 0]
    total = sum(odds for _, odds in causes) + _UNKNOWN
    ranked = sorted(causes, key=lambda pair: -pair[1])
    return tuple(cause.changed(confidence=odds / total) for cause, odds in ranked)


def _suspect(
    name: str, run: RunHistory, others: Sequence[RunHistory], found: Slowness
) -> tuple[LikelyCause | None, float]:
    value, theirs = active(run.run.all_parameters)[name], [active(h.run.all_parameters)[name] for h in others]
    costs = [_as_costly(name, v, value) for v in theirs]
    # A value that most other runs have as well does not explain why this one is slower.
    if value is None or not _costly(name, value) or sum(costs) * 2 > len(costs):
        return None, 0.0
    rates = np.log([seconds_a_picture(h) or 1.0 for h in others])
    shared = np.array(costs, dtype=bool)
    odds = _PRIOR
    evidence: tuple[str, ...] = ()
    if shared.sum() >= _MIN_ALIKE:
        effect = float(np.median(rates[shared]) - np.median(rates[~shared]))
        odds = max(effect, 0.0) / math.log(found.ratio)
        evidence = (f"{int(shared.sum())} runs with it took {math.exp(effect):.1f} times as long a picture",)
    why, fix = _explanation(name, theirs)
    return LikelyCause(
        factor=name, category=str(PARAMETERS[name].category), sentence=f"{name} = {text_of(value)}: {why}",
        recommendation=fix, confidence=0.0, evidence=evidence,
    ), odds  # fmt: skip


def _explanation(name: str, theirs: Sequence[ParameterValue]) -> tuple[str, str]:
    if name in _COSTLY:
        return _COSTLY[name][1:]
    numbers = [_number(v) for v in theirs if v is not None]
    if not numbers:
        return "other runs leave it to the model", f"leave {name} out if quality allows it"
    usual = text_of(float(np.median(numbers)))
    return f"most runs have {usual}", f"set {name} = {usual} if quality allows it"


def _names() -> tuple[str, ...]:
    return (*_MORE_COSTS, *_FEWER_COST, *_COSTLY)


def _costly(name: str, value: ParameterValue) -> bool:
    return name not in _COSTLY or value == _COSTLY[name][0]


def _as_costly(name: str, value: ParameterValue, than: ParameterValue) -> bool:
    """Return whether a value costs as much time as another value, or more."""
    if name in _COSTLY:
        return value == than
    return _number(value) >= _number(than) if name in _MORE_COSTS else _number(value) <= _number(than)


def _costs(parameters: Mapping[str, ParameterValue]) -> tuple[ParameterValue, ...]:
    used = active(parameters)
    return tuple(used[name] for name in _names())


def _pictures_an_epoch(parameters: Mapping[str, ParameterValue], num_images: int | None) -> float | None:
    return None if not num_images else num_images * (_number(filled(parameters)["num_repeats"]) or 1.0)


def _number(value: ParameterValue) -> float:
    """Return the value as a number; 0 if it is none."""
    return float(value) if isinstance(value, int | float) else 0.0
