"""Choose the size each picture is trained at, as kohya's trainer does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from schema.errors import ConfigError
from tasks.training.config import TrainingConfig

Size = tuple[int, int]
"""Width and height in pixels."""


@dataclass(frozen=True)
class BucketRules:
    """Hold the rules for the size of a picture.

    Attributes:
        resolution: the size itself without buckets; with buckets, the size whose area they share.
        enable_bucket: choose the bucket with the picture's aspect ratio.
        bucket_no_upscale: never enlarge a picture; buckets then follow from the pictures.
        min_bucket_reso, max_bucket_reso: bounds of both sides, in pixels.
        steps: both sides are multiples of this, in pixels.
    """

    resolution: Size
    enable_bucket: bool = False
    bucket_no_upscale: bool = False
    min_bucket_reso: int = 256
    max_bucket_reso: int = 1024
    steps: int = 64

    @classmethod
    def of(cls, config: TrainingConfig, native_size: int, shrinks_by: int) -> BucketRules:
        """Read the rules from a configuration.

        Args:
            config: the configuration.
            native_size: the side used if no resolution is set.
            shrinks_by: pixels per latent, which bucket_reso_steps must be a multiple of.

        Raises:
            ConfigError: bucket_reso_steps does not suit the model, or the bounds exclude the resolution.
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
        """Return the size that a picture is trained at."""
        if not self.enable_bucket:
            return self.resolution
        if self.bucket_no_upscale:
            return self._without_upscaling(picture)
        sizes = self.sizes()
        if picture in sizes:
            return picture
        # Kohya compares plain differences of ratios; the first of equals wins.
        return min(sizes, key=lambda size: abs(size[0] / size[1] - picture[0] / picture[1]))

    def sizes(self) -> list[Size]:
        """Return all buckets with about the resolution's area, sorted."""
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
        """Round a side down to a multiple of steps, and return it with the other side for the ratio."""
        first = max(self.steps, int(side + 0.5) // self.steps * self.steps)
        return first, max(self.steps, int(first / ratio + 0.5) // self.steps * self.steps)
