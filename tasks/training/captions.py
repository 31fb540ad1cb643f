"""Vary captions at every step as kohya's trainer does.

The order is that of sd-scripts 0.10. First the whole caption may be dropped. Then one of several lines is chosen,
prefix and suffix are added, and one alternative of each {a|b}. Only if shuffling, warm-up or tag dropout is on, the
caption is split into tags: the tags that are not fixed are cut by the warm-up, shuffled and dropped, and all are
joined by ", ". Otherwise the text stays as it is, byte for byte.
"""

from __future__ import annotations

import math
import random
import re
from dataclasses import dataclass, fields, replace

from tasks.training.config import TrainingConfig

_WILDCARD = re.compile(r"\{([^{}]+)\}")
# {{ and }} stand for literal braces: control characters hide them while wildcards are replaced.
_BRACES = (("{{", "\x00"), ("}}", "\x01"))


@dataclass(frozen=True)
class CaptionRules:
    """Hold kohya's caption parameters under their names."""

    shuffle_caption: bool = False
    keep_tokens: int = 0
    caption_dropout_rate: float = 0.0
    caption_tag_dropout_rate: float = 0.0
    caption_dropout_every_n_epochs: int = 0
    caption_separator: str = ","
    keep_tokens_separator: str | None = None
    secondary_separator: str | None = None
    enable_wildcard: bool = False
    caption_prefix: str | None = None
    caption_suffix: str | None = None
    token_warmup_min: int = 1
    token_warmup_step: float = 0.0

    @classmethod
    def of(cls, config: TrainingConfig, total_steps: int) -> CaptionRules:
        """Read the rules from a configuration; a token_warmup_step below 1 is a share of all steps."""
        values = {field.name: config.parameters[field.name] for field in fields(cls)}
        warmup = config.number("token_warmup_step")
        values["token_warmup_step"] = math.floor(warmup * total_steps) if warmup < 1 else warmup
        return cls(**values)  # type: ignore[arg-type]

    @property
    def few(self) -> bool:
        """Return whether a caption has one form only, apart from being dropped, so that its encoding can be cached."""
        return not (
            self.shuffle_caption or self.caption_tag_dropout_rate or self.enable_wildcard or self.token_warmup_step
        )

    def apply(self, caption: str, rng: random.Random, step: int = 0, epoch: int = 1) -> str:
        """Return the caption for one step.

        Args:
            caption: all lines of the caption file.
            rng: source of all random choices.
            step: optimizer steps done.
            epoch: the running epoch, counted from 1.
        """
        every = self.caption_dropout_every_n_epochs
        dropped = self.caption_dropout_rate and rng.random() < self.caption_dropout_rate
        # Kohya drops all captions in every n-th epoch.
        if dropped or (every and epoch % every == 0):
            return ""
        line = self._line(caption, rng)
        if self.shuffle_caption or self.caption_tag_dropout_rate or step < self.token_warmup_step:
            line = self._retagged(line, rng, step)
        return line.replace(self.secondary_separator, self.caption_separator) if self.secondary_separator else line

    def plain(self, caption: str) -> str:
        """Return the first line with prefix and suffix, without any random change."""
        return replace(self, enable_wildcard=False)._line(caption, random.Random(0))

    def _line(self, caption: str, rng: random.Random) -> str:
        """Return one line with prefix and suffix, its wildcards resolved."""
        lines = caption.splitlines() or [""]
        line = rng.choice(lines) if self.enable_wildcard else lines[0]
        line = " ".join(part for part in (self.caption_prefix, line, self.caption_suffix) if part)
        if not self.enable_wildcard:
            return line
        for brace, stand_in in _BRACES:
            line = line.replace(brace, stand_in)
        line = _WILDCARD.sub(lambda match: rng.choice(match.group(1).split("|")), line)
        for brace, stand_in in _BRACES:
            line = line.replace(stand_in, brace[0])
        return line

    def _retagged(self, line: str, rng: random.Random, step: int) -> str:
        kept, tags, ending = self._parts(line)
        if step < self.token_warmup_step:
            tags = tags[: self._warm(len(tags), step)]
        if self.shuffle_caption:
            rng.shuffle(tags)
        if self.caption_tag_dropout_rate:
            tags = [tag for tag in tags if rng.random() >= self.caption_tag_dropout_rate]
        return ", ".join(kept + tags + ending)

    def _parts(self, line: str) -> tuple[list[str], list[str], list[str]]:
        """Return the fixed tags at the front, the tags that may change, and the fixed tags at the end."""
        # One separator: fixed front, rest. Two: fixed front, rest, fixed end.
        if self.keep_tokens_separator and self.keep_tokens_separator in line:
            parts = [self._tags(part) for part in line.split(self.keep_tokens_separator, 2)]
            found = [[tag for tag in part if tag] for part in parts]
            return found[0], found[1], found[2] if len(found) > 2 else []
        tags = self._tags(line)
        return tags[: self.keep_tokens], tags[self.keep_tokens :], []

    def _tags(self, text: str) -> list[str]:
        return [tag.strip() for tag in text.strip().split(self.caption_separator)]

    def _warm(self, many: int, step: int) -> int:
        """Return how many tags are used at a step of the warm-up, rising linearly."""
        return math.floor(step * ((many - self.token_warmup_min) / self.token_warmup_step)) + self.token_warmup_min
