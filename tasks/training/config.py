"""Read and write the trainer's configuration: one TOML file with kohya's names.

Sections are cosmetic, as in sd-scripts' config_file: each is flattened one level. sd-scripts ignores unknown names;
this trainer refuses them, and also known parameters that it does not support.
"""

from __future__ import annotations

import difflib
import importlib.util
import itertools
from pathlib import Path
from typing import Any

import tomlkit
from pydantic import Field

from schema.base import Frozen, parse
from schema.errors import ConfigError, shown
from schema.parameters import PARAMETERS, Parameters, with_defaults
from schema.readers import read_toml
from tasks.durable import replace_text

PLACES = ("pretrained_model_name_or_path", "train_data_dir", "output_dir", "output_name", "reg_data_dir", "cache_dir")
"""Settings that name files and folders; the first three are required."""

LYCORIS_ARGS = ("algo", "factor", "decompose_both", "full_matrix", "dora_wd", "wd_on_output")
"""Parameters that only network_module = lycoris.kohya has."""


class Subset(Frozen):
    """Describe one folder of pictures with its own settings, as in kohya's dataset_config."""

    image_dir: Path
    is_reg: bool = Field(False, description="pictures of the class, against forgetting it")
    class_tokens: str | None = Field(None, description="caption of pictures without one")
    nested: bool = Field(True, description="also kohya's <repeats>_<name> folders in it")
    dataset: int = Field(0, description="pictures of different datasets never share a batch")
    parameters: Parameters = Field(description="all of them, not only those of data and captions")


class TrainingConfig(Frozen):
    """Hold the paths to read and write, and every training parameter."""

    pretrained_model_name_or_path: str
    train_data_dir: Path
    output_dir: Path
    output_name: str = Field("last", pattern=r"^[^/\\\x00]+$", description="of files, so no path")
    reg_data_dir: Path | None = None
    cache_dir: Path | None = None
    subsets: tuple[Subset, ...] = Field((), description="instead of train_data_dir and reg_data_dir")
    about: dict[str, str] = Field(default_factory=dict, description="kohya's training_comment and metadata_ options")
    parameters: Parameters

    def number(self, name: str) -> float:
        """Return a numeric parameter; 0 if it is not set."""
        value = self.parameters[name]
        return float(value) if isinstance(value, int | float) else 0.0

    def integer(self, name: str) -> int:
        """Return an integer parameter; 0 if it is not set."""
        return int(self.number(name))

    def flag(self, name: str) -> bool:
        """Return a boolean parameter; False if it is not set."""
        return bool(self.parameters[name])

    def text(self, name: str) -> str:
        """Return a text parameter; the text "None" if it is not set."""
        return str(self.parameters[name])

    def texts(self, name: str) -> list[str]:
        """Return the parts of a comma-separated text parameter; an empty list if it is not set."""
        return [part.strip() for part in str(self.parameters[name] or "").split(",") if part.strip()]

    def numbers(self, name: str) -> list[float]:
        """Return the parts of a comma-separated text parameter as numbers.

        Raises:
            ConfigError: a part is not a number.
        """
        try:
            return [float(part) for part in self.texts(name)]
        except ValueError:
            raise ConfigError(
                f"{name} = {shown(self.text(name))} is no list of numbers: write them comma-separated"
            ) from None


def load_config(path: Path) -> TrainingConfig:
    """Read a configuration file.

    Raises:
        ConfigError: a parameter is unknown, unsupported or wrong, or a required path is missing.
    """
    values = flatten(read_toml(path))
    unknown = [name for name in values if name not in PARAMETERS and name not in PLACES]
    if unknown:
        near = difflib.get_close_matches(unknown[0], [*PARAMETERS, *PLACES], n=2)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ConfigError(f"{path}: unknown training parameter {unknown[0]}{hint}")
    for name in PLACES[:3]:
        if name not in values:
            raise ConfigError(f"{path}: {name} is missing: add it")
    places = {name: values.pop(name) for name in PLACES if name in values}
    parameters = with_defaults(values)
    check_supported(parameters, str(path))
    return parse({**places, "parameters": parameters}, TrainingConfig, str(path))


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
    """Write a configuration atomically; derived and unset parameters are left out."""
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
    # `PARAMETERS` is ordered by category, as groupby needs.
    for category, group in itertools.groupby(settable, key=lambda p: p.category):
        document[str(category)] = {p.name: parameters[p.name] for p in group}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, tomlkit.dumps(document))


def flatten(data: dict[str, Any]) -> dict[str, Any]:
    """Return the options with sections flattened one level."""
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def check_supported(parameters: Parameters, where: str) -> None:
    """Check that parameters go together.

    Args:
        parameters: all training parameters.
        where: the file they come from, for the message.

    Raises:
        ConfigError: two of them contradict each other, or a package is missing.
    """
    p = parameters
    uncached = "color_aug" if p["color_aug"] else "random_crop" if p["random_crop"] else None
    for refused, sentence in (
        (p["max_token_length"] not in (75, 150, 225),
         f"max_token_length must be 75, 150 or 225, but is {p['max_token_length']}"),
        (uncached and p["cache_latents"], f"{uncached} changes pictures at each step: set cache_latents = false"),
        (p["full_fp16"] and p["mixed_precision"] != "fp16", 'full_fp16 needs mixed_precision = "fp16": set it'),
        (p["full_bf16"] and p["mixed_precision"] != "bf16", 'full_bf16 needs mixed_precision = "bf16": set it'),
        (p["xformers"] and not importlib.util.find_spec("xformers"),
         "xformers needs the package xformers: install it, or set sdpa = true, which is about as fast"),
    ):  # fmt: skip
        if refused:
            raise ConfigError(f"{where}: {sentence}")
