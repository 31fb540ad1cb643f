from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks.training.models import load_base_model
from tasks.training.text import TextConditioner

CAPTIONS = ["pixel art, crown", "", "pixel art, crown"]


def conditioner(folder: Path, **settings: int) -> TextConditioner:
    model = load_base_model(str(folder), torch.device("cpu"), torch.float32)
    return TextConditioner(model, settings.get("clip_skip", 0), settings.get("length", 75), torch.device("cpu"))


@pytest.mark.parametrize("sdxl", [False, True])
def test_what_frozen_encoders_say_is_found_again_on_disk(
    tiny_model: Path, tiny_sdxl: Path, tmp_path: Path, sdxl: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_sdxl if sdxl else tiny_model
    first, again, other = conditioner(folder), conditioner(folder), conditioner(folder, length=150)
    for each in (first, again, other):
        each.freeze(tmp_path)
    with torch.no_grad():
        expected = conditioner(folder).encode(CAPTIONS)
    said = first.encode(CAPTIONS)
    assert torch.allclose(said.states, expected.states, atol=1e-6)
    assert (said.pooled is not None) == sdxl

    def refuse(*_: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(TextConditioner, "_encode", refuse)
    found = again.encode(CAPTIONS)
    assert torch.equal(found.states, said.states)
    if said.pooled is not None and found.pooled is not None:
        assert torch.equal(found.pooled, said.pooled)
    with pytest.raises(AssertionError, match="asked"):
        other.encode(CAPTIONS)  # read in another way


def test_other_weights_say_it_anew(tiny_model: Path, tmp_path: Path) -> None:
    first, changed = conditioner(tiny_model), conditioner(tiny_model)
    with torch.no_grad():
        next(changed._encoders[0].parameters()).add_(0.1)
    first.freeze(tmp_path)
    changed.freeze(tmp_path)
    assert not torch.equal(first.encode(CAPTIONS).states, changed.encode(CAPTIONS).states)
