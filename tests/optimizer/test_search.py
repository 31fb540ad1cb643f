"""The rooms' parts together: ask, judge, run, tell, on a synthetic training."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.effects.effects import survey
from optimizer.search.gate import Gate
from optimizer.search.study import CampaignStudy
from optimizer.search.surrogate import Surrogate
from schema.campaign import GateSettings
from schema.findings import Decision
from schema.runs import Outcome, RunHistory
from tests.optimizer.worlds import SEARCH, a_run, peak, space_of


def search(folder: Path, runs: int, sampler: str, settings: GateSettings) -> tuple[list[RunHistory], list[int]]:
    """A whole campaign; the runs, and how many proposals were refused before each."""
    space = space_of()
    study = CampaignStudy.open("night", f"sqlite:///{folder}/optuna.db", space, sampler, seed=1)
    gate = Gate(settings, space, seed=1)
    history: list[RunHistory] = []
    skips = [0]
    while len(history) < runs:
        proposal = study.ask()
        parameters = space.complete(proposal.parameters)
        prediction = Surrogate.fit(history, space, 20.0, "base", "data").predict(parameters)
        verdict = gate.judge(parameters, prediction, history, proposal.number, skips[-1])
        if verdict.decision is Decision.SKIP:
            study.refuse(proposal.number, verdict)
            skips[-1] += 1
            continue
        skips.append(0)
        quality = peak(parameters)
        study.finish(proposal.number, Outcome.DIVERGED if quality is None else Outcome.OK, quality)
        history.append(a_run(proposal.number, parameters, quality))
    study.close()
    return history, skips


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_search_with_gate_finds_the_peak(tmp_path: Path, sampler: str) -> None:
    history, _ = search(tmp_path, 16, sampler, GateSettings())
    assert max(h.run.quality or 0 for h in history) > 70


def test_the_strictest_gate_starves_no_search(tmp_path: Path) -> None:
    history, skips = search(tmp_path, 4, "random", GateSettings(min_runs=1, max_p_fail=0.01, audit_share=0.0))
    assert len(history) == 4
    assert max(skips) == GateSettings().max_skips_in_a_row


def test_a_ratio_is_searched_and_weighed_like_a_parameter() -> None:
    ratio = "network_alpha/network_dim"
    space = space_of({**SEARCH, ratio: {"low": 0.25, "high": 1.0}})
    study = CampaignStudy.open("tied", "sqlite://", space, "model", 0)
    history: list[RunHistory] = []
    for _ in range(8):
        surrogate = Surrogate.fit(history, space, 20.0, "base", "data")
        proposal = study.ask(surrogate=surrogate)
        full = space.complete(proposal.parameters)
        history.append(a_run(proposal.number, full, peak(full)))
        study.finish(proposal.number, history[-1].run.outcome or Outcome.CRASHED, peak(full))
    study.close()
    assert len({space.key(h.run.all_parameters) for h in history}) == 8
    assert ratio in surrogate.importance()
    assert ratio in {effect.parameter for effect in survey(history, space).effects}
