from __future__ import annotations

import json
from pathlib import Path

from schema.findings import ImpactReport, Interaction
from tasks.reports.impact import write_impact
from tasks.reports.markdown import impact_note
from tests.tasks.reports import factory

REPORT = ImpactReport(
    n_runs=8, outcomes=("quality",), tests=3,
    effects=(
        factory.effect("network_dim", 12.0, verdict="critical", p_value=0.003, spearman=-0.7, importance=0.5,
                       confounded_with=("network_alpha",)),
        factory.effect("keep_tokens", 0.4, verdict="none detected", p_value=0.9, importance=0.0, confounded_with=()),
        factory.effect("flip_aug", 0.0, verdict="never varied", p_value=None, confounded_with=()),
    ),
    interactions=(
        Interaction(parameters=("network_dim", "keep_tokens"), n=8, share=0.4, p_value=0.02, sentence="they depend"),
    ),
    importance={"network_dim": 0.9, "keep_tokens": 0.1}, importance_by="a forest",
)  # fmt: skip


def test_the_note_tells_claims_and_what_was_not_found() -> None:
    note = impact_note(REPORT, "the night")
    claims, rest = note.split("## Depends on each other")
    assert "| network_dim | quality | critical |" in claims
    assert "keep_tokens" not in claims
    assert "- network_alpha and network_dim" in rest
    assert "## No effect on quality detected\n\nkeep_tokens" in rest
    assert "## Never varied\n\nflip_aug" in rest


def test_nothing_found_is_said() -> None:
    assert "Nothing that chance would not show" in impact_note(ImpactReport(n_runs=0), "the night")


def test_files_for_people_and_programs(tmp_path: Path) -> None:
    paths = write_impact(tmp_path / "impact", "the night", REPORT, factory.night())
    assert [p.name for p in paths] == ["impact.md", "impact.json", "impact.html"]
    assert ImpactReport.model_validate(json.loads(paths[1].read_text())) == REPORT
    page = paths[2].read_text()
    assert page.count('class="chart"') == 4
    assert "Quality against network_dim" in page
