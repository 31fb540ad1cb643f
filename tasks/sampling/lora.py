"""A LoRA in a pipeline that stays loaded, and exactly out of it again."""

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
"""transformers and peft patch torch.nn for all threads while they load: one at a time."""

_ADAPTER = "lora"
_DOWN = ".lora_down.weight"
_LYCORIS = re.compile(r"\.(hada_|lokr_|dora_scale)")
_BROKEN = (OSError, ValueError, RuntimeError, LookupError, AttributeError, TypeError, SafetensorError)
"""What diffusers raises at files that are no LoRA for the model."""


@contextmanager
def adapted(pipe: DiffusionPipeline, checkpoint: Path | None) -> Iterator[None]:
    """Inside, the pipeline draws with the LoRA; afterwards its weights are, to the bit, what they were.

    Args:
        checkpoint: LoRA file in kohya's or diffusers' format; None leaves the base model.

    Raises:
        TrialError: the file is no LoRA for this model.
        ConfigError: it is a pickle.
    """
    if checkpoint is None:
        yield
        return
    refuse_pickle(checkpoint, "the LoRA")
    ours = _lycoris_state(checkpoint)
    with _on_base_weights(pipe, checkpoint), _held(pipe, checkpoint, ours) if ours else _loaded(pipe, checkpoint):
        yield


@contextmanager
def _on_base_weights(pipe: DiffusionPipeline, checkpoint: Path) -> Iterator[None]:
    """Inside, the files that were merged into the base model for the LoRA's training are merged again."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for path, share in _base_weights(checkpoint):
            _merge_file(pipe, path, share, kept)
        yield
    finally:
        _put_back(kept)


def _merge_file(pipe: DiffusionPipeline, path: Path, share: float, kept: list[tuple[Tensor, Tensor]]) -> None:
    try:
        found = adapters(load_file(path), _layers(pipe))
    except (OSError, ValueError, SafetensorError) as error:
        raise TrialError(f"{path}, one of the LoRA's base_weights, cannot be merged: {error}") from None
    _merge_all(found, kept, share)


def _base_weights(checkpoint: Path) -> list[tuple[Path, float]]:
    """Files and shares that a LoRA's metadata tell of."""
    try:
        with safe_open(checkpoint, "pt") as file:
            told = json.loads((file.metadata() or {}).get("ss_base_weights", "[]"))
            return [(Path(path), float(share)) for path, share in told]
    except (OSError, TypeError, ValueError, SafetensorError):
        return []  # no such file, or none of ours


def _merge_all(found: list[Adapter], kept: list[tuple[Tensor, Tensor]], share: float = 1.0) -> None:
    """Merge adapters one by one, and tell `kept` of each at once: the next may not fit into memory."""
    for adapter in found:
        kept.append(adapter.merge(share))


def _put_back(kept: list[tuple[Tensor, Tensor]]) -> None:
    for weight, values in reversed(kept):
        weight.data = values


def _layers(pipe: DiffusionPipeline) -> dict[str, Layer]:
    encoders = [("lora_te", pipe.text_encoder)]
    if hasattr(pipe, "text_encoder_2"):
        encoders = [("lora_te1", pipe.text_encoder), ("lora_te2", pipe.text_encoder_2)]
    return named_layers(pipe.unet, encoders)


@contextmanager
def _loaded(pipe: DiffusionPipeline, checkpoint: Path) -> Iterator[None]:
    """As `adapted`, by diffusers."""
    _attach(pipe, checkpoint)
    kept: list[tuple[nn.Parameter, Tensor]] = []
    try:
        if pipe.dtype == torch.float32:
            _merge(pipe, kept)
        yield
    finally:
        for weight, values in kept:
            weight.data = values
        pipe.unload_lora_weights()


def _lycoris_state(checkpoint: Path) -> dict[str, Tensor]:
    """A file's tensors where it holds kinds that diffusers refuses or, as DoRA, gets wrong; else nothing."""
    try:
        if checkpoint.suffix != ".safetensors":
            return {}
        with safe_open(checkpoint, "pt") as file:
            others = any(_LYCORIS.search(key) for key in file.keys())  # noqa: SIM118  # no dict
        return load_file(checkpoint) if others else {}
    except (OSError, SafetensorError):
        return {}  # the ordinary way says what is wrong


@contextmanager
def _held(pipe: DiffusionPipeline, checkpoint: Path, state: Mapping[str, Tensor]) -> Iterator[None]:
    """As `adapted`, by our own layers: merged into copies of 32-bit weights, beside those of 16."""
    try:
        found = adapters(state, _layers(pipe))
    except ValueError as error:
        raise TrialError(f"{checkpoint} cannot be loaded as a LoRA of the base model: {error}") from None
    if pipe.dtype == torch.float32:
        kept: list[tuple[Tensor, Tensor]] = []
        try:
            _merge_all(found, kept)
            yield
        finally:
            _put_back(kept)
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
    """A file in kohya's format with each layer's alpha / rank multiplied in; nothing for other formats.

    diffusers mixes up alphas and ranks that differ from layer to layer: those of attention in the UNet and of
    the text encoders get the most common one.
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


def _merge(pipe: DiffusionPipeline, kept: list[tuple[nn.Parameter, Tensor]]) -> None:
    """Add the LoRA to copies of the weights, which spares two products a layer and step.

    Only for 32 bits: in 16 a small change would be lost in the rounding of the weight it is added to.

    Args:
        kept: is given the parameters and their own values, to be put back.
    """
    for layer in _adapted_layers(pipe):
        weight = layer.get_base_layer().weight
        kept.append((weight, weight.data))
        weight.data = weight.data.clone()
        layer.merge()


def _adapted_layers(pipe: DiffusionPipeline) -> list[BaseTunerLayer]:
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    return [layer for part in parts for layer in part.modules() if isinstance(layer, BaseTunerLayer)]
