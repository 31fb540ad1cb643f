"""The prompt suite, and the colours a prompt promises."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from schema.base import Frozen, load_toml

COLOUR_WORDS: dict[str, str] = {
    "black": "#1b1d24", "white": "#eef0f2", "gray": "#8a8f98", "grey": "#8a8f98", "silver": "#c0c0c0",
    "red": "#c8323c", "green": "#2fa84f", "blue": "#2f6fd6", "yellow": "#e8c63a", "orange": "#e8842a",
    "purple": "#7d3fb2", "pink": "#ee8fb4", "teal": "#1f9e9a", "cyan": "#2fc4d6", "brown": "#6b4423",
    "blonde": "#e3c063", "blond": "#e3c063", "gold": "#ffd700", "golden": "#ffd700", "bronze": "#b8722c",
}  # fmt: skip
"""Colour meant by a word when the prompt gives no hex code."""

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
"""Attributes that are measured or kept apart, and the nouns that name them in a prompt."""

COLOUR_OF_KIND = {"crown": "#ffd700", "sunglasses": "#1b1d24"}
"""Colour meant where a prompt names a thing without one."""

SamplerName = Literal[
    "ddim", "pndm", "lms", "euler", "euler_a", "heun", "dpm_2", "dpm_2_a", "dpmsolver", "dpmsolver++", "dpmsingle",
    "k_lms", "k_euler", "k_euler_a", "k_dpm_2", "k_dpm_2_a",
    "dpm++_2m", "dpm++_2m_karras", "dpm++_2m_sde", "unipc",
]  # fmt: skip
"""Kohya's names, and four that others use."""

_HEX = re.compile(r"#[0-9a-fA-F]{6}\b")


class Expectation(Frozen):
    """Colours a prompt promises: a set of hex codes each, empty where nothing is promised."""

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
                raise ValueError(f"{code!r} is no hex code like #22aa44")
        return tuple(code.lower() for code in value)


def expectation_of(text: str) -> Expectation:
    """Read the promised colours out of a prompt or caption.

    A tag (text between commas) that names an attribute promises its hex codes, wherever in the
    tag they stand, or else the colour word before the noun: ``green background (#22aa44)`` and
    ``green background`` both promise a green background. Hex codes in brackets may be parted
    by commas.
    """
    found: dict[str, tuple[str, ...]] = {}
    for tag in _tags(text):
        words = re.findall(r"[a-z]+", _HEX.sub(" ", tag).lower())
        attribute = next((a for a, nouns in ATTRIBUTES.items() if any(noun in words for noun in nouns)), None)
        if attribute is None or attribute in found:
            continue
        codes = tuple(_HEX.findall(tag)) or tuple(COLOUR_WORDS[w] for w in words if w in COLOUR_WORDS)[:1]
        if not codes and attribute in COLOUR_OF_KIND:
            codes = (COLOUR_OF_KIND[attribute],)
        if codes:
            found[attribute] = codes
    return Expectation(**found)


def _tags(text: str) -> list[str]:
    """Split on commas that are not inside brackets."""
    return re.split(r",(?![^(]*\))", text)


class Prompt(Frozen):
    """One prompt of the suite."""

    name: str = Field(min_length=1)
    text: str = Field(min_length=1)
    expect: Expectation | None = Field(None, description="overrides what the text promises")

    @property
    def expectation(self) -> Expectation:
        """What the picture is measured against."""
        return self.expect if self.expect is not None else expectation_of(self.text)


class PromptSuite(Frozen):
    """Every prompt that is drawn at each epoch, and how."""

    prompts: tuple[Prompt, ...] = Field(min_length=1)
    negative_prompt: str = ""
    sampler: SamplerName = Field("ddim", description="method that turns noise into pictures, by kohya's name")
    steps: int = Field(20, ge=1, le=200, description="sampling steps")
    guidance_scale: float = Field(7.0, ge=0, le=30)
    guidance_rescale: float = Field(0.0, ge=0, le=1)
    seeds: tuple[int, ...] = Field((1,), min_length=1, description="each prompt is drawn once for each seed")
    width: int | None = Field(None, ge=8, multiple_of=8, description="pixels; the model's own size if left out")
    height: int | None = Field(None, ge=8, multiple_of=8)
    clip_skip: int | None = Field(None, ge=1)

    @field_validator("prompts")
    @classmethod
    def _unique(cls, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
        names = [p.name for p in prompts]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"prompt names must differ, but {', '.join(twice)} stands twice")
        return prompts


def load_prompts(path: Path) -> PromptSuite:
    """Read prompts.toml.

    Raises:
        ConfigError: the file is missing, no TOML, or has a wrong key or value.
    """
    return load_toml(path, PromptSuite)
