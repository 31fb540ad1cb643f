"""Read LoRA files: kohya's ss_ metadata, and what shapes and names of tensors show where that is missing."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from tasks.history.facts import EpochFound, Fact, Found, Source, tables, typed, whole_number

_MODELS = {"sd_v1": "sd15", "sdxl_base_v1-0": "sdxl"}
_MODEL_PREFIXES = {
    "sdxl": ("lora_te1_", "lora_te2_", "lora_unet_input_blocks_", "lora_unet_output_blocks_"),
    "sd15": ("lora_te_", "lora_unet_down_blocks_0_attentions_"),
}
"""Prefixes that only a LoRA of this model has. SDXL's first block has no attention in any naming scheme."""

_NUMBERS = {"F16": "<e", "BF16": "<h", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i", "I16": "<h", "I8": "<b",
            "U8": "<B"}  # fmt: skip
"""Codes of `struct` for the number types of a file."""

_LORA_NAME_PARTS = ("lora_", "hada_", "lokr_", "oft_", "dora_scale", ".alpha")
"""Parts of tensor names that occur only in LoRA files, of any trainer."""

_WITHOUT_NAN = ("F4", "F6_E2M3", "F6_E3M2")  # these types cannot represent NaN, and torch cannot convert them
_MAX_HEADER = 100_000_000  # bytes: safetensors itself refuses a longer one
_PRECISIONS = {"F32": "float", "F16": "fp16", "BF16": "bf16"}
_SUBSET = (
    "num_repeats", "shuffle_caption", "keep_tokens", "color_aug", "flip_aug", "random_crop", "enable_wildcard",
    "caption_prefix", "caption_suffix", "keep_tokens_separator", "secondary_separator",
)  # fmt: skip
_DATASET = ("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "resize_interpolation")


_ADAPTER = re.compile(r"lora|hada_|lokr_|oft_|dora_|ia3|\.alpha$", re.IGNORECASE)
"""What names of tensors hold in LoRA files of kohya, LyCORIS, peft and diffusers, and in no base model."""


def read_lora(path: Path) -> Found:
    """Read what a LoRA file says about its training.

    Raises:
        ConfigError: the file is not a complete safetensors file, or holds a model's own weights.
    """
    tensors, metadata = _header(path)
    if tensors and not any(_ADAPTER.search(name) for name in tensors):
        raise ConfigError(f"{path} holds weights of a model, not of a LoRA: leave it out")
    notes: list[str] = []
    facts = [*_from_metadata(metadata, path.name, notes), *_inferred(tensors, path, notes)]
    name, number = _name(path, metadata)
    finished = _time(metadata.get("ss_training_finished_at"))
    epochs = () if number is None else (EpochFound(number, checkpoint=str(path.resolve()), at=finished),)
    started = _time(metadata.get("ss_training_started_at"))
    session = metadata.get("ss_session_id")
    return Found(str(path), name, tuple(facts), session, epochs, started, _broken(path, tensors), tuple(notes))


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _MAX_HEADER):
                raise ValueError("its header is longer than the file or than any writer makes it")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        if not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata holds values that are no texts")
        ends = [_end(tensor) for tensor in header.values()]
        if 8 + length + max(ends, default=0) != size:
            raise ValueError("the file is cut off")
    except RecursionError:
        raise ConfigError(f"{path} is no complete safetensors file: its header is nested too deep") from None
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no complete safetensors file: {error!s:.200}") from None
    return header, metadata


def _end(tensor: Any) -> int:
    """Return where a tensor's data ends; raise ValueError, KeyError or TypeError for a malformed description."""
    start, end = tensor["data_offsets"]
    shape = tensor["shape"]
    numbers = [start, end, *shape]
    if not (isinstance(shape, list) and isinstance(tensor["dtype"], str)):
        raise ValueError("a tensor has no shape or type")
    if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers) or start > end:
        raise ValueError("a tensor has a place or shape that cannot be")
    return int(end)


def _from_metadata(metadata: Mapping[str, str], place: str, notes: list[str]) -> Iterator[Fact]:
    def facts(pairs: Mapping[str, Any]) -> Iterator[Fact]:
        return typed(pairs, Source.METADATA, place, notes)

    own = {k.removeprefix("ss_"): v for k, v in metadata.items() if k.startswith("ss_")}
    for name in ("optimizer", "network_args", "max_train_steps"):
        own.pop(name, None)
    yield from facts(own)
    yield from facts(_optimizer(metadata.get("ss_optimizer", "")))
    yield from facts({"network_args": _json(metadata.get("ss_network_args"))})
    yield from facts(
        {
            "max_train_epochs": metadata.get("ss_num_epochs"), "total_steps": metadata.get("ss_max_train_steps"),
            "steps_per_epoch": metadata.get("ss_num_batches_per_epoch"), "base_model": metadata.get("ss_sd_model_name"),
            "train_batch_size": metadata.get("ss_batch_size_per_device"),
            "model_type": _MODELS.get(metadata.get("ss_base_model_version", "")),
        }
    )  # fmt: skip
    yield from _data(metadata, place, notes)
    for name, key in (("started_at", "ss_training_started_at"), ("finished_at", "ss_training_finished_at")):
        if (at := _time(metadata.get(key))) is not None:
            yield Fact(name, at.isoformat(), Source.METADATA, place)


def _data(metadata: Mapping[str, str], place: str, notes: list[str]) -> Iterator[Fact]:
    datasets = tables(_json(metadata.get("ss_datasets")))
    if datasets:
        first = datasets[0]
        subsets = [s for s in tables(first.get("subsets")) if not s.get("is_reg")]
        values = {name: first.get(name) for name in _DATASET} | {"train_batch_size": first.get("batch_size_per_device")}
        for name in _SUBSET:
            given = {json.dumps(s.get(name)) for s in subsets}
            if len(given) == 1:
                values[name] = json.loads(given.pop())
            elif given:
                notes.append(f"{place}: subsets differ in {name}; left out")
        yield from typed(values, Source.METADATA, place, notes)
    folders = _json(metadata.get("ss_dataset_dirs"))
    if isinstance(folders, dict) and folders:
        name = "+".join(re.sub(r"^\d+_", "", folder) for folder in sorted(folders))
        yield Fact("dataset", name, Source.METADATA, place)
        images = [whole_number(f.get("img_count", 0)) for f in folders.values() if isinstance(f, dict)]
        total = whole_number(sum(n for n in images if n is not None))
        if len(images) == len(folders) and None not in images and total is not None:
            yield Fact("num_images", total, Source.METADATA, place)
        else:
            notes.append(f"{place}: ss_dataset_dirs does not say how many pictures there were; left out")
        repeats = {whole_number(f.get("n_repeats", 1)) for f in folders.values() if isinstance(f, dict)}
        if len(repeats) == 1 and None not in repeats and not datasets:
            yield Fact("num_repeats", repeats.pop(), Source.METADATA, place)


def _inferred(tensors: Mapping[str, Any], path: Path, notes: list[str]) -> Iterator[Fact]:
    """Yield what tensors show: ranks from shapes, alpha from its tensors, precision from types, model from names."""
    place = path.name
    linear, kernels, types = set[int](), set[int](), set[str]()
    for name, tensor in tensors.items():
        if name.endswith(".lora_down.weight"):
            shape = tensor["shape"]
            if not shape:
                notes.append(f"{place}: {name:.100} has no rank; left out")
                continue
            (kernels if len(shape) == 4 and shape[2:] != [1, 1] else linear).add(int(shape[0]))
            types.add(tensor["dtype"])
    for name, ranks in (("network_dim", linear), ("conv_dim", kernels)):
        if len(ranks) == 1:
            yield Fact(name, ranks.pop(), Source.INFERRED, f"shapes of the tensors in {place}")
        elif ranks:
            notes.append(f"{place}: its tensors have several ranks for {name}: {sorted(ranks)}")
    alphas = _alphas(tensors, path)
    if len(alphas) == 1:
        yield Fact("network_alpha", alphas.pop(), Source.INFERRED, f"alpha tensors in {place}")
    if len(types) == 1 and (precision := _PRECISIONS.get(next(iter(types)))):
        yield Fact("save_precision", precision, Source.INFERRED, f"type of the tensors in {place}")
    if linear or types:
        only = not any(name.startswith("lora_te") for name in tensors)
        yield Fact("network_train_unet_only", only, Source.INFERRED, f"text encoder's tensors in {place}")
    for model, starts in _MODEL_PREFIXES.items():
        if any(name.startswith(starts) for name in tensors):
            yield Fact("model_type", model, Source.INFERRED, f"names of the tensors in {place}")
    yield Fact("checkpoint_size_mb", round(path.stat().st_size / 2**20, 3), Source.INFERRED, f"size of {place}")


def _alphas(tensors: Mapping[str, Any], path: Path) -> set[float]:
    """Return the distinct alphas of linear layers; alphas of a type that `struct` cannot read are left out."""
    found = set[float]()
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        for name, tensor in tensors.items():
            down = tensors.get(f"{name.removesuffix('.alpha')}.lora_down.weight")
            if not name.endswith(".alpha") or down is None or len(down["shape"]) == 4:
                continue
            begin, end = tensor["data_offsets"]
            code = _NUMBERS.get(tensor["dtype"])
            if code is None or end - begin != struct.calcsize(code):
                continue
            file.seek(start + begin)
            data = file.read(end - begin)
            # bfloat16 is the upper half of a float32.
            if tensor["dtype"] == "BF16":
                data, code = b"\0\0" + data, "<f"
            if math.isfinite(value := float(struct.unpack(code, data)[0])):
                found.add(value)
    return found


def _broken(path: Path, tensors: Mapping[str, Any]) -> bool:
    """Return whether any weight is not finite: sd-scripts saves such files and exits with 0."""
    import torch
    from safetensors import safe_open

    is_lora = any(part in name for name in tensors for part in _LORA_NAME_PARTS)
    with safe_open(path, framework="pt") as file:
        for name, tensor in tensors.items() if is_lora else ():
            if not tensor["dtype"].startswith(("F", "BF")) or tensor["dtype"] in _WITHOUT_NAN:
                continue
            if not bool(torch.isfinite(file.get_tensor(name).float()).all()):  # torch has no isfinite for float8
                return True
    return False


def _name(path: Path, metadata: Mapping[str, str]) -> tuple[str, int | None]:
    """Return the run's name and the file's epoch; None for a file saved by step."""
    match = re.fullmatch(r"(.+?)-(\d{6})", path.stem)
    name = metadata.get("ss_output_name") or (match.group(1) if match else path.stem)
    if re.search(r"-step\d{8}$", path.stem):
        return re.sub(r"-step\d{8}$", "", name), None
    if match:
        return name, int(match.group(2))
    last = metadata.get("ss_epoch") or metadata.get("ss_num_epochs")
    return name, whole_number(last)


def _optimizer(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"(?:\w+\.)*(\w+)(?:\((.*)\))?", text.strip())
    if match is None or text == "None":
        return {}
    return {"optimizer_type": match.group(1), "optimizer_args": [p.strip() for p in (match.group(2) or "").split(",")]}


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text and text != "None" else None
    except (ValueError, RecursionError):
        return None


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(text), UTC) if text else None
    except (ValueError, OverflowError, OSError):  # infinite, or outside the calendar
        return None
