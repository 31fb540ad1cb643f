"""What the gate refuses on measured runs: failures, and good settings that it should have spared."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.campaigns import measured_runs, surrogate_for
from benchmarks.replay import Replay
from optimizer.search.gate import Gate
from optimizer.search.study import CampaignStudy
from schema.campaign import GateSettings
from schema.findings import Decision
from schema.runs import RunHistory

_JUDGED = 150
_TOP = 0.05
RULE = 2e-3
"""The one-line rule: refuse learning rates above this."""


@dataclass(frozen=True)
class Refusals:
    """Shares that were refused: of the settings that fail, of the best 5 % and of all that do not fail."""

    failures: float
    top: float
    fine: float


def refusals(replay: Replay, n: int, seed: int) -> Refusals:
    """Let the gate see n random runs of a table, then judge others of its runs; audits are left out."""
    table = replay.table
    order = np.random.default_rng([seed, n]).permutation(len(table.settings))
    history = measured_runs(replay, [int(i) for i in order[:n]])
    failing = [int(i) for i in order[n:] if table.failed[i]][:_JUDGED]
    fine = [int(i) for i in order[n:] if not table.failed[i]]
    losses = table.losses
    best = sorted(fine, key=lambda i: float(losses[i]))[: max(round(_TOP * len(fine)), 1)]
    chosen = failing + best[:_JUDGED] + fine[:_JUDGED]
    refused = dict(zip(chosen, _judged(replay, history, history, chosen), strict=True))
    shares = [float(np.mean([refused[i] for i in rows])) for rows in (failing, best[:_JUDGED], fine[:_JUDGED])]
    return Refusals(*shares)


def _judged(
    replay: Replay, history: Sequence[RunHistory], related: Sequence[RunHistory], rows: Sequence[int]
) -> list[bool]:
    surrogate = surrogate_for(replay, history)
    gate = Gate(GateSettings(audit_share=0.0), replay.space, 0)
    settings = [replay.table.settings[i] for i in rows]
    verdicts = [gate.judge(s, surrogate.predict(s), related, i, 0) for i, s in enumerate(settings)]
    return [verdict.decision is Decision.SKIP for verdict in verdicts]


@dataclass(frozen=True)
class SweepRule:
    """How a rule did on one sweep: cells that fail, how many of them it refused, and the same of the fine ones."""

    failing: int
    caught: int
    fine: int
    wronged: int

    @staticmethod
    def total(parts: Sequence[SweepRule]) -> dict[str, float]:
        """Over all sweeps; balanced accuracy is the mean of the shares judged right."""
        failing, caught, fine, wronged = (
            sum(getattr(p, name) for p in parts) for name in ("failing", "caught", "fine", "wronged")
        )
        right = 0.5 * (caught / max(failing, 1) + 1 - wronged / max(fine, 1))
        return {
            "failures_refused": round(caught / max(failing, 1), 3),
            "fine_refused": round(wronged / max(fine, 1), 3),
            "balanced_accuracy": round(right, 3),
        }


def _count(failed: Sequence[bool], refused: Sequence[bool]) -> SweepRule:
    caught = sum(f and r for f, r in zip(failed, refused, strict=True))
    wronged = sum(r and not f for f, r in zip(failed, refused, strict=True))
    return SweepRule(sum(failed), caught, len(failed) - sum(failed), wronged)


def _all_runs(replays: Sequence[Replay]) -> list[RunHistory]:
    return [run for r in replays for run in measured_runs(r, range(len(r.table.settings)))]


def veto_on_sweep(replay: Replay, others: Sequence[Replay]) -> SweepRule:
    """The gate on a new model, knowing the other models' sweeps only."""
    rows = range(len(replay.table.settings))
    return _count([bool(f) for f in replay.table.failed], _judged(replay, _all_runs(others), [], rows))


def best_rule(replay: Replay) -> SweepRule:
    """The one-line rule on the same cells."""
    names = [name for name in replay.space.names if name == "lr" or "learning_rate" in name]
    rates = [[s[name] for name in names] for s in replay.table.settings]
    refused = [any(isinstance(v, float) and v > RULE for v in values) for values in rates]
    return _count([bool(f) for f in replay.table.failed], refused)


def transfer_first(replay: Replay, others: Sequence[Replay]) -> float:
    """How far the first trial on a new model is from its best, as a share of the best loss; infinite if it fails."""
    study = CampaignStudy.open("transfer", "sqlite://", replay.space, "model", 0)
    first = study.ask(surrogate=surrogate_for(replay, _all_runs(others))).parameters
    study.close()
    ran = replay.run(first)
    if ran.failed:
        return math.inf
    return (replay.loss(float(ran.curve.max())) - replay.best) / abs(replay.best)
