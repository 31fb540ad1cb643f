"""A base model by its name, before libraries that take seconds are loaded."""

from __future__ import annotations

import re
from pathlib import Path

from schema.errors import ConfigError
from tasks.pickles import refuse_pickled_model

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_INDEX = "model_index.json"


def check_base_model(name: str) -> None:
    """Refuse what can be no base model; whether the hub has an id it is asked when the model is loaded.

    Raises:
        ConfigError: it is pickled, not there, or neither a diffusers folder nor a .safetensors file.
    """
    refuse_pickled_model(name)
    path = Path(name)
    if path.is_dir() and not (path / _INDEX).exists():
        raise ConfigError(f"the base model {name} is no diffusers folder: it has no {_INDEX}")
    if path.is_file() and path.suffix != ".safetensors":
        raise ConfigError(f"the base model {name} is neither a folder nor a .safetensors file: give one")
    if not path.exists() and (path.suffix == ".safetensors" or not _HUB_ID.fullmatch(name)):
        raise ConfigError(
            f"the base model {name} does not exist: give a diffusers folder, a .safetensors file, or a hub id"
        )
