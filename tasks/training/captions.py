"""Captions as kohya's tools prepare them, anew at every step.

Order of the steps (sd-scripts 0.10): dropout of the whole caption; then, only if shuffling or tag dropout is
on, the caption is split at commas, the first keep_tokens tags stay in place, the rest is shuffled and
then thinned out, and all is joined by ", ". Otherwise the text stays as it is, byte for byte.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from tasks.training.config import TrainingConfig


@dataclass(frozen=True)
class CaptionRules:
    """How a caption is changed at each step."""

    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout_rate: float = 0.0
    caption_tag_dropout_rate: float = 0.0

    @classmethod
    def of(cls, config: TrainingConfig) -> CaptionRules:
        """The rules of a configuration."""
        return cls(
            config.flag("shuffle_caption"),
            config.integer("keep_tokens"),
            config.number("caption_dropout_rate"),
            config.number("caption_tag_dropout_rate"),
        )

    @property
    def fixed(self) -> bool:
        """True where a caption is the same at every step."""
        return not (self.shuffle_caption or self.caption_dropout_rate or self.caption_tag_dropout_rate)

    def apply(self, caption: str, rng: random.Random) -> str:
        """The caption for one step."""
        if self.caption_dropout_rate and rng.random() < self.caption_dropout_rate:
            return ""
        if not (self.shuffle_caption or self.caption_tag_dropout_rate):
            return caption
        tags = [tag.strip() for tag in caption.strip().split(",")]
        kept, rest = tags[: self.keep_tokens], tags[self.keep_tokens :]
        if self.shuffle_caption:
            rng.shuffle(rest)
        if self.caption_tag_dropout_rate:
            rest = [tag for tag in rest if rng.random() >= self.caption_tag_dropout_rate]
        return ", ".join(kept + rest)
