"""Report the gate's work in a campaign: what it refused, the hours saved, and how often it was wrong."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from optimizer.control.budget import hours_used
from optimizer.history import failed, informative
from schema.findings import GateLedger, RefusedProposal
from schema.runs import RunHistory
from schema.states import GateRule

_DEFECTS = (GateRule.PREDICTED_FAILURE, GateRule.KNOWN_FAILURE)
_NEVER = GateRule.HARD_RULE  # a limit set by the user: without the gate, such a run would not have been made either


def ledger(history: Sequence[RunHistory], refusals: Sequence[RefusedProposal], failed_quality: float) -> GateLedger:
    """Return the gate's report for one campaign.

    Args:
        history: Runs of the campaign.
        refusals: Refused proposals of the campaign.
        failed_quality: Best quality (0-100) below which a run failed.
    """
    runs = informative(history)
    audited = [h for h in runs if h.run.verdict is not None and h.run.verdict.rule == GateRule.AUDIT]
    return GateLedger(
        refusals=tuple(sorted(refusals, key=lambda refusal: refusal.number)),
        audited=tuple(h.run.run_name for h in audited),
        wrong=tuple(h.run.run_name for h in audited if not failed(h, failed_quality)),
        hours_saved=_saved(runs, refusals, failed_quality),
    )


def _saved(runs: Sequence[RunHistory], refusals: Sequence[RefusedProposal], failed_quality: float) -> float | None:
    """Estimate the hours that the refused proposals would have taken; None if no run has ended.

    Expected failures count with the median of failed runs, which often end sooner.
    """
    fine: list[float] = []
    bad: list[float] = []
    for run in runs:
        if run.run.finished_at is not None:
            (bad if failed(run, failed_quality) else fine).append(hours_used([run]))
    if not fine and not bad:
        return None
    # If no run failed, or all did, the other kind stands in.
    usual, failing = median(fine or bad), median(bad or fine)
    rules = [refusal.verdict.rule for refusal in refusals if refusal.verdict.rule != _NEVER]
    return float(sum(failing if rule in _DEFECTS else usual for rule in rules))
