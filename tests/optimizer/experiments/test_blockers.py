from __future__ import annotations

import pytest

from optimizer.experiments.blockers import blockers
from schema.findings import AuditFinding, DataAudit, Level
from schema.parameters import Parameters

BEFORE: Parameters = {"network_dim": 16, "keep_tokens": 1, "flip_aug": False}


def audit(check: str, level: Level = Level.WARNING) -> DataAudit:
    finding = AuditFinding(check=check, level=level, sentence="what is wrong", count=3, share=0.1)
    return DataAudit(dataset="data", pictures=12, findings=(finding,))


@pytest.mark.parametrize(
    ("check", "change", "told"),
    [
        ("few_pictures", {"network_dim": 32}, ("needs more pictures: what is wrong",)),
        ("few_pictures", {"network_dim": 8}, ()),
        ("few_pictures", {"learning_rate": 1e-3}, ()),
        ("caption_mismatch", {"keep_tokens": 0}, ("needs true captions: what is wrong",)),
        ("sided_tags", {"flip_aug": True}, ("needs captions without left and right: what is wrong",)),
        ("near_twins", {"network_dim": 32}, ()),
    ],
)
def test_a_finding_stands_against_the_changes_that_it_spoils(
    check: str, change: Parameters, told: tuple[str, ...]
) -> None:
    assert blockers(change, BEFORE, audit(check)) == told


def test_notes_and_no_audit_stand_against_nothing() -> None:
    assert blockers({"network_dim": 32}, BEFORE, audit("few_pictures", Level.NOTE)) == ()
    assert blockers({"network_dim": 32}, BEFORE, None) == ()
    assert blockers({"flip_aug": True}, BEFORE, audit("sided_tags", Level.NOTE)) != ()
