"""LoRA files: kohya's ss_ metadata, and what tensors tell where that is missing."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from tasks.history.facts import EpochFound, Fact, Found, Source, typed

_MODELS = {"sd_v1": "sd15", "sdxl_base_v1-0": "sdxl"}
_NAMES = {
    "sdxl": ("lora_te1_", "lora_te2_", "lora_unet_input_blocks_", "lora_unet_output_blocks_"),
    "sd15": ("lora_te_", "lora_unet_down_blocks_0_attentions_"),
}
"""Starts of names that only this model's LoRA has; SDXL's first block has no attention, whoever names it."""
_PRECISIONS = {"F32": "float", "F16": "fp16", "BF16": "bf16"}
_SUBSET = (
    "num_repeats", "shuffle_caption", "keep_tokens", "color_aug", "flip_aug", "random_crop", "enable_wildcard",
    "caption_prefix", "caption_suffix", "keep_tokens_separator", "secondary_separator",
)  # fmt: skip
_DATASET = ("resolution", "enable_bucket", "min_bucket_reso", "max_bucket_reso", "resize_interpolation")


def read_lora(path: Path) -> Found:
    """What a LoRA file tells about its training.

    Raises:
        ConfigError: no complete safetensors file.
    """
    tensors, metadata = _header(path)
    notes: list[str] = []
    facts = [*_told(metadata, path.name, notes), *_inferred(tensors, path, notes)]
    name, number = _name(path, metadata)
    finished = _time(metadata.get("ss_training_finished_at"))
    epochs = () if number is None else (EpochFound(number, checkpoint=str(path.resolve()), at=finished),)
    started = _time(metadata.get("ss_training_started_at"))
    session = metadata.get("ss_session_id")
    return Found(str(path), name, tuple(facts), session, epochs, started, _broken(path, tensors), tuple(notes))


def _header(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((t["data_offsets"][1] for t in header.values()), default=0)
        if end != path.stat().st_size:
            raise ValueError("the file is cut off")
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is no complete safetensors file: {error}") from None
    return header, metadata


def _told(metadata: Mapping[str, str], place: str, notes: list[str]) -> Iterator[Fact]:
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
    datasets = _json(metadata.get("ss_datasets")) or []
    if datasets:
        first = datasets[0]
        subsets = [s for s in first.get("subsets", []) if not s.get("is_reg")]
        values = {name: first.get(name) for name in _DATASET} | {"train_batch_size": first.get("batch_size_per_device")}
        for name in _SUBSET:
            given = {json.dumps(s.get(name)) for s in subsets}
            if len(given) == 1:
                values[name] = json.loads(given.pop())
            elif given:
                notes.append(f"{place}: subsets differ in {name}; left out")
        yield from typed(values, Source.METADATA, place, notes)
    folders = _json(metadata.get("ss_dataset_dirs")) or {}
    if folders:
        name = "+".join(re.sub(r"^\d+_", "", folder) for folder in sorted(folders))
        yield Fact("dataset", name, Source.METADATA, place)
        images = sum(int(f.get("img_count", 0)) for f in folders.values())
        yield Fact("num_images", images, Source.METADATA, place)
        repeats = {int(f.get("n_repeats", 1)) for f in folders.values()}
        if len(repeats) == 1 and not datasets:
            yield Fact("num_repeats", repeats.pop(), Source.METADATA, place)


def _inferred(tensors: Mapping[str, Any], path: Path, notes: list[str]) -> Iterator[Fact]:
    """Ranks from shapes, alpha from its own tensors, precision from their type, size from the file."""
    place = path.name
    linear, kernels, types = set[int](), set[int](), set[str]()
    for name, tensor in tensors.items():
        if name.endswith(".lora_down.weight"):
            shape = tensor["shape"]
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
    for model, starts in _NAMES.items():
        if any(name.startswith(starts) for name in tensors):
            yield Fact("model_type", model, Source.INFERRED, f"names of the tensors in {place}")
    yield Fact("checkpoint_size_mb", round(path.stat().st_size / 2**20, 3), Source.INFERRED, f"size of {place}")


def _alphas(tensors: Mapping[str, Any], path: Path) -> set[float]:
    """Alpha of linear layers; none where there are too many kinds of number."""
    found = set[float]()
    with path.open("rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        for name, tensor in tensors.items():
            down = tensors.get(f"{name.removesuffix('.alpha')}.lora_down.weight")
            if not name.endswith(".alpha") or down is None or len(down["shape"]) == 4:
                continue
            file.seek(start + tensor["data_offsets"][0])
            found.add(_number(file.read(tensor["data_offsets"][1] - tensor["data_offsets"][0]), tensor["dtype"]))
    return found


def _number(data: bytes, dtype: str) -> float:
    if dtype == "BF16":
        data, dtype = b"\0\0" + data, "F32"
    return float(struct.unpack("<" + {"F16": "e", "F32": "f", "F64": "d"}[dtype], data)[0])


def _broken(path: Path, tensors: Mapping[str, Any]) -> bool:
    """Whether weights are no numbers: sd-scripts saves such files and ends with success."""
    import torch
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        ups = (name for name in tensors if name.endswith(".lora_up.weight"))
        return not all(bool(torch.isfinite(file.get_tensor(name)).all()) for name in ups)


def _name(path: Path, metadata: Mapping[str, str]) -> tuple[str, int | None]:
    """Name of the run, and which epoch this is; files by step are of none."""
    match = re.fullmatch(r"(.+?)-(\d{6})", path.stem)
    name = metadata.get("ss_output_name") or (match.group(1) if match else path.stem)
    if re.search(r"-step\d{8}$", path.stem):
        return re.sub(r"-step\d{8}$", "", name), None
    if match:
        return name, int(match.group(2))
    last = metadata.get("ss_epoch") or metadata.get("ss_num_epochs")
    return name, int(last) if last and last.isdigit() else None


def _optimizer(text: str) -> dict[str, Any]:
    match = re.fullmatch(r"(?:\w+\.)*(\w+)(?:\((.*)\))?", text.strip())
    if match is None or text == "None":
        return {}
    return {"optimizer_type": match.group(1), "optimizer_args": [p.strip() for p in (match.group(2) or "").split(",")]}


def _json(text: str | None) -> Any:
    try:
        return json.loads(text) if text and text != "None" else None
    except json.JSONDecodeError:
        return None


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromtimestamp(float(text), UTC) if text else None
    except ValueError:
        return None
