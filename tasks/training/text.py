"""Encode captions to text states as kohya's trainer does.

Captions longer than CLIP's 75 tokens are cut into pieces. The pieces are encoded one by one and joined without the
start and end tokens between them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPTokenizer

from tasks.training.latents import TensorCache, digest
from tasks.training.models import BaseModel, TextEncoder

_CLIP_TOKENS = 75  # CLIP's 77 positions without start and end
_MAX_REMEMBERED = 1024
"""Encoded captions kept on the device, 0.25 MB each for SD 1.5: the limit bounds them to about 256 MB."""


@dataclass(frozen=True)
class TextStates:
    """Hold the UNet's text conditioning for B captions."""

    states: Tensor  # (B, tokens, width)
    pooled: Tensor | None  # (B, width) of SDXL's second encoder


class TextConditioner:
    """Encode captions; after `freeze`, results are cached."""

    def __init__(self, model: BaseModel, clip_skip: int, max_token_length: int, device: torch.device) -> None:
        """Set up the encoders.

        Args:
            model: the base model, with one text encoder or SDXL's two.
            clip_skip: use the n-th hidden state from the end; 0 and 1 use the last. SDXL always uses the second last.
            max_token_length: 75, 150 or 225.
            device: where states are returned.
        """
        self._encoders, self._tokenizers, self._device = model.text_encoders, model.tokenizers, device
        self._skip, self._length = clip_skip, max_token_length
        self._remembered: dict[str, tuple[Tensor, Tensor | None]] | None = None
        self._cache, self._made_by = TensorCache(None), ""

    def freeze(self, folder: Path | None = None) -> None:
        """Cache encoded captions from now on; call it only if the encoders are not trained.

        Args:
            folder: also caches on disk, by caption, weights and settings, for later runs; None does not.
        """
        self._remembered, self._cache = {}, TensorCache(folder)
        if folder is not None:
            vocabularies = hashlib.sha256(repr([sorted(t.get_vocab().items()) for t in self._tokenizers]).encode())
            weights = f"{digest(*self._encoders)}/{self._encoders[0].dtype}"
            self._made_by = f"text/{weights}/{vocabularies.hexdigest()}/{self._skip}/{self._length}"

    def encode(self, captions: Sequence[str]) -> TextStates:
        """Return the text states of B captions."""
        if self._remembered is None:
            return self._encode(captions)
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._remembered]
        fresh: dict[str, tuple[Tensor, Tensor | None]] = {}
        for caption in new:
            if (kept := self._read(caption)) is not None:
                fresh[caption] = kept
        if unseen := [caption for caption in new if caption not in fresh]:
            with torch.no_grad():
                made = self._encode(unseen)
            for i, caption in enumerate(unseen):
                fresh[caption] = made.states[i], None if made.pooled is None else made.pooled[i]
                self._write(caption, *fresh[caption])
        found = [fresh[caption] if caption in fresh else self._remembered[caption] for caption in captions]
        if len(self._remembered) + len(fresh) <= _MAX_REMEMBERED:
            self._remembered |= fresh
        pooled = [vector for _, vector in found if vector is not None]
        return TextStates(torch.stack([states for states, _ in found]), torch.stack(pooled) if pooled else None)

    def _read(self, caption: str) -> tuple[Tensor, Tensor | None] | None:
        keys = [self._cache.key(caption.encode(), f"{self._made_by}/{part}") for part in ("states", "pooled")]
        states, pooled = (self._cache.read(key) for key in keys)
        if states is None or (pooled is None and len(self._encoders) > 1):
            return None
        return states.to(self._device), None if pooled is None else pooled.to(self._device)

    def _write(self, caption: str, states: Tensor, pooled: Tensor | None) -> None:
        for part, tensor in (("states", states), ("pooled", pooled)):
            if tensor is not None:
                self._cache.write(self._cache.key(caption.encode(), f"{self._made_by}/{part}"), tensor.cpu())

    def _encode(self, captions: Sequence[str]) -> TextStates:
        if len(self._encoders) == 1:
            return TextStates(self._plain(captions), None)
        states, pooled = [], None
        for encoder, tokenizer in zip(self._encoders, self._tokenizers, strict=True):
            ids = self._ids(tokenizer, captions)
            out = encoder(ids.flatten(0, 1), output_hidden_states=True)
            states.append(_joined(out.hidden_states[-2], ids.shape[:2]))
            pooled = out[0].unflatten(0, ids.shape[:2])[:, 0]  # kohya pools the first piece
        return TextStates(torch.cat(states, dim=-1), pooled)

    def _plain(self, captions: Sequence[str]) -> Tensor:
        encoder = self._encoders[0]
        ids = self._ids(self._tokenizers[0], captions)
        out = encoder(ids.flatten(0, 1), output_hidden_states=self._skip > 1)
        states: Tensor = out[0]
        if self._skip > 1:
            states = _final_norm(encoder, out.hidden_states[-self._skip])
        return _joined(states, ids.shape[:2])

    def _ids(self, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Tensor:
        """Return the token ids of each piece, (B, pieces, 77)."""
        length = min(self._length, tokenizer.model_max_length - 2) if self._length <= _CLIP_TOKENS else self._length
        ids = tokenizer(
            list(captions), padding="max_length", max_length=length + 2, truncation=True, return_tensors="pt"
        ).input_ids
        size = min(_CLIP_TOKENS, length)
        pieces = ids[:, 1:-1].unflatten(1, (length // size, size))
        start, end = ids[:, :1, None], ids[:, -1:, None]
        many = pieces.shape[1]
        pieces = torch.cat([start.expand(-1, many, -1), pieces, end.expand(-1, many, -1)], dim=2)
        stop, pad = tokenizer.eos_token_id, tokenizer.pad_token_id
        if pad != stop and many > 1:  # SDXL's second tokenizer: each piece ends, and an empty one begins with its end
            last, first = pieces[..., -2], pieces[..., 1]
            pieces[..., -1] = torch.where((last != stop) & (last != pad), stop, pieces[..., -1])
            pieces[..., 1] = torch.where(first == pad, stop, first)
        return pieces.to(self._device)


def _joined(states: Tensor, shape: torch.Size) -> Tensor:
    """Join the states of pieces (B * pieces, 77, width): first start token, all text tokens, last end token."""
    pieces: Tensor = states.unflatten(0, shape)
    if shape[1] == 1:
        return pieces[:, 0]
    return torch.cat([pieces[:, 0, :1], pieces[:, :, 1:-1].flatten(1, 2), pieces[:, -1, -1:]], dim=1)


def _final_norm(encoder: TextEncoder, states: Tensor) -> Tensor:
    inner = getattr(encoder, "text_model", encoder)
    normed: Tensor = inner.final_layer_norm(states)
    return normed
