"""Load the training data: pictures in buckets, as latents on the device, and the batches of each epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from schema.errors import BadDataError
from tasks.pictures import picture_size
from tasks.training.buckets import BucketRules, Size
from tasks.training.config import Subset, TrainingConfig
from tasks.training.dataset import (
    Placement,
    Sample,
    find_samples,
    folder_samples,
    load_mask,
    load_picture,
)
from tasks.training.latents import LatentCache, View
from tasks.training.models import BaseModel

Batch = list[int]
"""Numbers of the samples of one optimizer batch, all of one dataset and size."""

Bucket: TypeAlias = tuple[int, Size]
"""Number of a dataset, and a size in pixels."""


@dataclass(frozen=True)
class _Place:
    """Locate a sample and its mirror image among the latents of its bucket; None if it is encoded at each step."""

    bucket: Bucket
    placement: Placement
    row: int | None
    mirrored: int | None


@dataclass(frozen=True)
class _Shown:
    """Describe how a sample was cropped and mirrored when it was last drawn."""

    placement: Placement
    mirrored: bool


class TrainingData:
    """Hold the encoded samples of a configuration, including regularisation and validation pictures.

    Samples are numbered: training first, then regularisation, then validation.
    """

    def __init__(self, config: TrainingConfig, model: BaseModel, device: torch.device) -> None:
        """Find all pictures, assign them to buckets and encode them.

        Raises:
            ConfigError: the bucket settings do not suit the model.
            BadDataError: there are no pictures, or a picture or caption cannot be used.
        """
        self._device, self._factor = device, model.shrinks_by
        self._scale = float(model.vae.config.scaling_factor)
        self._subsets = _subsets_of(config)
        self.subset_configs = [config.changed(parameters=subset.parameters) for subset in self._subsets]
        found = [_found(subset, number) for number, subset in enumerate(self._subsets)]
        own = [samples for samples, subset in zip(found, self._subsets, strict=True) if not subset.is_reg]
        self.samples, self.validation = self._split([sample for samples in own for sample in samples])
        self.regularisation = [
            sample for samples, subset in zip(found, self._subsets, strict=True) if subset.is_reg for sample in samples
        ]
        self._all = [*self.samples, *self.regularisation, *self.validation]
        self._cache = LatentCache(model.vae, config.cache_dir, device)
        self._places, views = self._place(model.native_size)
        self._latents = {bucket: self._cache.encode(some).to(device) for bucket, some in views.items() if some}
        self._masks = self._read_masks()
        self._shown: list[_Shown] = []

    @property
    def batches_per_epoch(self) -> int:
        """Return the number of batches in an epoch; the last batch of each bucket may be short."""
        many: dict[Bucket, int] = {}
        for number in self._epoch():
            bucket = self._places[number].bucket
            many[bucket] = many.get(bucket, 0) + 1
        return sum(math.ceil(count / self._batch_size(bucket)) for bucket, count in many.items())

    @property
    def bucket_sizes(self) -> dict[Size, int]:
        """Return the number of pictures of each size, validation and regularisation included."""
        return dict(sorted(self.buckets_of(range(len(self._all))).items()))

    def buckets_of(self, numbers: Sequence[int]) -> dict[Size, int]:
        """Count samples by size."""
        many: dict[Size, int] = {}
        for number in numbers:
            size = self._places[number].bucket[1]
            many[size] = many.get(size, 0) + 1
        return many

    def caption(self, number: int) -> str:
        """Return all lines of a sample's caption."""
        return self._all[number].caption

    def subset(self, number: int) -> int:
        """Return the number of the subset that a sample belongs to."""
        return self._all[number].subset

    def batches(self, rng: random.Random) -> list[Batch]:
        """Return the batches of an epoch in random order."""
        order = self._epoch()
        rng.shuffle(order)
        members: dict[Bucket, list[int]] = {}
        for number in order:
            members.setdefault(self._places[number].bucket, []).append(number)
        found = []
        for bucket, some in members.items():
            size = self._batch_size(bucket)
            found += [some[i : i + size] for i in range(0, len(some), size)]
        if len(members) > 1:
            rng.shuffle(found)
        return found

    def latents(self, batch: Batch, rng: random.Random, noise: torch.Generator) -> Tensor:
        """Draw scaled latents (B, C, h, w) from the posteriors; pictures are mirrored and cropped as configured.

        `noise` is a generator on the CPU, so that every device trains on the same latents.
        """
        self._shown = [self._show(number, rng) for number in batch]
        moments = self._moments(batch, rng)
        mean, std = moments[:, 0], moments[:, 1]
        drawn = torch.randn(mean.shape, generator=noise).to(self._device)
        return (mean + std * drawn) * self._scale

    def means(self, batch: Batch) -> Tensor:
        """Return the scaled means (B, C, h, w) of the posteriors: deterministic, for validation."""
        self._shown = [_Shown(self._places[number].placement, False) for number in batch]
        return self._moments(batch, None)[:, 0] * self._scale

    def weights(self, batch: Batch) -> Tensor | None:
        """Return loss weights (B,): prior_loss_weight for regularisation pictures, else 1; None if all are 1."""
        if not self.regularisation:
            return None
        first = len(self.samples)
        prior = self.subset_configs[0].number("prior_loss_weight")
        return torch.tensor([prior if number >= first else 1.0 for number in batch], device=self._device)

    def masks(self, batch: Batch) -> Tensor | None:
        """Return the opacity (B, 1, h, w) of the pictures as last drawn by `latents`; None without alpha_mask."""
        if self._masks is None:
            return None
        pairs = zip(batch, self._shown, strict=True)
        return torch.stack([self._mask(number, shown) for number, shown in pairs]).to(self._device)

    def time_ids(self, batch: Batch) -> Tensor:
        """Return SDXL's size conditioning (B, 6) of the pictures as last drawn by `latents` or `means`.

        Each row is original height and width, top and left of the crop, target height and width.
        """
        placements = [shown.placement for _, shown in zip(batch, self._shown, strict=True)]
        rows = [[*p.picture[::-1], p.top, p.left, *p.target[::-1]] for p in placements]
        return torch.tensor(rows, device=self._device, dtype=torch.float32)

    def validation_batches(self) -> list[Batch]:
        """Return the validation samples, one a batch."""
        first = len(self.samples) + len(self.regularisation)
        return [[number] for number in range(first, len(self._all))]

    def _batch_size(self, bucket: Bucket) -> int:
        of_dataset = (n for n, subset in enumerate(self._subsets) if subset.dataset == bucket[0])
        return self.subset_configs[next(of_dataset)].integer("train_batch_size")

    def _dataset(self, sample: Sample) -> int:
        return self._subsets[sample.subset].dataset

    def _epoch(self) -> list[int]:
        """Return the sample numbers of an epoch, with as many regularisation as training pictures in each dataset."""
        first, order = len(self.samples), list[int]()
        for dataset in sorted({subset.dataset for subset in self._subsets}):
            own = [n for n, s in enumerate(self.samples) if self._dataset(s) == dataset for _ in range(s.repeats)]
            others = [n for n, s in enumerate(self.regularisation, first) if self._dataset(s) == dataset]
            # Kohya's rule: each by its repeats, then all of them once more, until there are enough.
            repeated = [n for n in others for _ in range(self._all[n].repeats)] if others else []
            while others and len(repeated) < len(own):
                repeated += others
            order += own + repeated[: len(own)]
        return order

    def _split(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Return training and validation samples, split within each dataset; the seed determines the split."""
        kept, held = list[Sample](), list[Sample]()
        for dataset in sorted({self._dataset(sample) for sample in samples}):
            of_dataset = [sample for sample in samples if self._dataset(sample) == dataset]
            chosen = self._held_back(of_dataset)
            kept += [sample for i, sample in enumerate(of_dataset) if i not in chosen]
            held += [replace(of_dataset[i], repeats=1) for i in sorted(chosen)]
        return kept, held

    def _held_back(self, samples: list[Sample]) -> set[int]:
        config = self.subset_configs[samples[0].subset]
        share = config.number("validation_split")
        if not share:
            return set()
        held = round(len(samples) * share)
        if not 0 < held < len(samples):
            raise BadDataError(
                f"validation_split = {share:g} of {len(samples)} pictures leaves none to train on or to hold back"
            )
        own = config.parameters["validation_seed"]
        rng = random.Random(config.integer("seed") if own is None else int(str(own)))
        return set(rng.sample(range(len(samples)), held))

    def _place(self, native_size: int) -> tuple[list[_Place], dict[Bucket, list[View]]]:
        """Return each sample's bucket and rows, and the views that each bucket's rows hold."""
        rules = [BucketRules.of(config, native_size, self._factor) for config in self.subset_configs]
        places, views = list[_Place](), dict[Bucket, list[View]]()
        for number, sample in enumerate(self._all):
            config = self.subset_configs[sample.subset]
            picture = picture_size(sample.path)
            bucket = self._dataset(sample), rules[sample.subset].size_of(picture)
            placement, row, mirrored = Placement.of(picture, bucket[1]), None, None
            rows = views.setdefault(bucket, [])
            if not self._is_live(number):
                view = View(sample.path, placement, _method(config))
                row = len(rows)
                rows.append(view)
                if config.flag("flip_aug"):
                    mirrored = len(rows)
                    rows.append(replace(view, mirrored=True))
            places.append(_Place(bucket, placement, row, mirrored))
        return places, views

    def _is_live(self, number: int) -> bool:
        """Return whether a sample changes at each step, so that it cannot be cached; validation samples never do."""
        config = self.subset_configs[self._all[number].subset]
        held_back = number >= len(self.samples) + len(self.regularisation)
        return (config.flag("color_aug") or config.flag("random_crop")) and not held_back

    def _show(self, number: int, rng: random.Random) -> _Shown:
        place, config = self._places[number], self.subset_configs[self._all[number].subset]
        mirrored = config.flag("flip_aug") and rng.random() < 0.5
        cut = place.placement.elsewhere(rng) if config.flag("random_crop") else place.placement
        return _Shown(cut, mirrored)

    def _moments(self, batch: Batch, rng: random.Random | None) -> Tensor:
        """Return means and standard deviations (B, 2, C, h, w) of the pictures as described in `_shown`."""
        places = [self._places[number] for number in batch]
        rows = [p.mirrored if s.mirrored else p.row for p, s in zip(places, self._shown, strict=True)]
        known = [row for row in rows if row is not None]
        if len(known) == len(batch):
            return self._latents[places[0].bucket][torch.tensor(known, device=self._device)]
        pictures = [self._picture(number, shown, rng) for number, shown in zip(batch, self._shown, strict=True)]
        return self._cache.encode_pictures(torch.stack(pictures))

    def _picture(self, number: int, shown: _Shown, rng: random.Random | None) -> Tensor:
        sample = self._all[number]
        config = self.subset_configs[sample.subset]
        colour = rng if config.flag("color_aug") else None
        picture = torch.from_numpy(load_picture(sample.path, shown.placement, _method(config), colour))
        return picture.flip(-1) if shown.mirrored else picture

    def _read_masks(self) -> list[Tensor | None] | None:
        """Load the masks of pictures with alpha_mask; None without any."""
        wanted = [self.subset_configs[sample.subset].flag("alpha_mask") for sample in self._all]
        if not any(wanted):
            return None
        return [
            torch.from_numpy(load_mask(sample.path, place.placement, self._factor)) if asked else None
            for sample, place, asked in zip(self._all, self._places, wanted, strict=True)
        ]

    def _mask(self, number: int, shown: _Shown) -> Tensor:
        assert self._masks is not None
        mask, place = self._masks[number], self._places[number]
        if mask is None:
            width, height = place.bucket[1]
            return torch.ones(1, height // self._factor, width // self._factor)
        if shown.placement != place.placement:  # random_crop: the cached mask is of the middle
            mask = torch.from_numpy(load_mask(self._all[number].path, shown.placement, self._factor))
        return mask.flip(-1) if shown.mirrored else mask


def _subsets_of(config: TrainingConfig) -> list[Subset]:
    """Return the configured subsets, or one for each of train_data_dir and reg_data_dir."""
    if config.subsets:
        return list(config.subsets)
    folders = [Subset(image_dir=config.train_data_dir, parameters=config.parameters)]
    if config.reg_data_dir is not None:
        parameters = {**config.parameters, "num_repeats": 1}
        folders.append(Subset(image_dir=config.reg_data_dir, is_reg=True, parameters=parameters))
    return folders


def _found(subset: Subset, number: int) -> list[Sample]:
    extension, times = str(subset.parameters["caption_extension"]), int(str(subset.parameters["num_repeats"]))
    if subset.nested:
        samples = find_samples(subset.image_dir, extension, times)
    else:
        samples = folder_samples(subset.image_dir, extension, times, subset.class_tokens)
    return [replace(sample, subset=number) for sample in samples]


def _method(config: TrainingConfig) -> str | None:
    method = config.parameters["resize_interpolation"]
    return None if method is None else str(method)
