from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from tasks.training.captions import CaptionRules

tags = st.lists(st.text("abcdefgh ", min_size=1, max_size=8).map(str.strip).filter(bool), min_size=1, max_size=8)


@given(tags, st.integers(0, 1000))
def test_without_rules_a_caption_stays_byte_for_byte(words: list[str], seed: int) -> None:
    text = " ,  ".join(words)
    assert CaptionRules().apply(text, random.Random(seed)) == text


@given(tags, st.integers(0, 9), st.integers(0, 1000))
def test_shuffling_keeps_the_first_tags_and_loses_none(words: list[str], keep: int, seed: int) -> None:
    rules = CaptionRules(shuffle_caption=True, keep_tokens=keep)
    found = rules.apply(",".join(words), random.Random(seed)).split(", ")
    assert found[:keep] == words[:keep]
    assert sorted(found) == sorted(words)


@given(tags, st.integers(0, 9), st.integers(0, 1000))
def test_tag_dropout_spares_the_first_tags_and_keeps_the_order(words: list[str], keep: int, seed: int) -> None:
    rules = CaptionRules(keep_tokens=keep, caption_tag_dropout_rate=0.5)
    found = [t for t in rules.apply(",".join(words), random.Random(seed)).split(", ") if t]
    assert found[:keep] == words[:keep]
    rest = iter(words)
    assert all(tag in rest for tag in found)


def test_whole_captions_are_dropped_at_the_given_rate() -> None:
    rules, rng = CaptionRules(caption_dropout_rate=0.3), random.Random(0)
    dropped = sum(rules.apply("pixel art, crown", rng) == "" for _ in range(2000))
    assert 540 < dropped < 660


def test_tags_around_the_separator_stay_and_only_those_between_are_shuffled() -> None:
    rules = CaptionRules(shuffle_caption=True, keep_tokens=5, keep_tokens_separator="|||")
    seen = {rules.apply("pixel art, girl ||| crown, cape, hat ||| red background", random.Random(i)) for i in range(40)}
    assert len(seen) == 6
    assert all(text.startswith("pixel art, girl, ") and text.endswith(", red background") for text in seen)


def test_a_secondary_separator_holds_tags_together() -> None:
    rules = CaptionRules(shuffle_caption=True, secondary_separator=";")
    seen = {rules.apply("gold crown;jewels, red hair", random.Random(i)) for i in range(20)}
    assert seen == {"gold crown,jewels, red hair", "red hair, gold crown,jewels"}


def test_wildcards_and_lines_are_drawn_and_doubled_braces_stay() -> None:
    rules = CaptionRules(enable_wildcard=True)
    seen = {rules.apply("a {red|blue} {{hat}}\nplain", random.Random(i)) for i in range(40)}
    assert seen == {"a red {hat}", "a blue {hat}", "plain"}


def test_without_wildcards_the_first_line_counts() -> None:
    assert CaptionRules().apply("first {a|b}\nsecond", random.Random(0)) == "first {a|b}"


def test_prefix_and_suffix_are_joined_by_spaces() -> None:
    rules = CaptionRules(caption_prefix="pixel art,", caption_suffix="masterpiece")
    assert rules.apply("crown,", random.Random(0)) == "pixel art, crown, masterpiece"


def test_the_warm_up_uses_more_and_more_tags() -> None:
    rules = CaptionRules(token_warmup_min=1, token_warmup_step=10, keep_tokens=1)
    texts = [rules.apply("a,b,c,d,e,f", random.Random(0), step) for step in (0, 5, 9)]
    assert texts == ["a, b", "a, b, c, d", "a, b, c, d, e"]
    assert rules.apply("a,b,c,d,e,f", random.Random(0), 10) == "a,b,c,d,e,f"


def test_every_nth_epoch_goes_without_captions() -> None:
    rules = CaptionRules(caption_dropout_every_n_epochs=2)
    assert [rules.apply("crown", random.Random(0), epoch=e) for e in (1, 2, 3, 4)] == ["crown", "", "crown", ""]
