from __future__ import annotations

import uuid
from datetime import timedelta

from optimizer.search.gate_report import ledger
from schema.findings import Decision, GateVerdict, RefusedProposal
from schema.runs import RunHistory, refusal_uid
from tests.optimizer.worlds import START, a_run, space_of

SPACE = space_of()
HOME = uuid.UUID(int=1)


def ended(number: int, quality: float | None, minutes: float, rule: str = "accepted") -> RunHistory:
    run = a_run(number, SPACE.complete({}), quality)
    begun = run.run.started_at
    verdict = GateVerdict(decision=Decision.RUN, reason="of a test", rule=rule)
    return run.model_copy(
        update={"run": run.run.changed(verdict=verdict, finished_at=begun + timedelta(minutes=minutes))}
    )


def refused(number: int, rule: str) -> RefusedProposal:
    return RefusedProposal(
        uid=refusal_uid(HOME, "night", number), campaign="night", number=number, parameters={}, created_at=START,
        verdict=GateVerdict(decision=Decision.SKIP, reason="of a test", rule=rule),
    )  # fmt: skip


def test_audited_runs_that_did_well_are_wrong_vetoes() -> None:
    runs = [ended(0, 70.0, 60), ended(1, None, 6, "audit"), ended(2, 70.0, 60, "audit"), ended(3, 5.0, 60, "least_bad")]
    found = ledger(runs, [refused(5, "known_failure"), refused(4, "known_failure")], 20.0)
    assert found.audited == ("night-001", "night-002")
    assert found.wrong == ("night-002",)
    assert [refusal.number for refusal in found.refusals] == [4, 5]
    assert found.by_rule == {"known_failure": 2}


def test_hours_saved_are_those_that_such_runs_took() -> None:
    runs = [ended(0, 70.0, 60), ended(1, None, 6)]
    refusals = [refused(2, "predicted_failure"), refused(3, "known_result"), refused(4, "hard_rule")]
    assert ledger(runs, refusals, 20.0).hours_saved == 1.1
    assert ledger(runs[:1], refusals, 20.0).hours_saved == 2.0
    assert ledger([], refusals, 20.0).hours_saved is None
    assert ledger(runs, [], 20.0).hours_saved == 0.0
