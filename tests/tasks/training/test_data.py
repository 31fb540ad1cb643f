from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from schema.errors import BadDataError
from schema.parameters import with_defaults
from tasks.training.config import Subset, TrainingConfig
from tasks.training.data import TrainingData
from tasks.training.dataset import Placement, find_samples, folder_samples, load_picture, shifted_colours
from tasks.training.latents import LatentCache, TensorCache, View
from tasks.training.models import BaseModel, load_base_model

Data = Callable[..., TrainingData]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> BaseModel:
    return load_base_model(str(tiny_model), torch.device("cpu"), torch.float32)


@pytest.fixture
def data(model: BaseModel, dataset: Path) -> Data:
    def make(*subsets: Subset, folder: Path = dataset, **changes: Any) -> TrainingData:
        config = TrainingConfig(
            pretrained_model_name_or_path="", train_data_dir=folder, output_dir=Path(), subsets=subsets,
            parameters=with_defaults(changes),
        )  # fmt: skip
        return TrainingData(config, model, torch.device("cpu"))

    return make


def subset(folder: Path, dataset: int = 0, **changes: Any) -> Subset:
    own = {name: changes.pop(name) for name in ("is_reg", "class_tokens") if name in changes}
    return Subset(image_dir=folder, nested=False, dataset=dataset, parameters=with_defaults(changes), **own)


def shown(data: TrainingData, batch: list[int], seed: int = 0) -> torch.Tensor:
    """What is seen of a batch, without the posterior's noise."""
    noise = torch.Generator().manual_seed(0)
    return data.latents(batch, random.Random(seed), noise)


def test_each_picture_of_a_batch_is_mirrored_by_its_own_chance(data: Data) -> None:
    plain, flipping = data(), data(flip_aug=True)
    batch = [0] * 16
    same = [(shown(flipping, batch) - shown(plain, batch))[i].abs().max() < 1e-5 for i in range(16)]
    assert 2 < sum(same) < 14


def test_a_mask_is_mirrored_with_its_picture(data: Data, tmp_path: Path) -> None:
    pixels = np.full((16, 16, 4), 255, np.uint8)
    pixels[:, :8, 3] = 0  # the left half is transparent
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    found = data(folder=tmp_path, flip_aug=True, alpha_mask=True)
    for seed in range(8):
        shown(found, [0], seed)
        mask = found.masks([0])
        assert mask is not None
        left, right = (float(half.mean()) for half in mask[0].chunk(2, dim=-1))
        assert (left, right) == ((1.0, 0.0) if found._shown[0].mirrored else (0.0, 1.0))
    assert data(alpha_mask=False).masks([0]) is None


def test_a_random_cut_is_told_to_sdxl_and_covers_the_picture(data: Data, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 48, 3), np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    found = data(folder=tmp_path, random_crop=True, cache_latents=False)
    lefts = set()
    for seed in range(60):
        shown(found, [0], seed)
        height, width, top, left, target_height, target_width = found.time_ids([0])[0].tolist()
        assert (height, width, top, target_height, target_width) == (16, 48, 0, 16, 16)
        lefts.add(left)
    assert min(lefts) <= 2
    assert max(lefts) >= 30
    still = data(folder=tmp_path)
    shown(still, [0])
    assert still.time_ids([0])[0, 3] == 16


def test_colours_shift_for_a_third_of_the_pictures_and_by_little() -> None:
    picture, rng = Image.new("RGB", (2, 2), (200, 60, 90)), random.Random(0)
    found = [shifted_colours(picture, rng).getpixel((0, 0)) for _ in range(600)]
    changed = [np.array(pixel) - (200, 60, 90) for pixel in found if pixel != (200, 60, 90)]
    assert 120 < len(changed) < 240
    assert max(abs(c).max() for c in changed) < 80


def test_datasets_have_batches_of_their_own_and_subsets_rules_of_their_own(data: Data, dataset: Path) -> None:
    found = data(
        subset(dataset, train_batch_size=3, num_repeats=2), subset(dataset, dataset=1, resolution=8, keep_tokens=3)
    )
    batches = found.batches(random.Random(0))
    assert found.batches_per_epoch == len(batches) == 4 + 5
    assert all(len({found.subset(i) for i in batch}) == 1 for batch in batches)
    assert sorted(i for batch in batches for i in batch) == sorted([*range(5), *range(5), *range(5, 10)])
    assert shown(found, [0]).shape[-1] == 8
    assert shown(found, [5]).shape[-1] == 4
    assert found.subset_configs[found.subset(7)].integer("keep_tokens") == 3


def test_regularisation_pictures_are_as_many_as_the_others(data: Data, dataset: Path, tmp_path: Path) -> None:
    for i in range(2):
        Image.new("RGB", (16, 16)).save(tmp_path / f"{i}.png")
    found = data(subset(dataset, num_repeats=3), subset(tmp_path, is_reg=True, class_tokens="girl"))
    order = [i for batch in found.batches(random.Random(0)) for i in batch]
    assert len(order) == 30
    assert sorted(i for i in order if i >= 5) == [5] * 8 + [6] * 7
    assert found.caption(5) == "girl"
    weights = found.weights([0, 5])
    assert weights is not None
    assert weights.tolist() == [1.0, 1.0]


def test_class_tokens_stand_in_where_a_folder_has_no_captions_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "3_pixel girl"
    folder.mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(folder / f"{name}.png")
    assert [(s.caption, s.repeats) for s in find_samples(tmp_path, ".txt", 2)] == [("pixel girl", 6)] * 2
    assert [s.caption for s in folder_samples(folder, ".txt", 1, "king")] == ["king"] * 2
    with pytest.raises(BadDataError, match="is missing"):
        folder_samples(folder, ".txt", 1, None)
    (folder / "a.txt").write_text("x")
    with pytest.raises(BadDataError, match=r"b\.txt is missing"):  # a caption forgotten
        find_samples(tmp_path, ".txt", 1)
    with pytest.raises(BadDataError, match="no pictures"):
        folder_samples(tmp_path, ".txt", 1, None)
    with pytest.raises(BadDataError, match="is no folder"):
        folder_samples(tmp_path / "none", ".txt", 1, None)


def test_without_a_word_pictures_shrink_by_area_and_grow_by_lanczos(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 16, 3), np.uint8)).save(tmp_path / "a.png")

    def loaded(size: int, method: str | None) -> np.ndarray[Any, Any]:
        return load_picture(tmp_path / "a.png", Placement.of((16, 16), (size, size)), method)

    assert np.array_equal(loaded(8, None), loaded(8, "area"))
    assert np.array_equal(loaded(32, None), loaded(32, "lanczos"))
    assert not np.array_equal(loaded(8, None), loaded(8, "nearest"))


def test_latents_on_disk_are_found_again_and_never_stale(model: BaseModel, dataset: Path, tmp_path: Path) -> None:
    class Counted(LatentCache):
        encoded = 0

        def encode_pictures(self, pictures: torch.Tensor) -> torch.Tensor:
            Counted.encoded += len(pictures)
            return super().encode_pictures(pictures)

    def encode(vae: Any = model.vae, **changes: Any) -> torch.Tensor:
        settings = {"path": path, "placement": Placement.of((16, 16), (16, 16)), **changes}
        return Counted(vae, tmp_path / "cache", torch.device("cpu")).encode([View(**settings)])

    path = tmp_path / "a.png"
    path.write_bytes((dataset / "0.png").read_bytes())
    first = encode()
    assert torch.equal(encode(), first)
    assert Counted.encoded == 1
    for changes in (
        {"mirrored": True},
        {"placement": Placement.of((16, 16), (8, 8))},
        {"resize_interpolation": "area"},
    ):
        encode(**changes)
    assert Counted.encoded == 4
    path.write_bytes((dataset / "1.png").read_bytes())
    assert not torch.equal(encode(), first)
    other = copy.deepcopy(model.vae)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    encode(other)
    assert Counted.encoded == 6


def test_a_cache_without_a_folder_keeps_nothing() -> None:
    cache = TensorCache(None)
    cache.write("key", torch.zeros(1))
    assert cache.read("key") is None
