from __future__ import annotations

import json
import random
from pathlib import Path

import dicebear_styles
import numpy as np
import pytest
import torch
from dicebear import Style
from PIL import Image
from torch import Tensor

from demo.attributes import Attributes
from demo.portraits import _portrait, portraits
from schema.prompts import Expectation
from tasks.metrics.sets import Training, diversity, memorised, training_pictures, with_set_measures
from tasks.metrics.suite import measure, summarise

NAMES = [f"prompt {i}" for i in range(12)]


def pictures(seed: int, count: int = 12) -> Tensor:
    drawn = np.stack([p.enlarged(64) for p in portraits(count, seed)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2)


def one_face_in_other_colours() -> Tensor:
    style = Style(json.loads((Path(next(iter(dicebear_styles.__path__))) / "pixel-art.json").read_text()))
    rng = random.Random(5)
    faces = [_portrait(style, Attributes.draw(rng, 0.0), random.Random(3)).enlarged(64) for _ in range(12)]
    return torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2)


def test_different_faces_one_face_and_one_picture_are_told_apart() -> None:
    different, same_face = diversity(pictures(1), NAMES), diversity(one_face_in_other_colours(), NAMES)
    assert different is not None
    assert same_face is not None
    assert different > 45
    assert same_face < 35
    assert diversity(pictures(1)[:1].expand(12, -1, -1, -1), NAMES) == pytest.approx(0, abs=1e-3)
    assert diversity(pictures(1), ["one"] * 12) is None


def test_copies_are_recognised_also_mirrored_and_new_portraits_are_not() -> None:
    training = Training.of(list(pictures(1, 40)))
    copies = pictures(1, 40)[:6].float() * 0.98 + 2
    assert memorised(copies.byte(), training).all()
    assert memorised(copies.byte().flip(3), training).all()
    assert not memorised(pictures(2), training).any()


def test_an_epoch_gets_its_set_measures(tmp_path: Path) -> None:
    drawn = pictures(1)
    for i, picture in enumerate(drawn):
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / f"{i}.png")
    training = training_pictures(tuple(sorted(tmp_path.glob("*.png"))))
    promised = [Expectation(background=("#2fa84f",))] * 12
    names = [f"prompt {i // 2}" for i in range(12)]
    metrics = with_set_measures(summarise(measure(drawn, promised)), drawn, names, training)
    assert metrics.memorised_share == 1
    assert metrics.seed_spread is not None
    assert metrics.seed_spread > 0
    worst = min(metrics.pictures, key=lambda p: p.background_accuracy or 0)
    assert metrics.worst_prompts == {"background_accuracy": names[metrics.pictures.index(worst)]}
