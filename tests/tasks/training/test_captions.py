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
