"""What is trained on: pictures in buckets as latents on the device, and the batches of each epoch."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from schema.errors import BadDataError
from tasks.training.buckets import BucketRules, Size
from tasks.training.config import TrainingConfig
from tasks.training.dataset import Placement, Sample, find_samples, load_mask, picture_size
from tasks.training.latents import LatentCache
from tasks.training.models import BaseModel

Batch = list[int]
"""Numbers of samples that are trained in one go; all of one size."""


@dataclass(frozen=True)
class _Place:
    """Where a sample lies among the latents."""

    bucket: Size
    row: int
    placement: Placement


class TrainingData:
    """The samples of a configuration, encoded; regularisation pictures and those held back for validation too."""

    def __init__(self, config: TrainingConfig, model: BaseModel, device: torch.device) -> None:
        """Find, place and encode all pictures.

        Raises:
            ConfigError: buckets that the model cannot have.
            BadDataError: no pictures, or a picture or caption that cannot be used.
        """
        self._config, self._device, self._factor = config, device, model.shrinks_by
        self._scale = float(model.vae.config.scaling_factor)
        self.samples, self.validation = self._split(self._find())
        self.regularisation = self._regularisation()
        self._all = [*self.samples, *self.regularisation, *self.validation]
        rules = BucketRules.of(config, model.native_size, self._factor)
        self._places = self._place(rules)
        method = config.text("resize_interpolation")
        cache = LatentCache(model.vae, config.cache_dir, device, method)
        self._buckets: dict[Size, list[int]] = {}
        for number, place in enumerate(self._places):
            self._buckets.setdefault(place.bucket, []).append(number)
        flips = (False, True) if config.flag("flip_aug") else (False,)
        self._latents = {
            size: [self._encode(cache, size, members, flip) for flip in flips]
            for size, members in self._buckets.items()
        }
        self._masks = self._read_masks() if config.flag("alpha_mask") else None

    @property
    def samples_per_epoch(self) -> int:
        """Pictures seen in an epoch, repeats counted; with regularisation pictures twice as many."""
        own = sum(sample.repeats for sample in self.samples)
        return 2 * own if self.regularisation else own

    @property
    def batches_per_epoch(self) -> int:
        """Batches in an epoch; each bucket's last one may be short."""
        size, many = self._config.integer("train_batch_size"), dict.fromkeys(self._latents, 0)
        for number in self._epoch():
            many[self._places[number].bucket] += 1
        return sum(math.ceil(count / size) for count in many.values())

    @property
    def bucket_sizes(self) -> dict[Size, int]:
        """Pictures of each bucket."""
        return {size: len(members) for size, members in sorted(self._buckets.items())}

    def caption(self, number: int) -> str:
        """All lines of a sample's caption."""
        return self._all[number].caption

    def batches(self, rng: random.Random) -> list[Batch]:
        """The batches of an epoch in a new order."""
        order, size = self._epoch(), self._config.integer("train_batch_size")
        rng.shuffle(order)
        members: dict[Size, list[int]] = {}
        for number in order:
            members.setdefault(self._places[number].bucket, []).append(number)
        found = [some[i : i + size] for some in members.values() for i in range(0, len(some), size)]
        if len(members) > 1:
            rng.shuffle(found)
        return found

    def latents(self, batch: Batch, rng: random.Random, noise: torch.Generator) -> Tensor:
        """Scaled samples of the posteriors, (B, C, h, w)."""
        versions = self._latents[self._places[batch[0]].bucket]
        mean, std = versions[1] if len(versions) > 1 and rng.random() < 0.5 else versions[0]  # mirrored or not
        rows = self._rows(batch)
        drawn = torch.randn(len(batch), *mean.shape[1:], generator=noise).to(self._device)
        return (mean[rows] + std[rows] * drawn) * self._scale

    def means(self, batch: Batch) -> Tensor:
        """Scaled means of the posteriors, (B, C, h, w): without chance, for validation."""
        return self._latents[self._places[batch[0]].bucket][0][0][self._rows(batch)] * self._scale

    def weights(self, batch: Batch) -> Tensor | None:
        """(B,) prior_loss_weight for regularisation pictures and 1 for others; None where all are 1."""
        if not self.regularisation:
            return None
        prior, first = self._config.number("prior_loss_weight"), len(self.samples)
        return torch.tensor([prior if number >= first else 1.0 for number in batch], device=self._device)

    def masks(self, batch: Batch) -> Tensor | None:
        """(B, 1, h, w) opacity where alpha_mask is on."""
        if self._masks is None:
            return None
        return torch.stack([self._masks[number] for number in batch]).to(self._device)

    def time_ids(self, batch: Batch) -> Tensor:
        """(B, 6) what SDXL is told of each picture: original height and width, cut off at top and left, target."""
        rows = []
        for number in batch:
            p = self._places[number].placement
            rows.append([*p.picture[::-1], p.top, p.left, *p.target[::-1]])
        return torch.tensor(rows, device=self._device, dtype=torch.float32)

    def validation_batches(self) -> list[Batch]:
        """The samples held back, one a batch."""
        first = len(self.samples) + len(self.regularisation)
        return [[number] for number in range(first, len(self._all))]

    def _epoch(self) -> list[int]:
        """Every sample as often as an epoch sees it; as many regularisation pictures as own ones."""
        own = [number for number, sample in enumerate(self.samples) for _ in range(sample.repeats)]
        others = range(len(self.samples), len(self.samples) + len(self.regularisation))
        return own + ([others[i % len(others)] for i in range(len(own))] if others else [])

    def _rows(self, batch: Batch) -> Tensor:
        return torch.tensor([self._places[number].row for number in batch], device=self._device)

    def _find(self) -> list[Sample]:
        c = self._config
        return find_samples(c.train_data_dir, c.text("caption_extension"), c.integer("num_repeats"))

    def _regularisation(self) -> list[Sample]:
        c = self._config
        if c.reg_data_dir is None:
            return []
        return [replace(sample, repeats=1) for sample in find_samples(c.reg_data_dir, c.text("caption_extension"), 1)]

    def _split(self, samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
        """Training and validation samples; the same ones for the same seed."""
        share = self._config.number("validation_split")
        if not share:
            return samples, []
        held = round(len(samples) * share)
        if not 0 < held < len(samples):
            raise BadDataError(
                f"validation_split = {share:g} of {len(samples)} pictures leaves none to train on or to hold back"
            )
        own = self._config.parameters["validation_seed"]
        rng = random.Random(self._config.integer("seed") if own is None else int(str(own)))
        chosen = set(rng.sample(range(len(samples)), held))
        kept = [sample for i, sample in enumerate(samples) if i not in chosen]
        return kept, [replace(samples[i], repeats=1) for i in sorted(chosen)]

    def _place(self, rules: BucketRules) -> list[_Place]:
        places, many = [], dict[Size, int]()
        for sample in self._all:
            picture = picture_size(sample.path)
            size = rules.size_of(picture)
            places.append(_Place(size, many.get(size, 0), Placement.of(picture, size)))
            many[size] = many.get(size, 0) + 1
        return places

    def _encode(self, cache: LatentCache, size: Size, members: Sequence[int], flip: bool) -> tuple[Tensor, Tensor]:
        mean, std = cache.encode([self._all[number].path for number in members], size, flip)
        return mean.to(self._device), std.to(self._device)

    def _read_masks(self) -> list[Tensor]:
        pairs = zip(self._all, self._places, strict=True)
        return [torch.from_numpy(load_mask(sample.path, *place.bucket, self._factor)) for sample, place in pairs]
