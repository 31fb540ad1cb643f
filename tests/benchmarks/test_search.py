from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest

from benchmarks.campaigns import CampaignOnTable
from benchmarks.contest import Contest, names_of
from benchmarks.gatekeeping import refusals, transfer_first, veto_on_sweep
from benchmarks.made_up import made_up_tables
from benchmarks.prediction import predict_unseen, score
from benchmarks.replay import Replay
from benchmarks.search import Result, headline
from benchmarks.searchers import OPPONENTS, Done
from optimizer.control.stopping import Forecast
from schema.errors import ConfigError

TABLES = made_up_tables()
optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture(scope="module")
def failing() -> Replay:
    return Replay(next(t for t in TABLES if t.name == "failing-a"))


def done(quality: float | None, cost: float = 1.0) -> Done:
    return Done({}, quality, cost, quality is None)


def test_ratios_count_what_is_needed_to_be_as_good() -> None:
    ours = [done(60), done(85, 0.5), done(88)]
    gp = [done(None), done(50), done(85)]
    result = Result("t", {"ours": [ours], "gp": [gp], "tpe": [gp]})
    assert result.ratio("gp", compute=False) == [2 / 3]
    assert result.ratio("gp", compute=True) == [1.5 / 3]
    assert result.solved_after("ours") == [3.0]
    assert math.isinf(result.solved_after("gp")[0])
    found = headline([result])
    assert found["trials_to_target"] == 3.0
    assert found["worse_than_gp"] == []
    worse = Result("t", {"ours": [gp], "gp": [ours], "tpe": [gp]})
    assert worse.ratio("gp", compute=False) == [4 / 3]
    assert headline([worse])["worse_than_gp"] == ["t"]
    assert headline([])["vs_gp"] is None
    assert headline([result])["vs_smac"] is None


def test_a_campaign_on_a_table_is_the_same_again_and_beats_chance(failing: Replay) -> None:
    found = CampaignOnTable(failing, 0).run(14)
    assert found == CampaignOnTable(failing, 0).run(14)
    assert len({str(d.setting) for d in found}) == len(found)
    chance = OPPONENTS["random"](failing, 0, 14)
    assert max(d.quality or 0 for d in found) > max(d.quality or 0 for d in chance)


def test_an_opponent_is_told_a_penalty_for_failures_and_pruned_ones_cost_less(failing: Replay) -> None:
    pruned = OPPONENTS["tpe+median"](failing, 1, 20)
    assert any(d.cost < 1 and not d.failed for d in pruned)
    assert any(d.failed for d in pruned)


def test_searches_in_processes_are_the_same_and_the_opponents_are_kept(failing: Replay, tmp_path: Path) -> None:
    kept = tmp_path / f"{failing.table.name}-random-0-3.json"
    with Contest.of(1, names_of(["random"]), tmp_path) as contest:
        found = contest.runs(failing, 1, 3)
        kept.write_text("[]")
        again = contest.runs(failing, 1, 3)
    assert found["ours"] == again["ours"] == [CampaignOnTable(failing, 0).run(3)]
    assert found["random"] == [OPPONENTS["random"](failing, 0, 3)]
    assert again["random"] == [[]]
    assert {"ours", "gp", "tpe"} < set(names_of([]))
    with pytest.raises(ConfigError, match="chance"):
        names_of(["gp", "chance"])


def test_the_gate_refuses_failures_and_knows_those_of_other_models(failing: Replay) -> None:
    found = refusals(failing, 50, 0)
    assert found.failures > 0.6
    assert found.fine < 0.1
    sweeps = [Replay(t) for t in TABLES if t.name.startswith("sweep")]
    first = veto_on_sweep(sweeps[0], sweeps[1:])
    assert first.caught > 0.7 * first.failing
    assert transfer_first(sweeps[0], sweeps[1:]) < 0.02


def test_scores_of_predictions() -> None:
    told = [Forecast(q, 5.0, 9) for q in (10.0, 20.0, 30.0, 40.0, 90.0)]
    found = score(told, 30.0, [11.0, 20.0, 30.0, 60.0, 90.0])
    assert found.within_15pct == pytest.approx(0.8)
    assert found.constant_within_15pct == pytest.approx(0.2)
    assert found.coverage_90 == pytest.approx(0.8)
    assert found.spearman_top_half == pytest.approx(1.0)
    assert found.error_over_iqr == pytest.approx(0.0)


def test_a_surrogate_beats_a_constant_guess(failing: Replay) -> None:
    found = predict_unseen(failing, 50, 0)
    assert found.error_over_iqr < 0.5
    assert 0.7 < found.coverage_90 <= 1.0
    assert np.isfinite(found.spearman_top_half)
