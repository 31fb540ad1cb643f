"""Read kohya's own files and options as sd-scripts reads them, and check them.

config_file: sections are cosmetic; options of the command line win. dataset_config: an option is looked up in the
subset, its dataset, [general] and config_file, in this order. Options that sd-scripts has and this trainer does not
support are refused with a reason. Options without effect here give a note. Unknown options are refused with the
closest known names.
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
"""Options by kohya's names, as read from a file or the command line."""

_DEFAULTS: Values = {
    "learning_rate": 2e-6, "caption_extension": ".caption", "resize_interpolation": None, "save_precision": "float",
    "save_every_n_epochs": 10000, "cache_latents": False,
}  # fmt: skip
"""Kohya's defaults that differ from ours. By default kohya saves only the last epoch, hence the 10000."""

_DEFAULT_STEPS = 1600  # sd-scripts' default of max_train_steps
_ALIASES = {"dataset_repeats": "num_repeats", "caption_extention": "caption_extension"}  # the misspelling is kohya's
_METADATA_OPTIONS = (
    "training_comment", "metadata_title", "metadata_author", "metadata_description", "metadata_license",
    "metadata_tags", "metadata_usage_hint", "metadata_trigger_phrase",
)  # fmt: skip

_DATASET_OPTIONS = {
    "resolution", "batch_size", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "bucket_reso_steps",
    "bucket_no_upscale", "validation_split", "validation_seed", "network_multiplier", "resize_interpolation",
}  # fmt: skip
_SUBSET_OPTIONS = {
    "num_repeats", "shuffle_caption", "caption_separator", "keep_tokens", "keep_tokens_separator",
    "secondary_separator", "enable_wildcard", "caption_prefix", "caption_suffix", "caption_dropout_rate",
    "caption_dropout_every_n_epochs", "caption_tag_dropout_rate", "token_warmup_min", "token_warmup_step",
    "color_aug", "flip_aug", "random_crop", "face_crop_aug_range", "caption_extension", "alpha_mask",
    "resize_interpolation", "cache_info", "custom_attributes", "metadata_file",
}  # fmt: skip
_SUBSET_ONLY_OPTIONS = {"image_dir", "is_reg", "class_tokens"}

# Options that are refused unless they have this value, which is what this trainer does anyway.
_ALLOWED = {"save_model_as": "safetensors", "network_multiplier": 1}
# Optimizers whose own default of weight_decay is 0.01; that of all others is 0.
_NEUTRAL_WORDS = {str(value).lower() for value in NEUTRAL}
_ADAM = ("AdamW", "AdamW8bit", "PagedAdamW8bit")


def read_kohya(options: Mapping[str, Any]) -> tuple[TrainingConfig, list[str]]:
    """Return the configuration that kohya's options describe, and a note for each option without effect.

    Args:
        options: options of the command line; config_file and dataset_config name files to read.

    Raises:
        ConfigError: an option is unknown, unsupported or wrong, or a required path is missing.
    """
    given, notes = dict(options), list[str]()
    file, dataset = given.pop("config_file", None), given.pop("dataset_config", None)
    if file is not None:
        path = Path(file)
        # sd-scripts lets the ending be left out.
        path = path if path.suffix == ".toml" else path.with_name(f"{path.name}.toml")
        read = flatten(read_toml(path))
        dataset = dataset or read.pop("dataset_config", None)
        given = {**{k: v for k, v in read.items() if k != "dataset_config"}, **given}
    where = str(file or "the command line")
    values = _plain(given, where, notes)
    places = {name: values.pop(name) for name in (*PLACES, *_METADATA_OPTIONS) if name in values}
    own = {**_weight_decay(values), **_convolutions(values)}
    parameters = with_defaults({**_DEFAULTS, **_steps(values, notes), **own})
    about = {name: str(places.pop(name)) for name in _METADATA_OPTIONS if places.get(name) is not None}
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
    """Parse a command line of kohya's kind: ``--name``, ``--name value``, ``--name value value``, ``--name=value``.

    Raises:
        ConfigError: a value comes before any option.
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
    """Convert options to the names and types of `PARAMETERS`; one error lists all refused options.

    Raises:
        ConfigError: see `read_kohya`.
    """
    values: Values = {}
    for name, value in given.items():
        if name == "network_args":
            values |= _network_args(value, where)
        else:
            values[_ALIASES.get(name, name)] = value
    refused = []
    for name in [name for name in values if name not in PARAMETERS and name not in (*PLACES, *_METADATA_OPTIONS)]:
        value = values.pop(name)
        if name in ("cache_latents_to_disk", "cache_text_encoder_outputs_to_disk"):
            continue
        if str(_ALLOWED.get(name)) == str(value):  # the command line gives texts
            continue
        if name in REFUSED and not _is_neutral(value):
            refused.append(f"{name} is not supported: {REFUSED[name]}")
        elif name in NEEDLESS and not _is_neutral(value):
            notes.append(f"{name} has no effect: {NEEDLESS[name]}")
        elif name == "save_n_epoch_ratio":
            values |= _ratio(value, values)
        elif name not in REFUSED and name not in NEEDLESS:
            refused.append(_unknown(name, {*PARAMETERS, *PLACES, *REFUSED, *NEEDLESS, "network_args"}))
    if refused:
        raise ConfigError(f"{where}: {'; '.join(refused)}")
    return {name: _single(name, value, where, notes) for name, value in values.items()}


def _is_neutral(value: Any) -> bool:
    """Return whether a value leaves an option off, as a value of TOML or as a word of the command line."""
    return value in NEUTRAL or (isinstance(value, str) and value.strip().lower() in _NEUTRAL_WORDS)


def _single(name: str, value: Any, where: str, notes: list[str]) -> Any:
    """Convert a value to the form that `PARAMETERS` expects: lists become text, spellings are normalised."""
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
    """Parse kohya's network_args, each ``name=value``."""
    found: Values = {}
    for pair in pairs or []:
        name, equals, text = str(pair).partition("=")
        name = {"dropout": "network_dropout"}.get(name.strip(), name.strip())
        if not equals:
            raise ConfigError(f"{where}: network_args holds {shown(pair)}: write name=value")
        found[name] = parse_value(name, text.strip()) if name in PARAMETERS else text.strip()
    return found


def _side(value: Any, where: str) -> int:
    """Return the side of a square from kohya's resolution: one number, or width and height."""
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
    """Apply kohya's rule: epochs if they are given, else steps, else 1600 steps."""
    if values.get("max_train_epochs") is None:
        return {**values, "max_train_epochs": 1, "max_train_steps": values.get("max_train_steps") or _DEFAULT_STEPS}
    if values.get("max_train_steps") is not None:
        notes.append("max_train_steps is not read where there is max_train_epochs")
    return {name: value for name, value in values.items() if name != "max_train_steps"}


def _weight_decay(values: Values) -> Values:
    """Return the optimizer's own default: kohya has no such option, only optimizer_args."""
    adam = values.get("optimizer_type", "AdamW") in _ADAM
    return {"weight_decay": values.get("weight_decay", 0.01 if adam else 0.0)}


def _convolutions(values: Values) -> Values:
    """Return conv_dim and conv_alpha: LyCORIS adapts 3x3 convolutions at network_dim unless they are set."""
    if values.get("network_module") != "lycoris.kohya":
        return {}
    defaults = {"conv_dim": values.get("network_dim", 4), "conv_alpha": values.get("network_alpha", 1.0)}
    return {name: values.get(name, default) for name, default in defaults.items()}


def _subsets(path: Path, parameters: Parameters, notes: list[str]) -> list[Subset]:
    """Return the subsets of a dataset_config, each with all its parameters.

    Raises:
        ConfigError: a key is unknown, or a subset has no image_dir.
    """
    document = _read(path)
    _known(document, {"general", "datasets"}, str(path))
    general = document.get("general", {})
    _known(general, _DATASET_OPTIONS | _SUBSET_OPTIONS, f"{path}: [general]")
    found = []
    for number, dataset in enumerate(document.get("datasets", [])):
        place = f"{path}: dataset {number + 1}"
        _known(dataset, _DATASET_OPTIONS | _SUBSET_OPTIONS | {"subsets"}, place)
        for subset in dataset.get("subsets", []):
            _known(subset, _SUBSET_OPTIONS | _SUBSET_ONLY_OPTIONS, f"{place}: subset")
            if "image_dir" not in subset:
                raise ConfigError(f"{place}: a subset has no image_dir: name its folder")
            layers = [general, {k: v for k, v in dataset.items() if k != "subsets"}, subset]
            own = {
                k: v for layer in layers for k, v in layer.items() if k not in _SUBSET_ONLY_OPTIONS and v is not None
            }
            if "batch_size" in own:
                own["train_batch_size"] = own.pop("batch_size")
            checked = with_defaults({**_settable(parameters), **_plain(own, place, notes)})
            alone = {k: v for k, v in subset.items() if k in _SUBSET_ONLY_OPTIONS}
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
