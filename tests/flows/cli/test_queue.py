"""The queue while a campaign is at work, and questions about a run, in a real home."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows.runtime import wiring
from optimizer.experiments import queue as lifecycle
from optimizer.experiments.queue import by_hand
from schema.errors import NotFoundError
from schema.findings import Hypothesis
from schema.runs import Outcome
from tests.flows.cli.test_principles import ask, home  # noqa: F401  # a fixture
from tests.tasks.store.store_contract import make_epoch


def test_what_a_campaign_writes_meanwhile_is_not_undone_by_the_queue(
    home: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask(home, "queue", "add", "network_dim=16")

    def by_hand_meanwhile(*known: Any) -> Hypothesis:
        store = wiring.open_home(str(home)).store
        store.save_hypotheses([one.changed(state="running") for one in store.hypotheses("demo")])
        return by_hand(*known)

    monkeypatch.setattr(lifecycle, "by_hand", by_hand_meanwhile)
    ask(home, "queue", "add", "network_dim=8")
    waiting = json.loads(ask(home, "queue", "list", "--json"))
    assert [one["change"] for one in waiting] == [{"network_dim": 8}]


def test_an_issue_that_a_run_does_not_have_is_a_sentence(home: Path) -> None:  # noqa: F811
    with pytest.raises(NotFoundError, match="earlier-011 has no issue wrong_hiar: there is "):
        ask(home, "diagnose", "earlier-011", "--issue", "wrong hiar")


def test_a_report_is_written_without_the_files_that_another_home_has(home: Path) -> None:  # noqa: F811
    with wiring.session():
        context = wiring.open_campaign(str(home / "campaign.toml"), str(home))
        run = context.new_run(0, context.space.complete({}))
        lost = "runs/demo/000/checkpoints/demo-000.safetensors"
        context.store.save_run(run.changed(outcome=Outcome.OK, quality=90.0, best_epoch=1, best_checkpoint=lost))
        context.store.save_epoch(make_epoch(run, 1).changed(checkpoint=lost))
    assert "report" in ask(home, "report")
    assert "demo-000" in (home / "report-demo.html").read_text()
