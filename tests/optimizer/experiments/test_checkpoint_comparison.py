from __future__ import annotations

import math
import uuid
from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, wilcoxon

from optimizer.experiments.checkpoint_comparison import VoteCount, compare_measures, count_votes, votes_between
from schema.runs import PictureVote, run_uid, vote_uid
from tests.optimizer.worlds import START, picture

A, B = (run_uid(uuid.UUID(int=1), "night", n) for n in (0, 1))


def votes(first: int, second: int, ties: int = 0) -> VoteCount:
    choices = ["first"] * first + ["second"] * second + ["tie"] * ties
    return count_votes(
        [
            PictureVote.model_validate({
                "uid": vote_uid(A, 1, B, 1, str(i)), "run_uid": A, "epoch_number": 1, "other_run_uid": B,
                "other_epoch_number": 1, "picture": str(i), "choice": choice, "created_at": START,
            })
            for i, choice in enumerate(choices)
        ]
    )  # fmt: skip


def test_a_checkpoint_that_is_better_on_most_pictures_is_named() -> None:
    found = compare_measures([picture(50.0)] * 8, [picture(50.0 + d) for d in (4, 5, 6, 7, 3, 5, 9, -1)])[0]
    assert (found.measure, found.n, found.wins, found.losses) == ("overall", 8, 7, 1)
    assert found.better == "second"
    assert 0 < found.low < found.effect < found.high
    swapped = compare_measures([picture(50.0 + d) for d in (4, 5, 6, 7, 3, 5, 9, -1)], [picture(50.0)] * 8)[0]
    assert (swapped.better, swapped.effect, swapped.low) == ("first", -found.effect, -found.high)


def test_equal_checkpoints_and_few_pictures_decide_nothing() -> None:
    same = compare_measures([picture(50.0)] * 8, [picture(50.0)] * 8)[0]
    assert (same.better, same.p_value, same.effect) == (None, 1.0, 0.0)
    few = compare_measures([picture(50.0)] * 4, [picture(90.0)] * 4)[0]
    assert few.better is None
    assert math.isinf(few.low)


def test_a_measure_that_was_not_promised_drops_out() -> None:
    first = [picture(50.0, crown_accuracy=None), picture(50.0, crown_accuracy=10.0)]
    second = [picture(50.0, crown_accuracy=90.0), picture(50.0, crown_accuracy=30.0)]
    (crown,) = [m for m in compare_measures(first, second) if m.measure == "crown_accuracy"]
    assert (crown.n, crown.effect) == (1, 20.0)


@given(st.lists(st.integers(-400, 400).filter(bool), min_size=1, max_size=14, unique_by=abs))
def test_the_test_is_scipys_where_no_two_are_equal(tenths: list[int]) -> None:
    differences = [t / 10 for t in tenths]
    found = compare_measures([picture(45.0)] * len(tenths), [picture(45.0 + d) for d in differences])[0]
    assert found.p_value == pytest.approx(wilcoxon(differences, method="exact").pvalue)


def test_without_a_difference_a_better_one_is_hardly_ever_named() -> None:
    rng = np.random.default_rng(0)
    named = [
        compare_measures([picture(50.0)] * 12, [picture(50.0 + d) for d in rng.normal(0, 5, 12)])[0].better
        for _ in range(300)
    ]
    assert np.mean([n is not None for n in named]) <= 0.08


def test_votes_are_a_binomial() -> None:
    clear = votes(2, 14, ties=3)
    assert (clear.better, clear.ties, clear.share) == ("second", 3, 14 / 16)
    exact = binomtest(14, 16)
    assert clear.p_value == pytest.approx(exact.pvalue)
    interval = exact.proportion_ci(0.95)
    assert (clear.low, clear.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert votes(14, 2).better == "first"
    assert votes(5, 7).better is None
    nothing = votes(0, 0, ties=4)
    assert nothing.better is None
    assert math.isnan(nothing.share)
    assert (nothing.low, nothing.high) == (0.0, 1.0)


def test_the_newest_vote_on_a_picture_counts_whichever_side_was_named_first() -> None:
    def vote(one: uuid.UUID, other: uuid.UUID, choice: str, hours: int, epoch: int = 1) -> PictureVote:
        return PictureVote.model_validate({
            "uid": vote_uid(one, 1, other, epoch, "green"), "run_uid": one, "epoch_number": 1, "other_run_uid": other,
            "other_epoch_number": epoch, "picture": "green", "choice": choice,
            "created_at": START + timedelta(hours=hours),
        })  # fmt: skip

    cast = [vote(A, B, "first", 1), vote(B, A, "first", 2), vote(A, B, "tie", 3, epoch=2)]
    assert [v.choice for v in votes_between(cast, (A, 1), (B, 1))] == ["second"]
    assert [v.choice for v in votes_between(cast[:1], (B, 1), (A, 1))] == ["second"]
