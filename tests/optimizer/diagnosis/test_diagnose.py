from __future__ import annotations

from typing import Any

import pytest

from optimizer.diagnosis.diagnose import blamed, diagnose_epoch, diagnose_run
from schema.findings import AuditFinding, DataAudit, Level
from schema.runs import EpochMetrics, Outcome, RunHistory
from tests.optimizer.worlds import a_run, metrics, random_runs, space_of

SPACE = space_of()


def epoch_issues(found: EpochMetrics) -> set[str]:
    run = a_run(0, SPACE.complete({}), 50.0).run
    return {d.issue for d in diagnose_epoch(found, 3, 5, run, [])}


@pytest.mark.parametrize(
    ("found", "issue"),
    [
        (metrics(photorealism=80.0), "photorealistic"),
        (metrics(shares={"photorealistic_share": 0.5}), "photorealistic"),
        (metrics(background_accuracy=20.0), "wrong_background"),
        (metrics(hair_accuracy=20.0), "wrong_hair"),
        (metrics(shares={"two_tone_share": 0.6}), "two_toned_hair"),
        (metrics(shares={"crown_share": 0.1}), "missing_crown"),
        (metrics(palette_score=10.0, palette_size=400), "noisy_palette"),
        (metrics(edge_sharpness=10.0), "blurred"),
        (metrics(colour=0.0, photorealism=90.0, edge_sharpness=10.0, background_accuracy=0.0), "collapsed"),
    ],
)
def test_each_issue_is_found_alone(found: EpochMetrics, issue: str) -> None:
    assert epoch_issues(found) == {issue}


def test_clean_or_unmeasured_pictures_have_no_issues() -> None:
    assert epoch_issues(metrics(80.0)) == set()
    assert epoch_issues(EpochMetrics()) == set()
    assert epoch_issues(metrics(background_accuracy=None, hair_accuracy=None)) == set()


def ranked(dims: list[int]) -> list[RunHistory]:
    """Runs that are photorealistic from rank 64 on, and nothing else."""
    return [
        a_run(i, SPACE.complete({"network_dim": d}), epochs=[metrics(60.0, photorealism=80.0 if d >= 64 else 5.0)])
        for i, d in enumerate(dims)
    ]


def test_the_cause_is_learnt_from_runs_with_and_without_the_issue() -> None:
    history = ranked([8, 16, 24, 32, 64, 96, 128, 12, 80])
    (found,) = diagnose_run(history[6], history, SPACE)
    assert found.issue == "photorealistic"
    assert found.cause.startswith("network_dim >= 64: 4 of 4 such runs show it, but 0 of the 5 others")
    assert "network_dim = " in found.recommendation
    assert found.confidence > 0.6
    assert "night-004" in found.evidence


def test_without_history_general_experience_is_named_as_such() -> None:
    (found,) = diagnose_run(ranked([128])[0], [], SPACE)
    assert "general experience" in found.cause
    assert "network_dim = 128" in found.cause
    assert found.confidence < 0.5


COLLAPSED = metrics(colour=0.0, photorealism=90.0, edge_sharpness=10.0, background_accuracy=0.0)


def test_without_history_a_destroyed_model_is_laid_at_the_learning_rate_and_not_at_captions() -> None:
    setting = SPACE.complete({"learning_rate": 0.05, "shuffle_caption": True, "keep_tokens": 0})
    found = diagnose_run(a_run(0, setting, epochs=[COLLAPSED]), [], SPACE)
    assert blamed(found)[0].factor == "learning_rate"
    assert "learning_rate = 0.05" in found[0].cause
    assert "general experience" in found[0].cause


def test_a_high_learning_rate_is_not_blamed_for_what_it_does_not_do() -> None:
    setting = SPACE.complete({"learning_rate": 0.0055})
    (found,) = diagnose_run(a_run(0, setting, epochs=[metrics(shares={"two_tone_share": 0.6})]), [], SPACE)
    assert found.issue == "two_toned_hair"
    assert all(cause.factor != "learning_rate" for cause in found.causes)


def test_a_rate_of_one_is_what_optimizers_that_find_their_own_are_given() -> None:
    setting = SPACE.complete({"optimizer_type": "Prodigy", "learning_rate": 1.0})
    (found,) = diagnose_run(a_run(0, setting, outcome=Outcome.DIVERGED), [], SPACE)
    assert "learning_rate = 1" not in found.cause
    assert all(cause.factor != "learning_rate" for cause in found.causes)
    assert diagnose_run(a_run(0, setting, 70.0), [], SPACE) == ()


def test_runs_on_other_data_are_no_evidence() -> None:
    history = ranked([8, 16, 24, 32, 64, 96, 128, 12, 80])
    foreign = [RunHistory(run=h.run.changed(dataset="other"), epochs=h.epochs) for h in history[:6]]
    (found,) = diagnose_run(history[6], foreign, SPACE)
    assert "general experience" in found.cause


def test_parameters_that_changed_together_are_never_blamed_singly() -> None:
    history = [
        a_run(i, SPACE.complete({"network_dim": d, "caption_dropout_rate": d / 1000}), None if d >= 64 else 60.0)
        for i, d in enumerate([8, 16, 24, 32, 64, 96, 128, 12, 80])
    ]
    (found,) = diagnose_run(history[6], history, SPACE)
    assert "network_dim" in found.cause
    assert "caption_dropout_rate" in found.cause
    assert "changed together" in found.cause


def test_healthy_runs_that_make_no_use_of_a_parameter_are_not_said_to_have_a_value_of_it() -> None:
    unused = [{"shuffle_caption": False, "keep_tokens": 0}] * 2
    used = [{"shuffle_caption": True, "keep_tokens": n} for n in (1, 2)]
    healthy = [a_run(i, SPACE.complete(p), 80.0) for i, p in enumerate((*unused, *used))]
    ill = a_run(9, SPACE.complete({"shuffle_caption": True, "keep_tokens": 0}), 20.0)
    (found,) = diagnose_run(ill, healthy, SPACE)
    sentences = [cause.sentence for cause in found.causes if cause.factor == "keep_tokens"]
    assert sentences == ["keep_tokens = 0 where the 2 healthy runs that use it have 1 to 2"]


def test_an_issue_that_others_outgrew_is_normal_for_the_epoch() -> None:
    early, late = metrics(30.0, background_accuracy=20.0), metrics(70.0)
    history = [a_run(i, SPACE.complete({"network_dim": 8 + i}), epochs=[early, early, late, late]) for i in range(4)]
    run = a_run(9, SPACE.complete({}), 50.0).run
    (at_two,) = diagnose_epoch(early, 2, 4, run, history)
    assert at_two.normal_for_epoch
    assert any("4 of 4" in e for e in at_two.evidence)
    (at_four,) = diagnose_epoch(early, 4, 4, run, history)
    assert not at_four.normal_for_epoch
    assert diagnose_epoch(early, 0, 4, run, history) == ()


@pytest.mark.parametrize(
    ("made", "issue"),
    [
        ({"outcome": Outcome.DIVERGED}, "diverged"),
        ({"outcome": Outcome.OUT_OF_MEMORY}, "oom"),
        ({"outcome": Outcome.BAD_DATA}, "bad_data"),
        ({"outcome": Outcome.CRASHED, "failure": "the disk is full"}, "crashed"),
        ({"quality": 4.0}, "low_quality"),
        ({"curve": [30, 60, 70, 50, 40]}, "overtrained"),
        ({"curve": [30, 40, 50, 60, 70]}, "undertrained"),
        ({"curve": [30, 60, 30, 60, 30]}, "oscillating"),
    ],
)
def test_every_bad_end_gets_a_diagnosis_with_something_to_do(made: dict[str, Any], issue: str) -> None:
    found = diagnose_run(a_run(0, SPACE.complete({}), **made), [], SPACE)
    assert [d.issue for d in found] == [issue]
    assert found[0].recommendation
    assert found[0].evidence


def test_every_failed_run_of_a_night_is_diagnosed() -> None:
    history = random_runs(SPACE, 30, seed=3)
    for run in history:
        bad = run.run.quality is None or run.run.quality < SPACE.failed_quality
        found = {d.issue for d in diagnose_run(run, history, SPACE)}
        assert bool(found - {"below_healthy", "risky_setting"}) == bad


def healthy_runs(**more: Any) -> list[RunHistory]:
    """Runs that differ little and are all good."""
    settings = [{"learning_rate": 1e-4 * 1.2**i, "network_dim": 16, **more} for i in range(8)]
    return [a_run(i, SPACE.complete(s), epochs=[metrics(70.0 + i % 3)]) for i, s in enumerate(settings)]


def test_a_setting_unlike_healthy_ones_is_blamed_for_a_worse_run() -> None:
    bad = a_run(20, SPACE.complete({"learning_rate": 3e-6, "network_dim": 16}), epochs=[metrics(45.0)])
    (found,) = diagnose_run(bad, healthy_runs(), SPACE)
    assert found.issue == "below_healthy"
    assert [c.factor for c in blamed([found])] == ["learning_rate"]
    assert "between 0.0001 and 0.000358" in found.recommendation
    assert found.expected_gain == pytest.approx(26.0)


def test_a_healthy_run_among_healthy_ones_has_no_diagnosis() -> None:
    runs = healthy_runs()
    assert [diagnose_run(run, runs, SPACE) for run in runs] == [()] * len(runs)


def test_an_issue_of_most_healthy_runs_is_normal() -> None:
    runs = [a_run(i, SPACE.complete({}), epochs=[metrics(70.0, edge_sharpness=20.0)]) for i in range(5)]
    (found,) = diagnose_run(runs[0], runs, SPACE)
    assert found.normal_for_epoch
    assert blamed([found]) == ()


def test_a_clear_risk_is_told_although_no_harm_was_measured() -> None:
    run = a_run(20, SPACE.complete({"learning_rate": 1.5e-4, "network_dim": 16, "color_aug": True}), 71.0)
    (found,) = diagnose_run(run, healthy_runs(), SPACE)
    assert found.issue == "risky_setting"
    assert found.severity < 0.2
    assert blamed([found])[0].factor == "color_aug"


def test_a_risk_stays_one_where_the_setting_is_near_healthy_ones_too() -> None:
    healthy = healthy_runs(shuffle_caption=True, keep_tokens=1)
    setting = {"learning_rate": 1.5e-4, "network_dim": 16, "shuffle_caption": True, "keep_tokens": 0}
    causes = blamed(diagnose_run(a_run(20, SPACE.complete(setting), 71.0), healthy, SPACE))
    assert [c.factor for c in causes] == ["keep_tokens"]


def test_what_healthy_runs_do_as_well_is_no_risk() -> None:
    runs = [
        a_run(i, SPACE.complete({"color_aug": i % 2 == 0, "cache_latents": False}), epochs=[metrics(70.0 + i % 2)])
        for i in range(6)
    ]
    assert diagnose_run(runs[0], runs, SPACE) == ()


@pytest.mark.parametrize(("check", "found"), [("caption_mismatch", metrics(40.0, background_accuracy=20.0))])
def test_findings_of_the_audit_are_suspects(check: str, found: EpochMetrics) -> None:
    audit = DataAudit(
        dataset="data", pictures=20,
        findings=(AuditFinding(check=check, level=Level.WARNING, sentence="wrong", mend="mend", count=20, share=1.0),),
    )  # fmt: skip
    run = a_run(20, SPACE.complete({"learning_rate": 1.5e-4, "network_dim": 16}), epochs=[found])
    causes = blamed(diagnose_run(run, healthy_runs(), SPACE, audit))
    assert [c.factor for c in causes] == [check]
    assert causes[0].confidence > 0.8


def test_a_rank_is_blamed_for_itself_not_for_its_alpha() -> None:
    run = a_run(20, SPACE.complete({"learning_rate": 1.5e-4, "network_dim": 512}), epochs=[metrics(30.0)])
    assert [c.factor for c in blamed(diagnose_run(run, healthy_runs(), SPACE))] == ["network_dim"]


@pytest.mark.parametrize(
    ("found", "issue"),
    [
        (metrics(shares={"memorised_share": 0.5}), "memorised"),
        (metrics(accessories={"hat": 10.0, "earrings": 90.0}), "missing_accessory"),
    ],
)
def test_copies_and_missing_things(found: EpochMetrics, issue: str) -> None:
    assert epoch_issues(found) == {issue}


def test_repeats_are_blamed_only_where_they_change_the_steps() -> None:
    base: dict[str, Any] = {"learning_rate": 1.5e-4, "network_dim": 16}
    healthy = [
        RunHistory(run=h.run.changed(num_images=48, all_parameters={**h.run.all_parameters, "num_repeats": 2}),
                   epochs=h.epochs)
        for h in healthy_runs()
    ]  # fmt: skip
    same = a_run(20, SPACE.complete({**base, "num_repeats": 24}), epochs=[metrics(40.0)], num_images=4)
    assert [c.factor for c in blamed(diagnose_run(same, healthy, SPACE))] == ["few_pictures"]
    more = a_run(20, SPACE.complete({**base, "num_repeats": 24}), epochs=[metrics(40.0)], num_images=48)
    assert [c.factor for c in blamed(diagnose_run(more, healthy, SPACE))] == ["num_repeats"]


def test_what_a_clean_audit_rules_out_is_not_guessed() -> None:
    run = a_run(0, SPACE.complete({}), 50.0).run
    seen = metrics(shares={"two_tone_share": 0.6})
    (guess,) = diagnose_epoch(seen, 3, 5, run, [])
    assert "same colour code" in guess.cause
    (told,) = diagnose_epoch(seen, 3, 5, run, [], DataAudit(dataset="data", pictures=20))
    assert "same colour code" not in told.cause
