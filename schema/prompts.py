"""Define the prompt suite, and read from a prompt which colours a picture must have."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from schema.base import Frozen, load_toml
from schema.errors import shorten, shown

COLOUR_WORDS: dict[str, str] = {
    "black": "#1b1d24", "white": "#eef0f2", "gray": "#8a8f98", "grey": "#8a8f98", "silver": "#c0c0c0",
    "red": "#c8323c", "green": "#2fa84f", "blue": "#2f6fd6", "yellow": "#e8c63a", "orange": "#e8842a",
    "purple": "#7d3fb2", "pink": "#ee8fb4", "teal": "#1f9e9a", "cyan": "#2fc4d6", "brown": "#6b4423",
    "blonde": "#e3c063", "blond": "#e3c063", "gold": "#ffd700", "golden": "#ffd700", "bronze": "#b8722c",
    "auburn": "#7b3320", "ginger": "#c4622d", "beige": "#d9c7a0", "cream": "#f3e9cf", "tan": "#c9a06c",
    "navy": "#1f2a5a", "turquoise": "#30c9b0", "violet": "#7d3fb2", "lavender": "#b79ee0", "magenta": "#d02fb0",
    "crimson": "#a81c32", "maroon": "#6a1f2b", "lime": "#8ede2f", "olive": "#7a7a2e",
}  # fmt: skip
"""Colour of a word where the prompt gives no hex code."""

_SHADES = {"dark": (0.0, 0.4), "light": (1.0, 0.45), "pale": (1.0, 0.45)}
"""Words before a colour, as (target, amount): mix it with black (0) or white (1) by that amount (0-1)."""

_NONE = {"no", "without"}

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "background": ("background", "backdrop"),
    "hair": ("hair",),
    "crown": ("crown", "tiara"),
    "hat": ("hat", "cap", "helmet"),
    "sunglasses": ("sunglasses", "shades"),
    "earrings": ("earrings", "earring"),
    "necklace": ("necklace",),
    "skin": ("skin",),
    "shirt": ("shirt", "top", "clothes", "clothing"),
}
"""Attributes to tell apart in a prompt, and the nouns that name them. Not all of them are measured."""

COLOUR_OF_KIND = {"crown": "#ffd700", "sunglasses": "#1b1d24"}
"""Colour of a thing that a prompt names without a colour."""

SamplerName = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
    "dpm++_2m", "dpm++_2m_karras", "dpm++_2m_sde", "unipc",
]  # fmt: skip
"""Kohya's names, and four names that other programs use."""

_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")
_LONGEST_NAME = 200
"""Bytes of a name. File systems allow 255, which leaves room for the seed and the file extension."""
_LARGEST_SEED = 2**63 - 1
"""Largest seed that torch's generator accepts on every device."""
_MOST_PROMPTS, _MOST_SEEDS = 1000, 1000
"""Far more than can be drawn after each epoch, so a larger count is a mistake in the file."""
_LARGEST_SIDE = 4096
"""Pixels. SDXL draws 1024; a VAE needs tens of GiB at 4096."""
_MOST_CLIP_SKIP = 24
"""SDXL's second text encoder has 32 layers and kohya's limit is lower. Beyond 24, nothing of the prompt is left."""


class Expectation(Frozen):
    """Hold the colours that a prompt promises: hex codes for each attribute, none where it promises nothing."""

    background: tuple[str, ...] = ()
    hair: tuple[str, ...] = ()
    crown: tuple[str, ...] = ()
    hat: tuple[str, ...] = ()
    sunglasses: tuple[str, ...] = ()
    earrings: tuple[str, ...] = ()
    necklace: tuple[str, ...] = ()
    skin: tuple[str, ...] = ()
    shirt: tuple[str, ...] = ()

    @field_validator("*")
    @classmethod
    def _hex_codes(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for code in value:
            if not re.fullmatch(_HEX, code):
                raise ValueError(f"{shown(code)} is no hex code like #22aa44")
        return tuple(code.lower() for code in value)


def expectation_of(text: str) -> Expectation:
    """Return the colours that a prompt or caption promises.

    A tag is the text between two commas. A tag that names an attribute promises the hex codes anywhere
    in the tag or, without any, the colour words before the noun: ``green background (#22aa44)`` and
    ``green background`` both promise a green background. If a tag names several attributes, each gets the text
    before it and the bracket after it: ``brown hair and gold crown on a teal background``.
    Commas may separate hex codes in brackets. ``no crown`` promises nothing.
    """
    found: dict[str, tuple[str, ...]] = {}
    for attribute, before, behind in (part for tag in _tags(text) for part in _named(tag)):
        # The first mention counts. "no" negates within two words, so that "no gold crown" is covered.
        if attribute in found or _NONE & set(_words(before)[-2:]):
            continue
        codes = tuple(_HEX.findall(before + behind)) or _in_words(_words(before)) or _in_words(_words(behind))[:1]
        if not codes and attribute in COLOUR_OF_KIND:
            codes = (COLOUR_OF_KIND[attribute],)
        if codes:
            found[attribute] = codes
    return Expectation(**found)


def _named(tag: str) -> list[tuple[str, str, str]]:
    """Return the attributes that a tag names, each with the text before and after its noun."""
    nouns = {noun: attribute for attribute, names in ATTRIBUTES.items() for noun in names}
    # Blank out hex codes, since their letters could read as nouns. Equal length keeps the positions valid.
    hits = [m for m in re.finditer(r"[a-z]+", _HEX.sub(lambda code: " " * len(code[0]), tag.lower())) if m[0] in nouns]
    parts, start = [], 0
    for number, hit in enumerate(hits):
        last = number == len(hits) - 1
        bracket = re.match(r"\s*\([^)]*\)", tag[hit.end() :])
        end = len(tag) if last else hit.end() + (bracket.end() if bracket else 0)
        parts.append((nouns[hit[0]], tag[start : hit.start()], tag[hit.end() : end]))
        start = end
    return parts


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", _HEX.sub(" ", text).lower())


def _in_words(words: list[str]) -> tuple[str, ...]:
    """Return the last colour in a list of words, and the colours joined to it by "and" or directly before it."""
    codes: list[str] = []
    for place in range(len(words) - 1, -1, -1):
        word, shade = words[place], _SHADES.get(words[place - 1]) if place else None
        if word in COLOUR_WORDS:
            codes.append(_mixed(COLOUR_WORDS[word], *shade) if shade else COLOUR_WORDS[word])
        elif codes and word != "and" and word not in _SHADES:
            break
    return tuple(codes[::-1])


def _mixed(code: str, towards: float, amount: float) -> str:
    values = (int(code[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(v + amount * (255 * towards - v)):02x}" for v in values)


def _tags(text: str) -> list[str]:
    """Split a prompt at commas outside of brackets."""
    return re.split(r",(?![^(]*\))", text)


class Prompt(Frozen):
    """Describe one prompt of the suite."""

    name: str = Field(min_length=1)
    text: str = Field(min_length=1)
    expect: Expectation | None = Field(None, description="overrides what the text promises")

    @property
    def expectation(self) -> Expectation:
        """Return the colours to measure a picture against: `expect` if given, else what the text promises."""
        return self.expect if self.expect is not None else expectation_of(self.text)


Seed = Annotated[int, Field(ge=0, le=_LARGEST_SEED)]


class PromptSuite(Frozen):
    """List the prompts to draw after each epoch, and the sampling settings."""

    prompts: tuple[Prompt, ...] = Field(min_length=1, max_length=_MOST_PROMPTS)
    negative_prompt: str = ""
    sampler: SamplerName = Field("ddim", description="method that turns noise into pictures, by kohya's name")
    steps: int = Field(20, ge=1, le=200, description="sampling steps")
    guidance_scale: float = Field(7.0, ge=0, le=30)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    seeds: tuple[Seed, ...] = Field(
        (1,), min_length=1, max_length=_MOST_SEEDS, description="each prompt is drawn once for each seed"
    )
    width: int | None = Field(
        None, ge=8, le=_LARGEST_SIDE, multiple_of=8, description="pixels; the model's own size if left out"
    )
    height: int | None = Field(None, ge=8, le=_LARGEST_SIDE, multiple_of=8)
    clip_skip: int | None = Field(None, ge=1, le=_MOST_CLIP_SKIP)

    @field_validator("prompts")
    @classmethod
    def _unique(cls, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        names = [p.name for p in prompts]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"prompt names must differ, but {shorten(', '.join(twice))} appears twice")
        # Different names can become the same file name, and one picture would overwrite the other.
        by_file: dict[str, str] = {}
        for name in names:
            other = by_file.setdefault(file_name(name), name)
            if other != name:
                same = f"{shorten(other)} and {shorten(name)} have the same file name"
                raise ValueError(f"{same}, {shorten(file_name(name))}: rename one")
        return prompts

    @field_validator("seeds")
    @classmethod
    def _once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            raise ValueError(f"seed {twice[0]} stands twice: the same pictures would be drawn again")
        return seeds

    def part(self, places: Sequence[int]) -> PromptSuite:
        """Return a suite of the prompts at these indices (from 0), with the first seed only."""
        return self.changed(prompts=tuple(self.prompts[i] for i in places), seeds=self.seeds[:1])


def load_prompts(path: Path) -> PromptSuite:
    """Read the prompt suite from prompts.toml.

    Raises:
        ConfigError: The file is missing or not valid TOML, or one of its keys or values is wrong.
    """
    return load_toml(path, PromptSuite)


def file_name(text: str) -> str:
    """Return text that is safe in a file name: no separators, no leading dot, at most 200 bytes."""
    # File systems limit bytes, not characters. `errors="ignore"` drops a character that the cut splits.
    plain = re.sub(r"[^\w.-]+", "_", text).encode()[:_LONGEST_NAME].decode(errors="ignore")
    return plain.strip("._") or "prompt"
