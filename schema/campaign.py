"""Define campaign.toml as immutable models."""

from __future__ import annotations

import re
from datetime import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from schema.base import Frozen, load_toml, parse
from schema.errors import ConfigError, shown
from schema.parameters import Parameters, ParameterValue, check_parameters, parameter
from schema.taxonomy import Kind

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")
_LARGEST_SEED = 2**32 - 1
"""Largest seed that the generators of numpy and Optuna accept."""
_MOST_RUNS = 100_000
"""Trials, epochs or runs. A larger number is a typing error, and some would not fit the database column."""
_MOST_HOURS = 100_000
"""Eleven years. A longer budget is a typing error."""
_MOST_PARALLEL = 256
"""More GPUs than the largest machine for rent has."""
_MOST_REPEATS = 100
"""Each repeat costs a whole training run, so a larger number is a typing error."""


def _plain_name(name: str) -> str:
    if not _NAME.fullmatch(name) or len(name) > 60:
        raise ValueError(f"use up to 60 lowercase letters, digits, - and _ for a name, not {shown(name)}")
    return name


# The pattern only serves forms. Checked by pydantic, it would give an error message that nobody understands.
Name = Annotated[str, AfterValidator(_plain_name), Field(json_schema_extra={"pattern": f"^{_NAME.pattern}$"})]


class Range(Frozen):
    """Define a range of numbers to search."""

    low: float
    high: float
    log: bool = False

    @model_validator(mode="after")
    def _ordered(self) -> Range:
        if self.low >= self.high:
            raise ValueError(f"low must be below high, but {self.low} is not below {self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must start above 0, but low is {self.low}")
        return self


class Choices(Frozen):
    """Define a list of values to search."""

    choices: tuple[ParameterValue, ...] = Field(min_length=2)

    @field_validator("choices")
    @classmethod
    def _different(cls, values: tuple[ParameterValue, ...]) -> tuple[ParameterValue, ...]:
        twice = [value for place, value in enumerate(values) if value in values[:place]]
        if twice:
            raise ValueError(f"{shown(twice[0])} stands twice")
        return values


SearchSpace = dict[str, Range | Choices]


def _span(name: str, span: Any) -> Any:
    """Return a TOML table as a range or choices.

    Pydantic would report the errors of both types of the union, so we pick the type ourselves.

    Raises:
        ConfigError: The value is neither.
    """
    if isinstance(span, Range | Choices):
        return span
    if not isinstance(span, dict):
        raise ConfigError(f"{name} needs {{ low = ..., high = ... }} or {{ choices = [...] }}, but got {shown(span)}")
    return parse(span, Choices if "choices" in span else Range, name)


def ratio_of(name: str) -> tuple[str, str] | None:
    """Return the two parameters of a searched ratio ``a/b``; None if the name is not a ratio."""
    part, slash, whole = name.partition("/")
    return (part.strip(), whole.strip()) if slash else None


class Budget(Frozen):
    """Define when a campaign ends: at the first of these limits."""

    trials: int = Field(15, ge=1, le=_MOST_RUNS, description="trials that really run; refused proposals do not count")
    hours: float | None = Field(None, gt=0, le=_MOST_HOURS, description="in which anything ran; pauses are not counted")
    until: time | None = Field(
        None, description="time of day, as '07:30': training then saves its state, and goes on when run again"
    )
    money: float | None = Field(None, gt=0, description="in the currency of price_per_hour")
    price_per_hour: float | None = Field(None, gt=0, description="of the GPU; turns hours into money")
    target_quality: float | None = Field(None, ge=0, le=100, description="good enough")
    least_gain: float | None = Field(
        None, gt=0, description="end when another trial is expected to gain fewer quality points"
    )
    least_trials: int = Field(8, ge=1, le=_MOST_RUNS, description="trials before `least_gain` is looked at")

    repeats: int = Field(
        0, ge=0, le=_MOST_REPEATS, description="best settings that are run once more, with another seed, at the end"
    )

    @field_validator("until")
    @classmethod
    def _of_this_machine(cls, until: time | None) -> time | None:
        if until is not None and until.tzinfo is not None:
            raise ValueError(f"the time is that of the machine that trains: give {until:%H:%M}, without a zone")
        return until

    @model_validator(mode="after")
    def _priced(self) -> Budget:
        if self.money is not None and self.price_per_hour is None:
            raise ValueError("money needs price_per_hour beside it")
        return self


class GateSettings(Frozen):
    """Define how strict the gate is."""

    enabled: bool = True
    min_runs: int = Field(
        5, ge=1, le=_MOST_RUNS, description="before so many finished runs nothing is refused on predictions"
    )
    max_p_fail: float = Field(
        0.45, gt=0, le=1, description="refuse above this probability of failure; from few runs above a higher one"
    )
    audit_share: float = Field(0.1, ge=0, le=1, description="share of refused proposals that run anyway")
    max_skips_in_a_row: int = Field(6, ge=1, le=_MOST_RUNS, description="then the least bad one runs")


Objective = Literal[
    "overall", "colour", "style", "background_accuracy", "hair_accuracy", "crown_accuracy", "colour_purity",
    "edge_sharpness", "pixel_art_purity", "palette_score", "dithering_score",
]  # fmt: skip
"""Measures of an epoch's mean picture (0-100, higher is better)."""


class StoppingSettings(Frozen):
    """Define when to stop a trial before its last epoch."""

    enabled: bool = True
    min_epochs: int = Field(2, ge=1, le=_MOST_RUNS, description="epochs that every trial may finish")
    min_share: float = Field(0.2, ge=0, le=1, description="share of its epochs that every trial may finish")
    min_runs: int = Field(3, ge=1, le=_MOST_RUNS, description="finished runs needed to compare with")
    min_chance: float = Field(0.1, ge=0, le=1, description="stop below this chance of beating the best run")
    objectives: tuple[Objective, ...] = Field(
        (), description="measures: a run that may still get onto their Pareto front goes on, whatever its quality"
    )

    @field_validator("objectives")
    @classmethod
    def _several(cls, names: tuple[Objective, ...]) -> tuple[Objective, ...]:
        if len(names) == 1 or len(set(names)) < len(names):
            raise ValueError(f"a front is of two measures or more, each once, but objectives are {', '.join(names)}")
        return names


class EffortSettings(Frozen):
    """Define how many prompts to draw after an epoch."""

    few_prompts: int = Field(
        4,
        ge=1,
        le=_MOST_RUNS,
        description="prompts, one seed each, drawn of an epoch that can hardly win; a large number: always all",
    )
    min_chance: float = Field(0.1, ge=0, le=1, description="all are drawn from this chance of coming near the best run")


class NotifySettings(Frozen):
    """Choose the notifications to send to the addresses in `PIXELLOOP_NOTIFY`."""

    on: tuple[Literal["end", "best", "trouble"], ...] = Field(
        ("end", "best", "trouble"), description="the campaign has ended; a new best run; something needs a person"
    )


class RetentionSettings(Frozen):
    """Choose the files to keep after a trial. Pictures are always kept."""

    best_checkpoints: int | None = Field(
        None, ge=1, le=_MOST_RUNS, description="LoRA files kept of each run, the best ones; all if left out"
    )


class Campaign(Frozen):
    """Define what one search trains, and how: model, data set, prompts, sampler, trainer."""

    name: Name
    base_model: str = Field(description="diffusers folder, hub id, or .safetensors checkpoint")
    dataset: str = Field(description="folder with pictures and caption files")
    prompts: str = Field("prompts.toml", description="prompt suite")
    seed: int = Field(0, ge=0, le=_LARGEST_SEED, description="of the search; training has its own `seed` parameter")
    sampler: Literal["model", "tpe", "gp", "random"] = Field(
        "model", description="model: our surrogate's expected improvement; the others are Optuna's"
    )
    trainer: Literal["pixelloop", "sd-scripts"] = Field("pixelloop", description="our own, or the user's sd-scripts")
    sd_scripts: str | None = Field(None, description="folder of the sd-scripts checkout")
    sd_scripts_python: str | None = Field(None, description="python of its environment; its venv's if left out")
    evaluation: Literal["overlap", "pause"] = Field(
        "overlap", description="draw while the next epoch trains, or let training wait and give its memory back"
    )
    parallel: int = Field(
        1, ge=0, le=_MOST_PARALLEL, description="trials side by side, each with a GPU of its own; 0: as many as GPUs"
    )
    failed_quality: float = Field(20.0, ge=0, le=100, description="best quality below this counts as a failed run")

    @model_validator(mode="after")
    def _checkout(self) -> Campaign:
        if self.trainer == "sd-scripts" and self.sd_scripts is None:
            raise ValueError("trainer sd-scripts needs sd_scripts: give the folder of your checkout")
        return self


class CampaignFile(Frozen):
    """Hold the content of a campaign file. Relative paths in it start at the file's folder."""

    campaign: Campaign
    search: SearchSpace = Field(min_length=1)
    fixed: Parameters = Field(default_factory=dict)
    start: tuple[Parameters, ...] = Field((), description="settings to run first, before the search")
    rules: tuple[str, ...] = Field((), description="hard limits: 'network_dim <= 32'")
    budget: Budget = Budget()
    gate: GateSettings = GateSettings()
    stopping: StoppingSettings = StoppingSettings()
    effort: EffortSettings = EffortSettings()
    retention: RetentionSettings = RetentionSettings()
    notify: NotifySettings = NotifySettings()
    folder: Path = Field(Path("."), exclude=True, description="folder of the file; set when it is read")

    @field_validator("search", mode="before")
    @classmethod
    def _spans(cls, space: Any) -> Any:
        return {name: _span(name, span) for name, span in space.items()} if isinstance(space, dict) else space

    @field_validator("search")
    @classmethod
    def _searchable(cls, space: SearchSpace) -> SearchSpace:
        for name, span in space.items():
            if ratio_of(name) is not None:
                _check_ratio(name, span, space)
                continue
            spec = parameter(name)
            if not spec.searchable:
                raise ConfigError(f"{name} cannot be searched: set it under [fixed]")
            if isinstance(span, Choices):
                for value in span.choices:
                    spec.check(value)
            else:
                if spec.kind not in (Kind.FLOAT, Kind.INT):
                    raise ConfigError(f"{name} is of type {spec.kind}: give choices, not low and high")
                spec.check(span.low)
                spec.check(span.high)
        return space

    @field_validator("fixed")
    @classmethod
    def _checked(cls, values: Parameters) -> Parameters:
        return check_parameters(values)

    @model_validator(mode="after")
    def _once(self) -> CampaignFile:
        # A searched ratio sets its first parameter, so [fixed] must not set it too.
        computed = {parts[0] for name in self.search if (parts := ratio_of(name)) is not None}
        both = sorted((set(self.search) | computed) & set(self.fixed))
        if both:
            raise ConfigError(f"{', '.join(both)} stands in both [search] and [fixed]: remove one")
        for setting in self.start:
            foreign = sorted(set(setting) - set(self.search))
            if foreign:
                raise ConfigError(f"[[start]] may set searched parameters only, but has {', '.join(foreign)}")
        return self

    def path(self, text: str) -> Path:
        """Return a path of the file as an absolute path. Relative paths start at the file's folder."""
        return (self.folder / Path(text).expanduser()).resolve()

    @property
    def base_model(self) -> str:
        """Return the absolute path of the base model if it exists, else the text as given, which is a hub id."""
        local = self.path(self.campaign.base_model)
        return str(local) if local.exists() else self.campaign.base_model

    @property
    def sd_scripts(self) -> tuple[Path, Path] | None:
        """Return the sd-scripts checkout and the Python of its environment; None if our own trainer is used."""
        campaign = self.campaign
        if campaign.trainer != "sd-scripts" or campaign.sd_scripts is None:
            return None
        checkout = self.path(campaign.sd_scripts)
        if campaign.sd_scripts_python is not None:
            # Do not resolve: the link in a virtual environment leads to a Python without its packages.
            return checkout, self.folder / Path(campaign.sd_scripts_python).expanduser()
        places = [checkout / name / "bin" / "python" for name in ("venv", ".venv")]
        return checkout, next((place for place in places if place.exists()), places[0])

    @property
    def dataset_dir(self) -> Path:
        """Return the absolute path of the data set."""
        return self.path(self.campaign.dataset)

    @property
    def prompts_file(self) -> Path:
        """Return the absolute path of the prompt suite."""
        return self.path(self.campaign.prompts)


def _check_ratio(name: str, span: Range | Choices, space: SearchSpace) -> None:
    """Check a searched ratio: two different numeric parameters, positive values, no chains.

    The ratio replaces its first parameter, so that one must not be searched as well.

    Raises:
        ConfigError: The ratio cannot be searched.
    """
    part, whole = ratio_of(name) or (name, name)
    for one in (part, whole):
        if parameter(one).kind not in (Kind.FLOAT, Kind.INT) or not parameter(one).searchable:
            raise ConfigError(f"{name} cannot be searched: {one} is no number that may be searched")
    # Two ratios, or a ratio and a range, for one parameter would contradict each other.
    if part == whole or sum((ratio_of(other) or (other,))[0] == part for other in space) > 1:
        raise ConfigError(f"{name} stands in place of {part}: search {part} once, as itself or as a ratio")
    if ratio_of(whole) is not None or any((ratio_of(other) or ("", ""))[0] == whole for other in space):
        raise ConfigError(f"{name} cannot be computed: {whole} is a ratio itself")
    values = span.choices if isinstance(span, Choices) else (span.low, span.high)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and v > 0 for v in values):
        raise ConfigError(f"{name} is a ratio of two numbers: give it numbers above 0")


def load_campaign(path: Path) -> CampaignFile:
    """Read campaign.toml.

    Raises:
        ConfigError: The file is missing or not valid TOML, or one of its keys or values is wrong.
    """
    data: CampaignFile = load_toml(path, CampaignFile)
    return data.model_copy(update={"folder": path.resolve().parent})


def campaign_json(file: CampaignFile) -> dict[str, Any]:
    """Return the campaign as JSON values for the store."""
    return file.model_dump(mode="json")
