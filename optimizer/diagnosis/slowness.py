"""How fast runs train: what a run will take, whether one was slow, and what made it so."""

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

_LEAST = 3  # runs to compare with
_LEAST_ALIKE = 2
_SLOWER = 1.5  # times: less is no news
_ALLOWANCE = 3.0  # spreads
_UNKNOWN = 0.3  # odds of a cause that nothing here names
_PRIOR = 1.0  # odds of a costly setting that no past run has had
_SURE = 0.7

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
"""Values that cost time, why, and what to do."""


@dataclass(frozen=True)
class Slowness:
    """A run that took longer a picture than others did.

    Attributes:
        ratio: its seconds a picture over theirs.
        seconds: its seconds a picture.
        usual: the median of the others.
        compared: how many they are.
        alike: whether they have the same settings, so that none of these is the cause.
    """

    ratio: float
    seconds: float
    usual: float
    compared: int
    alike: bool


def seconds_a_picture(run: RunHistory) -> float | None:
    """Training seconds a picture that is shown, the median over epochs; None where it cannot be told."""
    per_epoch = _pictures_an_epoch(run.run.all_parameters, run.run.num_images)
    spent = [e.seconds for e in run.epochs if e.seconds]
    if not spent and run.run.total_training_time and run.run.epochs_done:
        spent = [run.run.total_training_time / run.run.epochs_done]
    return float(np.median(spent)) / per_epoch if spent and per_epoch else None


def expected_hours(parameters: Parameters, history: Sequence[RunHistory], num_images: int | None) -> float | None:
    """Hours that a training will take, by the runs whose settings cost the same, else by all; None without any.

    Args:
        parameters: the full setting.
        history: runs on the same base model.
        num_images: of the data set.
    """
    per_epoch = _pictures_an_epoch(parameters, num_images)
    rates = [(h, rate) for h in history if (rate := seconds_a_picture(h)) is not None]
    if per_epoch is None or not rates:
        return None
    wanted = _costs(parameters)
    alike = [rate for h, rate in rates if _costs(h.run.all_parameters) == wanted]
    full = filled(parameters)
    pictures = per_epoch * _number(full["max_train_epochs"])
    if full["max_train_steps"] is not None:
        a_step = _number(full["train_batch_size"]) * _number(full["gradient_accumulation_steps"])
        pictures = _number(full["max_train_steps"]) * a_step
    return pictures * float(np.median(alike or [rate for _, rate in rates])) / 3600


def slowness(run: RunHistory, history: Sequence[RunHistory]) -> Slowness | None:
    """Whether a run was clearly slower than those with the same settings, or else than all; None where it was not.

    Clearly: by half, and by three spreads of the others (median absolute deviation of logs).

    Args:
        run: the run.
        history: others on the same base model.
    """
    mine = seconds_a_picture(run)
    others = [(h, rate) for h in history if h.run.uid != run.run.uid and (rate := seconds_a_picture(h)) is not None]
    wanted = _costs(run.run.all_parameters)
    alike = [rate for h, rate in others if _costs(h.run.all_parameters) == wanted]
    if mine is None:
        return None
    for rates, least in ((alike, _LEAST_ALIKE), ([rate for _, rate in others], _LEAST)):
        if len(rates) >= least and (found := _slower(mine, rates, rates is alike)) is not None:
            return found
    return None


def _slower(mine: float, rates: Sequence[float], alike: bool) -> Slowness | None:
    logs = np.log(rates)
    middle = float(np.median(logs))
    spread = 1.4826 * float(np.median(np.abs(logs - middle)))
    if math.log(mine) - middle <= max(_ALLOWANCE * spread, math.log(_SLOWER)):
        return None
    return Slowness(mine / math.exp(middle), mine, math.exp(middle), len(rates), alike)


def slow_causes(run: RunHistory, history: Sequence[RunHistory], found: Slowness) -> tuple[LikelyCause, ...]:
    """What made a run slow, the likeliest first: the machine, or settings that cost more than most runs' do.

    A setting that past runs have had too counts by how much slower they were, others by experience.
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
    if value is None or not _costly(name, value) or sum(costs) * 2 > len(costs):
        return None, 0.0
    rates = np.log([seconds_a_picture(h) or 1.0 for h in others])
    shared = np.array(costs, dtype=bool)
    odds = _PRIOR
    evidence: tuple[str, ...] = ()
    if shared.sum() >= _LEAST_ALIKE:
        effect = float(np.median(rates[shared]) - np.median(rates[~shared]))
        odds = max(effect, 0.0) / math.log(found.ratio)
        evidence = (f"{int(shared.sum())} runs with it took {math.exp(effect):.1f} times as long a picture",)
    why, mend = _words(name, theirs)
    return LikelyCause(
        factor=name, category=str(PARAMETERS[name].category), sentence=f"{name} = {text_of(value)}: {why}",
        recommendation=mend, confidence=0.0, evidence=evidence,
    ), odds  # fmt: skip


def _words(name: str, theirs: Sequence[ParameterValue]) -> tuple[str, str]:
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
    """Whether a value costs as much time as another one, or more."""
    if name in _COSTLY:
        return value == than
    return _number(value) >= _number(than) if name in _MORE_COSTS else _number(value) <= _number(than)


def _costs(parameters: Mapping[str, ParameterValue]) -> tuple[ParameterValue, ...]:
    used = active(parameters)
    return tuple(used[name] for name in _names())


def _pictures_an_epoch(parameters: Mapping[str, ParameterValue], num_images: int | None) -> float | None:
    return None if not num_images else num_images * (_number(filled(parameters)["num_repeats"]) or 1.0)


def _number(value: ParameterValue) -> float:
    """A number; 0 for what is none."""
    return float(value) if isinstance(value, int | float) else 0.0
