"""Attributes of a drawn character: the same words and colours for the base model's pictures and the LoRA's."""

from __future__ import annotations

import random
from dataclasses import dataclass

BACKGROUNDS = {
    "green": "#2fa84f", "blue": "#2f6fd6", "red": "#c8323c", "yellow": "#e8c63a", "purple": "#7d3fb2",
    "teal": "#1f9e9a", "orange": "#e8842a", "pink": "#ee8fb4", "gray": "#8a8f98", "white": "#eef0f2",
    "black": "#1b1d24",
}  # fmt: skip
HAIRS = {
    "brown": "#5a3a22", "black": "#1e1a1e", "blonde": "#e3c063", "red": "#b23a1e", "white": "#e6e6ec",
    "blue": "#2c58c4", "green": "#2e8b45", "pink": "#e879b0",
}  # fmt: skip
SKINS = {"pale": "#f3d3bd", "light": "#e3b08c", "tan": "#c68a5a", "dark": "#7c4a2c"}
SHIRTS = {
    "white": "#e8e8ea", "black": "#26262c", "red": "#b8303a", "blue": "#2f55a8", "green": "#2f7d46",
    "purple": "#6a3aa0", "yellow": "#dcb432",
}  # fmt: skip
CROWNS = {"gold": "#ffd700", "silver": "#c4ccd8", "bronze": "#b8722c"}


@dataclass(frozen=True)
class Colour:
    """A colour by its everyday word and its exact hex code."""

    word: str
    code: str

    @property
    def rgb(self) -> tuple[int, int, int]:
        """Red, green, blue, 0-255."""
        return rgb(self.code)


def rgb(code: str) -> tuple[int, int, int]:
    """Red, green, blue, 0-255, of a hex code."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def distance(a: str, b: str) -> float:
    """Weighted distance of two hex codes in sRGB, 0-765: enough to keep drawn colours apart."""
    return sum(w * abs(x - y) for w, x, y in zip((0.9, 1.2, 0.9), rgb(a), rgb(b), strict=True))


@dataclass(frozen=True)
class Attributes:
    """What a character looks like; `crown` is None for most."""

    background: Colour
    hair: Colour
    skin: Colour
    shirt: Colour
    crown: Colour | None

    @classmethod
    def draw(cls, rng: random.Random, crown_share: float = 0.4) -> Attributes:
        """Random attributes whose neighbouring colours can be told apart."""
        background = _pick(BACKGROUNDS, rng)
        hair = _pick(HAIRS, rng, apart=(background,))
        skin = _pick(SKINS, rng, apart=(background, hair))
        shirt = _pick(SHIRTS, rng, apart=(background,))
        crown = _pick(CROWNS, rng, apart=(background, hair)) if rng.random() < crown_share else None
        return cls(background, hair, skin, shirt, crown)

    def tags(self, codes: bool = True) -> list[str]:
        """Caption tags, background first; with hex codes in brackets as users write them."""
        named = [
            (self.background, "background"), (self.hair, "hair"), (self.crown, "crown"),
            (self.skin, "skin"), (self.shirt, "shirt"),
        ]  # fmt: skip
        return [f"{c.word} {noun}" + (f" ({c.code})" if codes else "") for c, noun in named if c is not None]


def _pick(table: dict[str, str], rng: random.Random, apart: tuple[Colour, ...] = (), jitter: int = 9) -> Colour:
    """A colour near one of the table's, visibly apart from the given ones."""
    while True:
        word = rng.choice(list(table))
        code = "#" + "".join(f"{min(255, max(0, v + rng.randint(-jitter, jitter))):02x}" for v in rgb(table[word]))
        if all(distance(code, other.code) > 90 for other in apart):
            return Colour(word, code)
