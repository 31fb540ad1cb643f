from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schema.errors import ConfigError
from schema.prompts import COLOUR_WORDS, Expectation, expectation_of, load_prompts


def test_hex_codes_in_brackets_are_promised() -> None:
    found = expectation_of("pixel art, green background (#22AA44, #114422), brown hair (#5a3a22)")
    assert found.background == ("#22aa44", "#114422")
    assert found.hair == ("#5a3a22",)


def test_hex_codes_without_brackets_are_promised() -> None:
    assert expectation_of("portrait, gold crown #ffd700").crown == ("#ffd700",)


def test_a_colour_word_counts_where_no_code_is_given() -> None:
    assert expectation_of("a knight, teal background").background == (COLOUR_WORDS["teal"],)


def test_each_of_several_in_one_tag_has_its_own_colours() -> None:
    found = expectation_of("woman with long brown hair (#603a14, #83623b) and golden crown on a teal background")
    assert found.hair == ("#603a14", "#83623b")
    assert found.crown == (COLOUR_WORDS["golden"],)
    assert found.background == (COLOUR_WORDS["teal"],)


def test_two_colours_and_shades_are_read_and_what_is_denied_is_not() -> None:
    assert expectation_of("pink and blue hair").hair == (COLOUR_WORDS["pink"], COLOUR_WORDS["blue"])
    assert expectation_of("dark green background").background == ("#1c652f",)
    assert expectation_of("short hair, no crown") == Expectation()


def test_what_is_not_named_is_not_promised() -> None:
    assert expectation_of("pixel art, portrait of a knight, sword") == Expectation()


def test_hairband_is_no_hair() -> None:
    assert expectation_of("red hairband").hair == ()


@given(st.text(max_size=200))
def test_any_text_can_be_read(text: str) -> None:
    expectation_of(text)


@given(st.from_regex(r"#[0-9a-f]{6}", fullmatch=True), st.sampled_from(["background", "hair", "crown"]))
def test_a_code_lands_at_its_attribute(code: str, attribute: str) -> None:
    assert getattr(expectation_of(f"pixel art, some {attribute} ({code})"), attribute) == (code,)


def test_expectations_in_the_file_override_the_text(tmp_path: Path) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text('[[prompts]]\nname = "a"\ntext = "red hair"\n[prompts.expect]\nhair = ["#00FF00"]\n')
    assert load_prompts(path).prompts[0].expectation.hair == ("#00ff00",)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("steps = 20", "prompts is missing"),
        ('[[prompts]]\nname = "a"\ntext = "x"\n[[prompts]]\nname = "a"\ntext = "y"', "a appears twice"),
        ('[[prompts]]\nname = "a"\ntext = "x"\n[prompts.expect]\nhair = ["green"]', "no hex code"),
        ('step = 20\n[[prompts]]\nname = "a"\ntext = "x"', "did you mean steps"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "prompts.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=sentence):
        load_prompts(path)


@pytest.mark.parametrize(
    ("names", "seeds", "told"),
    [
        (("green knight", "green/knight"), "[1]", "green knight and green/knight"),
        (("髪" * 80, "髪" * 90), "[1]", "have the same file name"),
        (("king", "queen"), "[1, 2, 1]", "seed 1 stands twice"),
    ],
)
def test_two_pictures_never_share_a_file(tmp_path: Path, names: tuple[str, str], seeds: str, told: str) -> None:
    file = tmp_path / "prompts.toml"
    file.write_text(f"seeds = {seeds}\n" + "".join(f'[[prompts]]\nname = "{n}"\ntext = "a king"\n' for n in names))
    with pytest.raises(ConfigError, match=told):
        load_prompts(file)
