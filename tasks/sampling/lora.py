"""Put a LoRA into a loaded pipeline, and take it out again exactly."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from schema.errors import TrialError
from tasks.pickles import refuse_pickle
from tasks.training.merge import adapters, named_layers
from tasks.training.network import Adapter, Layer

LOADING = threading.Lock()
"""Held while loading models: transformers and peft patch torch.nn for all threads meanwhile."""

_ADAPTER = "lora"
_DOWN = ".lora_down.weight"
# Tensors that diffusers refuses, or for DoRA gets wrong: these files are loaded with our own layers.
_LYCORIS = re.compile(r"\.(hada_|lokr_|dora_scale)")
_BROKEN = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError, SafetensorError)
"""Errors that diffusers raises for files that are not a LoRA for the model."""


@contextmanager
def adapted(pipe: DiffusionPipeline, checkpoint: Path | None) -> Iterator[None]:
    """Draw with a LoRA inside the block; afterwards the weights are bit-identical to before.

    Args:
        pipe: the pipeline, which stays loaded.
        checkpoint: LoRA file in kohya's or diffusers' format; None leaves the base model.

    Raises:
        TrialError: the file is not a LoRA for this model.
        ConfigError: the file is a pickle.
    """
    if checkpoint is None:
        yield
        return
    refuse_pickle(checkpoint, "the LoRA")
    ours = _lycoris_state(checkpoint)
    with (
        _on_base_weights(pipe, checkpoint),
        _with_own_layers(pipe, checkpoint, ours) if ours else _with_diffusers(pipe, checkpoint),
    ):
        yield


@contextmanager
def _on_base_weights(pipe: DiffusionPipeline, checkpoint: Path) -> Iterator[None]:
    """Merge the base_weights that the LoRA was trained on inside the block."""
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        for path, share in _base_weights(checkpoint):
            _merge_file(pipe, path, share, saved)
        yield
    finally:
        _restore(saved)


def _merge_file(pipe: DiffusionPipeline, path: Path, share: float, saved: list[tuple[Tensor, Tensor]]) -> None:
    try:
        found = adapters(load_file(path), _layers(pipe))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrialError(f"{path}, one of the LoRA's base_weights, cannot be merged: {error}") from None
    _merge_all(found, saved, share)


def _base_weights(checkpoint: Path) -> list[tuple[Path, float]]:
    """Return the files and multipliers of ss_base_weights in a LoRA's metadata; none if there are none."""
    try:
        with safe_open(checkpoint, "pt") as file:
            entries = json.loads((file.metadata() or {}).get("ss_base_weights", "[]"))
            return [(Path(path), float(share)) for path, share in entries]
    except (OSError, TypeError, ValueError, SafetensorError):
        return []  # loading the file reports what is wrong with it; other trainers' files have no such entry


def _merge_all(found: list[Adapter], saved: list[tuple[Tensor, Tensor]], share: float = 1.0) -> None:
    """Merge adapters and record old weights in `saved` one by one: a later one may not fit into memory."""
    for adapter in found:
        saved.append(adapter.merge(share))


def _restore(saved: list[tuple[Tensor, Tensor]]) -> None:
    for weight, values in reversed(saved):
        weight.data = values


def _layers(pipe: DiffusionPipeline) -> dict[str, Layer]:
    encoders = [("lora_te", pipe.text_encoder)]
    if hasattr(pipe, "text_encoder_2"):
        encoders = [("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)]
    return named_layers(pipe.unet, encoders)


@contextmanager
def _with_diffusers(pipe: DiffusionPipeline, checkpoint: Path) -> Iterator[None]:
    """Do the work of `adapted` with diffusers."""
    _attach(pipe, checkpoint)
    saved: list[tuple[nn.Parameter, Tensor]] = []
    try:
        if pipe.dtype == torch.float32:
            _merge(pipe, saved)
        yield
    finally:
        for weight, values in saved:
            weight.data = values
        pipe.unload_lora_weights()


def _lycoris_state(checkpoint: Path) -> dict[str, Tensor]:
    """Return a file's tensors if it holds kinds that diffusers refuses or, like DoRA, gets wrong; else nothing."""
    try:
        if checkpoint.suffix != ".safetensors":
            return {}
        with safe_open(checkpoint, "pt") as file:
            others = any(_LYCORIS.search(key) for key in file.keys())  # noqa: SIM118  # no dict
        return load_file(checkpoint) if others else {}
    except (OSError, SafetensorError):
        return {}  # diffusers then reports what is wrong


@contextmanager
def _with_own_layers(pipe: DiffusionPipeline, checkpoint: Path, state: Mapping[str, Tensor]) -> Iterator[None]:
    """Do the work of `adapted` with our own layers: merged into 32-bit weights, attached beside 16-bit ones."""
    try:
        found = adapters(state, _layers(pipe))
    except ValueError as error:
        raise TrialError(f"{checkpoint} cannot be loaded as a LoRA of the base model: {error}") from None
    if pipe.dtype == torch.float32:
        saved: list[tuple[Tensor, Tensor]] = []
        try:
            _merge_all(found, saved)
            yield
        finally:
            _restore(saved)
        return
    for adapter in found:
        adapter.to(pipe.dtype).eval().attach()
    try:
        yield
    finally:
        for adapter in found:
            adapter.detach()


def _attach(pipe: DiffusionPipeline, checkpoint: Path) -> None:
    try:
        scaled = _kohya_scaled(checkpoint)
        with LOADING:
            pipe.load_lora_weights(scaled or str(checkpoint), adapter_name=_ADAPTER)
        if not pipe.get_list_adapters():
            raise ValueError("none of its layers is one of the model: it was trained for another kind of model")
    except _BROKEN as error:
        pipe.unload_lora_weights()
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise TrialError(f"{checkpoint} cannot be loaded as a LoRA of the base model: {reason}") from None


def _kohya_scaled(checkpoint: Path) -> dict[str, Tensor]:
    """Return a file in kohya's format with each layer's alpha / rank multiplied in; nothing for other formats.

    diffusers gets alphas and ranks wrong that differ between layers: it uses the most common one for attention in
    the UNet and for the text encoders.
    """
    if checkpoint.suffix != ".safetensors":
        return {}
    state = load_file(checkpoint)
    names = [key.removesuffix(_DOWN) for key in state if key.endswith(_DOWN)]
    for name in names:
        down = state[name + _DOWN].float()
        alpha = state.pop(f"{name}.alpha", None)
        state[name + _DOWN] = down if alpha is None else down * (alpha.item() / len(down))
    return state if names else {}


def _merge(pipe: DiffusionPipeline, saved: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Add the LoRA to copies of the weights, which saves two products per layer and step.

    Only for 32 bits: in 16 bits a small change would be lost in the rounding of the weight.

    Args:
        pipe: the pipeline with the LoRA attached.
        saved: receives the parameters and their old values, to be restored.
    """
    for layer in _adapted_layers(pipe):
        weight = layer.get_base_layer().weight
        saved.append((weight, weight.data))
        weight.data = weight.data.clone()
        layer.merge()


def _adapted_layers(pipe: DiffusionPipeline) -> list[BaseTunerLayer]:
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return [layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer)]
