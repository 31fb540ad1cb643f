from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from optimizer.experiments.paired import MOST_PAIRS, Change, Verdict, missing, pairs_needed, pairs_of, verdict, worth_of
from schema.errors import ConfigError
from schema.runs import Outcome
from tests.optimizer.worlds import a_run, space_of

SPACE = space_of()


def run_until_decided(effect: float, noise: float, seed: int, worth: float = 1.0) -> Verdict:
    rng = np.random.default_rng(seed)
    found: list[float] = []
    told = verdict(found)
    while told.state == "running":
        found.append(effect + float(rng.normal(0, noise * math.sqrt(2))))
        told = verdict(found, worth)
    return told


def test_a_change_is_read_and_makes_pairs() -> None:
    change = Change.parse("keep_tokens 1 -> 3")
    one, two = change.pair({"network_dim": 16, "seed": 7})
    assert one == {"network_dim": 16, "keep_tokens": 1, "seed": 7}
    assert two == {"network_dim": 16, "keep_tokens": 3, "seed": 7}
    assert Change.parse("shuffle_caption false -> true").after is True


@given(st.floats(0, 10), st.floats(0, 10))
def test_a_change_reads_back_from_its_text(before: float, after: float) -> None:
    if before != after:
        change = Change("learning_rate", before, after)
        assert Change.parse(str(change)) == change
    assert str(Change("shuffle_caption", False, True)) == "shuffle_caption false -> true"


@pytest.mark.parametrize("text", ["keep_tokens 3", "keep_tokns 1 -> 3", "keep_tokens 1 -> many", "keep_tokens 1 -> 1"])
def test_a_mistake_is_a_sentence(text: str) -> None:
    with pytest.raises(ConfigError):
        Change.parse(text)


def test_a_true_change_is_confirmed_in_few_pairs() -> None:
    told = [run_until_decided(6.0, 1.0, seed) for seed in range(100)]
    assert np.mean([v.state == "confirmed" for v in told]) >= 0.9
    assert np.median([v.pairs for v in told]) <= 5
    assert all(v.low <= v.effect <= v.high for v in told)


def test_a_change_that_does_harm_is_refuted() -> None:
    told = [run_until_decided(-6.0, 1.0, seed) for seed in range(100)]
    assert np.mean([v.state == "refuted" for v in told]) >= 0.9
    assert not any(v.state == "confirmed" for v in told)


def test_without_an_effect_a_gain_is_hardly_ever_claimed() -> None:
    told = [run_until_decided(0.0, 1.0, seed) for seed in range(400)]
    assert np.mean([v.state == "confirmed" for v in told]) <= 0.05
    assert max(v.pairs for v in told) <= MOST_PAIRS


def test_pairs_are_planned() -> None:
    assert pairs_needed(10.0, 1.0) == 3
    few, many = pairs_needed(4.0, 1.0), pairs_needed(2.2, 1.0)
    assert few is not None
    assert many is not None
    assert few < many
    assert pairs_needed(0.5, 1.0) is None


def test_pairs_are_found_among_past_runs_and_the_missing_halves_named() -> None:
    change = Change.parse("network_dim 8 -> 32")
    rates = (1e-4, 1e-3, 3e-3)
    runs = [
        a_run(i, SPACE.complete({"learning_rate": rate, "network_dim": dim}), 50.0 + i)
        for i, (rate, dim) in enumerate([(rates[0], 8), (rates[0], 32), (rates[1], 8), (rates[2], 16)])
    ]
    (pair,) = pairs_of(change, runs, SPACE)
    assert (pair.before, pair.after, pair.difference) == ("night-000", "night-001", 1.0)
    wanted = missing(change, runs, SPACE, 2)
    assert [(s["learning_rate"], s["network_dim"]) for s in wanted] == [(3e-3, 8), (3e-3, 32), (1e-3, 32)]
    further = missing(change, runs, SPACE, 4)[3:]  # the best setting with seeds that it has not had
    assert [(s["learning_rate"], s["network_dim"], s["seed"]) for s in further] == [
        (3e-3, dim, seed) for seed in (1, 2) for dim in (8, 32)
    ]


def test_a_parameter_that_is_fixed_is_changed_for_the_runs_alone() -> None:
    space = space_of(fixed={"shuffle_caption": True, "keep_tokens": 1})
    run = a_run(0, space.complete({"network_dim": 16}), 60.0)
    wanted = missing(Change.parse("keep_tokens 1 -> 3"), [run], space, 2)
    assert [(s["keep_tokens"], s["seed"]) for s in wanted] == [(3, 0), (1, 1), (3, 1)]
    assert all(s["network_dim"] == 16 and s["shuffle_caption"] is True for s in wanted)


def test_what_cannot_be_tested_is_a_sentence() -> None:
    runs = [a_run(0, SPACE.complete({"network_dim": 16}), 60.0)]
    with pytest.raises(ConfigError, match="widen it in the campaign"):
        missing(Change.parse("network_dim 8 -> 512"), runs, SPACE, 1)
    with pytest.raises(ConfigError, match="no effect beside the other parameters"):
        missing(Change.parse("keep_tokens 1 -> 3"), runs, SPACE, 1)
    bound = space_of(rules=["network_dim <= 32"])
    with pytest.raises(ConfigError, match="the rule 'network_dim <= 32' does not hold"):
        missing(Change.parse("network_dim 8 -> 64"), runs, bound, 1)


def test_runs_that_failed_were_stopped_or_had_other_fixed_parameters_are_no_halves() -> None:
    change = Change.parse("network_dim 8 -> 32")
    runs = [
        a_run(0, SPACE.complete({"network_dim": 8}), 50.0),
        a_run(1, SPACE.complete({"network_dim": 32}), 30.0, outcome=Outcome.STOPPED_EARLY),
        a_run(2, SPACE.complete({"network_dim": 8, "learning_rate": 5e-2})),
        a_run(3, SPACE.complete({"network_dim": 8}) | {"num_repeats": 9}, 70.0),
    ]
    assert pairs_of(change, runs, SPACE) == []
    wanted = missing(change, runs, SPACE, 2)
    assert [(s["network_dim"], s["seed"], s["num_repeats"]) for s in wanted] == [(32, 0, 1), (8, 1, 1), (32, 1, 1)]


def test_a_change_without_effect_is_refuted_where_a_real_gain_is_asked_for() -> None:
    told = [run_until_decided(0.0, 1.0, seed, worth=worth_of(1.0)) for seed in range(100)]
    assert np.mean([v.state == "refuted" for v in told]) >= 0.9
    assert np.median([v.pairs for v in told]) <= 7
