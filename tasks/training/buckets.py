"""Sizes that pictures are trained at, as kohya's trainer chooses them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from schema.errors import ConfigError
from tasks.training.config import TrainingConfig

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class BucketRules:
    """How a picture gets its size.

    Attributes:
        resolution: size of a picture without buckets; with them its area.
        steps: sides are multiples of this.
    """

    resolution: Size
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    steps: int = 64

    @classmethod
    def of(cls, config: TrainingConfig, native_size: int, shrinks_by: int) -> BucketRules:
        """The rules of a configuration for a model.

        Raises:
            ConfigError: steps that the model's latents cannot have, or bounds that leave the resolution out.
        """
        side, steps = config.integer("resolution") or native_size, config.integer("bucket_reso_steps")
        low, high = config.integer("min_bucket_reso"), config.integer("max_bucket_reso")
        if config.flag("enable_bucket"):
            if steps % shrinks_by:
                raise ConfigError(f"bucket_reso_steps = {steps} is no multiple of {shrinks_by}, which this model needs")
            if not config.flag("bucket_no_upscale") and not low <= side <= high:
                raise ConfigError(
                    f"resolution {side} does not lie between min_bucket_reso = {low} and max_bucket_reso = {high}: "
                    "change one of them"
                )
        return cls((side, side), config.flag("enable_bucket"), config.flag("bucket_no_upscale"), low, high, steps)

    def size_of(self, picture: Size) -> Size:
        """The size that a picture is trained at."""
        if not self.enable_bucket:
            return self.resolution
        if self.bucket_no_upscale:
            return self._without_upscaling(picture)
        sizes = self.sizes()
        if picture in sizes:
            return picture
        # The plain difference of ratios, as kohya has it: of equals the first.
        return min(sizes, key=lambda size: abs(size[0] / size[1] - picture[0] / picture[1]))

    def sizes(self) -> list[Size]:
        """All buckets of the resolution's area, sorted."""
        area, steps = self.resolution[0] * self.resolution[1], self.steps
        low, high = -(-self.min_bucket_reso // steps) * steps, self.max_bucket_reso // steps * steps
        square = math.isqrt(area) // steps * steps
        found = {(square, square)}
        for width in range(low, high + 1, steps):
            height = min(high, area // width // steps * steps)
            if height >= low:
                found |= {(width, height), (height, width)}
        return sorted(found)

    def _without_upscaling(self, picture: Size) -> Size:
        width, height = picture
        area = self.resolution[0] * self.resolution[1]
        if width * height <= area:
            return max(self.steps, width // self.steps * self.steps), max(self.steps, height // self.steps * self.steps)
        ratio = width / height
        by_width = self._shrunk(math.sqrt(area * ratio), ratio)
        by_height = self._shrunk(math.sqrt(area / ratio), 1 / ratio)[::-1]
        return min(by_width, by_height, key=lambda size: abs(size[0] / size[1] - ratio))

    def _shrunk(self, side: float, ratio: float) -> Size:
        """A side floored to steps, and the other one that suits it."""
        first = max(self.steps, int(side + 0.5) // self.steps * self.steps)
        return first, max(self.steps, int(first / ratio + 0.5) // self.steps * self.steps)
