"""Read kohya's TOML files and the form that bmaltais' GUI saves beside a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from schema.readers import read_toml
from tasks.history.facts import MOST_TEXT, Fact, Found, Source, check_size, tables, typed
from tasks.training.config import flatten

# The GUI's names that differ from kohya's.
_GUI_NAMES = {"epoch": "max_train_epochs", "caption_dropout": "caption_dropout_rate"}
# The GUI writes 0 where kohya's option is left out.
_UNSET_IF_ZERO = ("unet_lr", "text_encoder_lr", "noise_offset", "min_snr_gamma", "multires_noise_iterations", "seed",
                  "max_train_steps", "max_train_epochs", "min_timestep", "scale_weight_norms")  # fmt: skip
_GUI_MODULES = {"Standard": "networks.lora", "Kohya LoCon": "networks.lora", "LyCORIS/LoCon": "lycoris.kohya",
                "LyCORIS/LoHa": "lycoris.kohya", "LyCORIS/LoKr": "lycoris.kohya"}  # fmt: skip


def read_config(path: Path) -> Found:
    """Read a config_file, with its dataset_config if that still exists, or a dataset_config alone.

    Raises:
        ConfigError: the file is not valid TOML, or is pixelloop's own campaign or prompt suite.
    """
    document, notes = read_toml(path), list[str]()
    for table, what in (("campaign", "a campaign"), ("prompts", "a prompt suite")):
        if isinstance(document.get(table), Mapping | list):
            raise ConfigError(f"{path} is {what}, not the configuration of a run: leave it out")
    check_size(document)
    values = document if "datasets" in document else flatten(document)
    dataset = values.pop("dataset_config", None)
    facts = [*_facts(values, path.name, notes)]
    if "datasets" in document:
        facts += _data(document, path.name, notes)
    elif dataset:
        place = path.parent / str(dataset)
        if place.is_file() and place.stat().st_size <= MOST_TEXT:
            facts += _data(read_toml(place), place.name, notes)
        else:
            notes.append(f"{path.name}: its dataset_config {dataset} is not there; what it sets is not known")
    name = str(values.get("output_name") or path.stem)
    return Found(str(path), name, tuple(facts), notes=tuple(notes))


def is_gui_form(document: Any) -> bool:
    """Return whether a JSON document is the form of bmaltais' GUI."""
    return isinstance(document, Mapping) and {"LoRA_type", "pretrained_model_name_or_path"} <= set(document)


def read_gui_form(document: Mapping[str, Any], path: Path) -> Found:
    """Read the form of bmaltais' GUI, which has names of its own and writes 0 for *unset*."""
    notes: list[str] = []
    values = {_GUI_NAMES.get(name, name): value for name, value in document.items()}
    for name in _UNSET_IF_ZERO:
        if str(values.get(name, "")) in ("0", "0.0"):
            values[name] = None
    warmup = values.pop("lr_warmup", None)
    if warmup:
        values["lr_warmup_steps"] = values.get("lr_warmup_steps") or _per_cent(warmup)  # per cent of all steps
    kind = str(values.get("LoRA_type"))
    values["network_module"] = _GUI_MODULES.get(kind)
    if kind.startswith("LyCORIS/"):
        values["algo"] = kind.removeprefix("LyCORIS/").lower().replace("locon", "lora")
    elif kind == "Standard":
        values["conv_dim"] = values["conv_alpha"] = None  # the GUI saves them, but does not pass them to the trainer
    values["model_type"] = "sdxl" if values.get("sdxl") else None
    facts = tuple(_facts(values, path.name, notes))
    name = str(values.get("output_name") or re.sub(r"_\d{8}-\d{6}$", "", path.stem))
    return Found(str(path), name, facts, notes=tuple(notes))


def _per_cent(value: Any) -> float | None:
    try:
        return float(value) / 100
    except (ValueError, TypeError, OverflowError):
        return None


def _facts(values: Mapping[str, Any], place: str, notes: list[str]) -> list[Fact]:
    found = list(typed(values, Source.CONFIG, place, notes))
    if folder := values.get("train_data_dir"):
        found.append(Fact("dataset", Path(str(folder)).name, Source.CONFIG, place))
    return found


def _data(document: Mapping[str, Any], place: str, notes: list[str]) -> list[Fact]:
    """Return the settings that all subsets share; those that differ add a note."""
    layers, folders = list[dict[str, Any]](), list[str]()
    general = document.get("general", {})
    for dataset in tables(document.get("datasets")):
        for subset in tables(dataset.get("subsets")):
            if not subset.get("is_reg"):
                own = {k: v for k, v in dataset.items() if k != "subsets"}
                layers.append({**(general if isinstance(general, Mapping) else {}), **own, **subset})
                folders.append(Path(str(subset.get("image_dir", ""))).name)
    shared = {}
    for name in sorted({name for layer in layers for name in layer}):
        values = [layer.get(name) for layer in layers]
        if all(value == values[0] for value in values):
            shared[name] = values[0]
        elif name not in ("image_dir", "class_tokens"):
            notes.append(f"{place}: subsets differ in {name}; left out")
    found = list(typed(shared, Source.CONFIG, place, notes))
    if folders:
        name = "+".join(re.sub(r"^\d+_", "", folder) for folder in sorted(set(folders)))
        found.append(Fact("dataset", name, Source.CONFIG, place))
    return found
