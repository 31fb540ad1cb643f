"""Kohya's own files and options, read as sd-scripts reads them, but checked.

config_file: sections are cosmetic, options of the command line go before it. dataset_config: each option is looked up
in the subset, its dataset, [general], config_file, in this order. What sd-scripts knows and this trainer does not do
is refused with a sentence; what is needless here is told; what nobody knows is refused with the nearest names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from schema.base import parse
from schema.errors import ConfigError, shown
from schema.parameters import PARAMETERS, Parameters, parse_value, with_defaults
from schema.readers import read_json, read_toml
from tasks.training.config import PLACES, Subset, TrainingConfig, check_supported, flatten
from tasks.training.kohya_options import NEEDLESS, NEUTRAL, REFUSED

Values = dict[str, Any]
"""Options by kohya's name, as a file or the command line gives them."""

_DEFAULTS: Values = {
    "learning_rate": 2e-6, "caption_extension": ".caption", "resize_interpolation": None, "save_precision": "float",
    "save_every_n_epochs": 10000, "cache_latents": False,
}  # fmt: skip
"""Kohya's defaults where ours are others; kohya saves the last epoch alone unless told to save more."""

_STEPS = 1600
_OTHER_NAMES = {"dataset_repeats": "num_repeats", "caption_extention": "caption_extension"}
_ABOUT = ("training_comment", "metadata_title", "metadata_author", "metadata_description", "metadata_license",
          "metadata_tags", "metadata_usage_hint", "metadata_trigger_phrase")  # fmt: skip

_OF_DATASET = {
    "resolution", "batch_size", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps",
    "bucket_no_upscale", "validation_split", "validation_seed", "network_multiplier", "resize_interpolation",
}  # fmt: skip
_OF_SUBSET = {
    "num_repeats", "shuffle_caption", "caption_separator", "keep_tokens", "keep_tokens_separator",
    "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step",
    "color_aug", "flip_aug", "random_crop", "face_crop_aug_range", "caption_extension", "alpha_mask",
    "resize_interpolation", "cache_info", "custom_attributes", "metadata_file",
}  # fmt: skip
_OF_SUBSET_ALONE = {"image_dir", "is_reg", "class_tokens"}

_ALLOWED = {"save_model_as": "safetensors", "network_multiplier": 1}
_ADAM = ("AdamW", "AdamW8bit", "PagedAdamW8bit")


def read_kohya(options: Mapping[str, Any]) -> tuple[TrainingConfig, list[str]]:
    """The configuration that kohya's options ask for, and a sentence for each that has no effect here.

    Args:
        options: of the command line; config_file and dataset_config among them name files.

    Raises:
        ConfigError: unknown, unsupported or bad option, or a missing place.
    """
    given, notes = dict(options), list[str]()
    file, dataset = given.pop("config_file", None), given.pop("dataset_config", None)
    if file is not None:
        path = Path(file)
        path = path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml")
        read = flatten(read_toml(path))
        dataset = dataset or read.pop("dataset_config", None)
        given = {**{k: v for k, v in read.items() if k != "dataset_config"}, **given}
    where = str(file or "the command line")
    values = _plain(given, where, notes)
    places = {name: values.pop(name) for name in (*PLACES, *_ABOUT) if name in values}
    own = {**_weight_decay(values), **_convolutions(values)}
    parameters = with_defaults({**_DEFAULTS, **_steps(values, notes), **own})
    about = {name: str(places.pop(name)) for name in _ABOUT if places.get(name) is not None}
    subsets = _subsets(Path(dataset), parameters, notes) if dataset else ()
    if subsets:
        for name in ("train_data_dir", "reg_data_dir"):
            if places.pop(name, None):
                notes.append(f"{name} is not read where there is a dataset_config")
        places["train_data_dir"] = subsets[0].image_dir
    for name in PLACES[:3]:
        if name not in places:
            raise ConfigError(f"{where}: {name} is missing: add it")
    if given.get("cache_latents_to_disk") or given.get("cache_text_encoder_outputs_to_disk"):
        places.setdefault("cache_dir", Path(places["output_dir"]) / "cache")
    for chosen in (parameters, *(subset.parameters for subset in subsets)):
        check_supported(chosen, where)
    fields = {**places, "about": about, "subsets": tuple(subsets), "parameters": parameters}
    return parse(fields, TrainingConfig, where), notes


def options_of(arguments: Sequence[str]) -> Values:
    """Options of a command line in kohya's way: ``--name``, ``--name value`` or ``--name value value``.

    Raises:
        ConfigError: a value without a name before it.
    """
    found: dict[str, list[str]] = {}
    name = ""
    for word in arguments:
        if word.startswith("--"):
            name, equals, value = word.removeprefix("--").partition("=")
            found[name] = [value] if equals else []
        elif not name:
            raise ConfigError(f"{shown(word)} stands before any option: write --name value")
        else:
            found[name].append(word)
    return {name: _typed(name, words) for name, words in found.items()}


def _typed(name: str, words: list[str]) -> Any:
    if not words:
        return True
    if len(words) > 1 or name in ("network_args", "optimizer_args", "base_weights", "base_weights_multiplier"):
        return words
    return parse_value(name, words[0]) if name in PARAMETERS and name != "resolution" else words[0]


def _plain(given: Values, where: str, notes: list[str]) -> Values:
    """Options in the taxonomy's names and types, lists unpacked; all that is refused is said at once.

    Raises:
        ConfigError: see `read_kohya`.
    """
    values: Values = {}
    for name, value in given.items():
        if name == "network_args":
            values |= _network_args(value, where)
        else:
            values[_OTHER_NAMES.get(name, name)] = value
    refused = []
    for name in [name for name in values if name not in PARAMETERS and name not in (*PLACES, *_ABOUT)]:
        value = values.pop(name)
        if name in ("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"):
            continue
        if _ALLOWED.get(name) == value:
            continue
        if name in REFUSED and value not in NEUTRAL:
            refused.append(f"{name} is not supported: {REFUSED[name]}")
        elif name in NEEDLESS and value not in NEUTRAL:
            notes.append(f"{name} has no effect: {NEEDLESS[name]}")
        elif name == "save_n_epoch_ratio":
            values |= _ratio(value, values)
        elif name not in REFUSED and name not in NEEDLESS:
            refused.append(_unknown(name, {*PARAMETERS, *PLACES, *REFUSED, *NEEDLESS, "network_args"}))
    if refused:
        raise ConfigError(f"{where}: {'; '.join(refused)}")
    return {name: _single(name, value, where, notes) for name, value in values.items()}


def _single(name: str, value: Any, where: str, notes: list[str]) -> Any:
    """A value as the taxonomy has it: lists become text, other spellings ours."""
    if name == "resolution":
        return _side(value, where)
    if name == "optimizer_type":
        known = {choice.lower(): choice for choice in PARAMETERS[name].choices}
        return known.get(str(value).lower() or "adamw", value)
    if name == "optimizer_args" and isinstance(value, list):
        return " ".join(str(part).replace(" ", "") for part in value) or None
    if name == "text_encoder_lr" and isinstance(value, list):
        if len(set(value)) > 1:
            notes.append("text_encoder_lr: of several rates the first counts, as in sd-scripts' networks.lora")
        return float(value[0]) if value else None
    if name in ("base_weights", "base_weights_multiplier") and not isinstance(value, str):
        return ",".join(str(part) for part in (value if isinstance(value, list) else [value])) or None
    if name == "save_precision" and value is None:
        return "float"
    return value


def _network_args(pairs: Any, where: str) -> Values:
    """Kohya's network_args, ``name=value`` each."""
    found: Values = {}
    for pair in pairs or []:
        name, equals, text = str(pair).partition("=")
        name = {"dropout": "network_dropout"}.get(name.strip(), name.strip())
        if not equals:
            raise ConfigError(f"{where}: network_args holds {shown(pair)}: write name=value")
        found[name] = parse_value(name, text.strip()) if name in PARAMETERS else text.strip()
    return found


def _side(value: Any, where: str) -> int:
    """Kohya's resolution, one number or width and height, as the side of a square."""
    parts = value if isinstance(value, list) else str(value).split(",")
    try:
        sides = {int(part) for part in parts}
    except ValueError:
        raise ConfigError(f"{where}: resolution = {shown(value)} is no number: write 512") from None
    if len(sides) > 1:
        raise ConfigError(f"{where}: resolution = {shown(value)} is no square: write one number, and set enable_bucket")
    return sides.pop()


def _ratio(value: Any, values: Values) -> Values:
    if not values.get("max_train_epochs"):
        raise ConfigError("save_n_epoch_ratio needs max_train_epochs: set it, or save_every_n_epochs instead")
    return {"save_every_n_epochs": max(1, int(values["max_train_epochs"]) // int(value))}


def _steps(values: Values, notes: list[str]) -> Values:
    """Kohya's rule: epochs count where they are given, else steps, else 1600 steps."""
    if values.get("max_train_epochs") is None:
        return {**values, "max_train_epochs": 1, "max_train_steps": values.get("max_train_steps") or _STEPS}
    if values.get("max_train_steps") is not None:
        notes.append("max_train_steps is not read where there is max_train_epochs")
    return {name: value for name, value in values.items() if name != "max_train_steps"}


def _weight_decay(values: Values) -> Values:
    """The optimizers' own: in kohya's vocabulary it is one of optimizer_args."""
    adam = values.get("optimizer_type", "AdamW") in _ADAM
    return {"weight_decay": values.get("weight_decay", 0.01 if adam else 0.0)}


def _convolutions(values: Values) -> Values:
    """LyCORIS adapts 3x3 convolutions like all other layers unless it is told another size."""
    if values.get("network_module") != "lycoris.kohya":
        return {}
    defaults = {"conv_dim": values.get("network_dim", 4), "conv_alpha": values.get("network_alpha", 1.0)}
    return {name: values.get(name, default) for name, default in defaults.items()}


def _subsets(path: Path, parameters: Parameters, notes: list[str]) -> list[Subset]:
    """The subsets of a dataset_config, each with all its parameters.

    Raises:
        ConfigError: unknown key, or a subset without image_dir.
    """
    document = _read(path)
    _known(document, {"general", "datasets"}, str(path))
    general = document.get("general", {})
    _known(general, _OF_DATASET | _OF_SUBSET, f"{path}: [general]")
    found = []
    for number, dataset in enumerate(document.get("datasets", [])):
        place = f"{path}: dataset {number + 1}"
        _known(dataset, _OF_DATASET | _OF_SUBSET | {"subsets"}, place)
        for subset in dataset.get("subsets", []):
            _known(subset, _OF_SUBSET | _OF_SUBSET_ALONE, f"{place}: subset")
            if "image_dir" not in subset:
                raise ConfigError(f"{place}: a subset has no image_dir: name its folder")
            layers = [general, {k: v for k, v in dataset.items() if k != "subsets"}, subset]
            own = {k: v for layer in layers for k, v in layer.items() if k not in _OF_SUBSET_ALONE and v is not None}
            if "batch_size" in own:
                own["train_batch_size"] = own.pop("batch_size")
            checked = with_defaults({**_settable(parameters), **_plain(own, place, notes)})
            alone = {k: v for k, v in subset.items() if k in _OF_SUBSET_ALONE}
            fields = {**alone, "nested": False, "dataset": number, "parameters": checked}
            found.append(parse(fields, Subset, f"{place}: subset"))
    if not any(not subset.is_reg for subset in found):
        raise ConfigError(f"{path}: there is no subset to train on: add [[datasets]] with [[datasets.subsets]]")
    return found


def _settable(parameters: Parameters) -> Parameters:
    return {name: value for name, value in parameters.items() if not PARAMETERS[name].derived}


def _read(path: Path) -> Values:
    document = read_json(path) if path.suffix == ".json" else read_toml(path)
    if not isinstance(document, dict):
        raise ConfigError(f"{path} must hold an object of options, but holds {shown(document)}")
    return document


def _known(table: Mapping[str, Any], names: set[str], where: str) -> None:
    for name in table:
        if name not in names:
            raise ConfigError(f"{where}: {_unknown(name, names)}")


def _unknown(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, sorted(names), n=3)
    return f"unknown option {name}" + (f": did you mean {' or '.join(near)}?" if near else ": see docs/parameters.md")
