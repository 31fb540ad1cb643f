"""The trainer's configuration: one TOML file in kohya's names.

Sections are cosmetic, as in sd-scripts' config_file: each is flattened one level. Unlike there, an unknown
name is refused instead of ignored, and so is a known parameter that this trainer does not support.
"""

from __future__ import annotations

import difflib
import itertools
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import Field

from schema.base import Frozen, read_toml
from schema.errors import ConfigError
from schema.parameters import PARAMETERS, Parameters, ParameterValue, with_defaults

_PLACES = ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "output_name", "reg_data_dir", "cache_dir")

_NEUTRAL: dict[str, tuple[ParameterValue, ...]] = {
    "xformers": (False,),
    "full_fp16": (False,),
    "color_aug": (False,),
}
"""Parameters this trainer does not support, with the values that ask nothing of it."""


LYCORIS_ARGS = ("algo", "factor", "decompose_both", "full_matrix", "dora_wd", "wd_on_output")
"""Parameters of network_module = lycoris.kohya alone."""


class TrainingConfig(Frozen):
    """Where to read and write, and every training parameter."""

    pretrained_model_name_or_path: str
    train_data_dir: Path
    output_dir: Path
    output_name: str = Field("last", min_length=1)
    reg_data_dir: Path | None = None
    cache_dir: Path | None = None
    parameters: Parameters

    def number(self, name: str) -> float:
        """A numeric parameter; 0 where it is not set."""
        value = self.parameters[name]
        return float(value) if isinstance(value, int | float) else 0.0

    def integer(self, name: str) -> int:
        """A whole-numbered parameter; 0 where it is not set."""
        return int(self.number(name))

    def flag(self, name: str) -> bool:
        """A boolean parameter."""
        return bool(self.parameters[name])

    def text(self, name: str) -> str:
        """A text parameter."""
        return str(self.parameters[name])

    def texts(self, name: str) -> list[str]:
        """The parts of a comma-separated text parameter; none where it is not set."""
        return [part.strip() for part in str(self.parameters[name] or "").split(",") if part.strip()]

    def numbers(self, name: str) -> list[float]:
        """As `texts`, as numbers.

        Raises:
            ConfigError: a part is no number.
        """
        try:
            return [float(part) for part in self.texts(name)]
        except ValueError:
            raise ConfigError(
                f"{name} = {self.text(name)!r} is no list of numbers: write them comma-separated"
            ) from None


def load_config(path: Path) -> TrainingConfig:
    """Read a configuration.

    Raises:
        ConfigError: unknown, unsupported or bad parameter, or a missing place.
    """
    values = _flatten(read_toml(path))
    unknown = [name for name in values if name not in PARAMETERS and name not in _PLACES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*PARAMETERS, *_PLACES], n=2)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"{path}: unknown training parameter {unknown[0]}{hint}")
    for name in _PLACES[:3]:
        if name not in values:
            raise ConfigError(f"{path}: {name} is missing: add it")
    places = {name: values.pop(name) for name in _PLACES if name in values}
    parameters = with_defaults(values)
    _refuse_unsupported(parameters, path)
    return TrainingConfig(**places, parameters=parameters)


def write_config(
    path: Path,
    parameters: Parameters,
    *,
    base_model: str,
    dataset_dir: Path,
    output_dir: Path,
    output_name: str,
    cache_dir: Path | None = None,
) -> None:
    """Write a configuration, complete or not at all; derived and unset parameters are left out."""
    document = tomlkit.document()
    places = {
        "pretrained_model_name_or_path": base_model,
        "train_data_dir": str(dataset_dir),
        "output_dir": str(output_dir),
        "output_name": output_name,
        "cache_dir": str(cache_dir) if cache_dir else None,
    }
    document["places"] = {name: value for name, value in places.items() if value is not None}
    settable = [p for p in PARAMETERS.values() if not p.derived and parameters.get(p.name) is not None]
    for category, group in itertools.groupby(settable, key=lambda p: p.category):
        document[str(category)] = {p.name: parameters[p.name] for p in group}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(tomlkit.dumps(document), encoding="utf-8")
    part.replace(path)


def _flatten(data: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def _refuse_unsupported(parameters: Parameters, path: Path) -> None:
    if parameters["max_token_length"] not in (75, 150, 225):
        raise ConfigError(f"{path}: max_token_length must be 75, 150 or 225, but is {parameters['max_token_length']}")
    for name, neutral in _NEUTRAL.items():
        if parameters[name] not in neutral:
            raise ConfigError(f"{path}: {name} = {parameters[name]!r} is not supported by this trainer: remove it")
