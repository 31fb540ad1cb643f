"""The rooms' parts together: ask, judge, run, tell, on a synthetic training."""

from __future__ import annotations

from pathlib import Path

import pytest

from optimizer.gate import Gate
from optimizer.history import failed
from optimizer.study import CampaignStudy
from optimizer.surrogate import Surrogate
from schema.campaign import GateSettings
from schema.findings import Decision
from schema.runs import Outcome, RunHistory
from tests.optimizer.worlds import a_run, peak, space_of


def search(
    folder: Path, runs: int, seed: int, sampler: str = "tpe", gated: bool = True
) -> tuple[list[RunHistory], int]:
    """A whole campaign; the runs and how many proposals were refused."""
    space = space_of()
    study = CampaignStudy.open("night", f"sqlite:///{folder}/{sampler}-{seed}-{gated}.db", space, sampler, seed)
    gate = Gate(GateSettings(enabled=gated), space, seed)
    history: list[RunHistory] = []
    refused = skips = 0
    while len(history) < runs:
        proposal = study.ask()
        parameters = space.complete(proposal.parameters)
        prediction = Surrogate.fit(history, space, 20.0, "base", "data").predict(parameters)
        verdict = gate.judge(parameters, prediction, history, proposal.number, skips)
        if verdict.decision is Decision.SKIP:
            study.refuse(proposal.number, verdict)
            refused, skips = refused + 1, skips + 1
            assert skips <= GateSettings().max_skips_in_a_row
            continue
        skips = 0
        quality = peak(parameters)
        study.finish(proposal.number, Outcome.DIVERGED if quality is None else Outcome.OK, quality)
        history.append(a_run(proposal.number, parameters, quality))
    study.close()
    return history, refused


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_search_with_gate_finds_the_peak(tmp_path: Path, sampler: str) -> None:
    history, _ = search(tmp_path, 20, seed=1, sampler=sampler)
    assert max(h.run.quality or 0 for h in history) > 70


def test_the_gate_saves_failures(tmp_path: Path) -> None:
    def failures(gated: bool) -> int:
        return sum(failed(h, 20.0) for seed in range(3) for h in search(tmp_path, 16, seed, "random", gated)[0])

    assert failures(gated=True) < 0.7 * failures(gated=False)
