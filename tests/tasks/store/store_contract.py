"""What every store must do; each adapter runs all of it."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from schema.errors import NotFoundError, NumberTakenError
from schema.findings import (
    Analysis,
    Decision,
    Diagnosis,
    Evidence,
    GateVerdict,
    Hypothesis,
    ParameterEffect,
    Prediction,
    Principle,
    PrincipleDetails,
    RefusedProposal,
)
from schema.runs import (
    Artifact,
    EpochMetrics,
    EpochResult,
    HumanRating,
    Outcome,
    PictureMetrics,
    PictureVote,
    RunStatus,
    TrainingRun,
    artifact_uid,
    epoch_uid,
    rating_uid,
    run_uid,
    vote_uid,
)
from tasks.store.base import Condition, EpochColours, Store

HOME = uuid.UUID(int=7)
START = datetime(2026, 11, 24, 22, 0, tzinfo=UTC)
PREDICTION = Prediction(quality=70, low=50, high=90, p_fail=0.1, n=4, nearest=("night-000",))
VERDICT = GateVerdict(decision=Decision.RUN, reason="nothing speaks against it", rule="accepted")


def make_run(number: int, campaign: str = "night", **parameters: object) -> TrainingRun:
    return TrainingRun(
        uid=run_uid(HOME, campaign, number),
        campaign=campaign,
        number=number,
        run_name=f"{campaign}-{number:03d}",
        base_model="/models/sd15",
        dataset="knights@0123",
        all_parameters={"network_dim": 16, "lr_scheduler": "cosine", "shuffle_caption": True, **parameters},
        predicted=PREDICTION,
        verdict=VERDICT,
        started_at=START + timedelta(minutes=number),
    )


def make_epoch(run: TrainingRun, epoch: int, quality: float = 50.0) -> EpochResult:
    issue = Diagnosis(
        issue="photorealistic", category="architecture", severity=0.5, cause="rank",
        recommendation="lower it", confidence=0.4,
    )  # fmt: skip
    return EpochResult(
        uid=epoch_uid(run.uid, epoch),
        run_uid=run.uid,
        epoch_number=epoch,
        quality=quality,
        quantitative_metrics=EpochMetrics(worst=12.5, photorealistic_share=0.25),
        diagnosed_issues=(issue,),
        recommendations=("lower network_dim",),
        created_at=START,
    )


class StoreContract:
    """Subclasses give a fixture `store`: empty, migrated."""

    def test_a_run_comes_back_as_it_was_saved(self, store: Store) -> None:
        run = make_run(0).changed(
            status=RunStatus.FINISHED, outcome=Outcome.DIVERGED, failure="NaN at step 3",
            recommended_next_steps=("a", "b"),
        )  # fmt: skip
        store.save_run(run)
        assert store.run("night", 0) == run
        assert store.runs() == [run]

    def test_saving_twice_changes_nothing(self, store: Store) -> None:
        run = make_run(0)
        epoch = make_epoch(run, 1)
        for _ in range(2):
            store.save_run(run)
            store.save_epoch(epoch)
        assert store.runs() == [run]
        assert store.epochs(run.uid) == [epoch]

    def test_a_saved_run_is_replaced_and_keeps_its_epochs(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        store.save_epoch(make_epoch(run, 1))
        store.save_run(run.changed(quality=81.5, best_epoch=1))
        assert store.run("night", 0).quality == 81.5
        assert len(store.epochs(run.uid)) == 1

    def test_what_was_set_can_be_unset(self, store: Store) -> None:
        store.save_run(make_run(0).changed(failure="lost"))
        store.save_run(make_run(0))
        assert store.run("night", 0).failure is None

    def test_a_number_belongs_to_one_run(self, store: Store) -> None:
        mine, theirs = make_run(0), make_run(0).changed(uid=uuid.uuid4())
        store.add_run(mine)
        store.add_run(mine)
        with pytest.raises(NumberTakenError, match="night has a run 0 of another home"):
            store.add_run(theirs)
        assert store.runs() == [mine]

    def test_a_missing_run_is_not_found(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match="no run 5 in campaign night"):
            store.run("night", 5)

    def test_an_epoch_needs_its_run(self, store: Store) -> None:
        with pytest.raises(NotFoundError, match="not in the store"):
            store.save_epoch(make_epoch(make_run(0), 1))

    def test_what_is_no_number_is_kept_as_missing(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        store.save_epoch(make_epoch(run, 1).model_copy(update={"train_loss": float("nan")}))
        assert store.epochs(run.uid)[0].train_loss is None

    def test_colours_are_told_epoch_by_epoch(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        store.save_epoch(make_epoch(run, 2))
        mean = PictureMetrics(
            background_accuracy=90.0, hair_accuracy=30.5, colour=60.25, edge_sharpness=1, pixel_art_purity=1,
            palette_size=9, palette_score=1, dithering_score=1, photorealism=1, grid_confidence=1, style=1, overall=1,
        )  # fmt: skip
        store.save_epoch(make_epoch(run, 1).changed(quantitative_metrics=EpochMetrics(mean=mean)))
        assert store.colour_by_epoch(run.uid) == [
            EpochColours(epoch_number=1, colour=60.25, background_accuracy=90.0, hair_accuracy=30.5),
            EpochColours(epoch_number=2),
        ]

    def test_history_holds_runs_and_epochs_in_order(self, store: Store) -> None:
        for number in (1, 0):
            run = make_run(number)
            store.save_run(run)
            for epoch in (2, 1):
                store.save_epoch(make_epoch(run, epoch))
        store.save_run(make_run(0, campaign="other"))
        history = store.history("night")
        assert [h.run.number for h in history] == [0, 1]
        assert [e.epoch_number for e in history[0].epochs] == [1, 2]
        assert len(store.history()) == 3

    @pytest.mark.parametrize(
        ("condition", "numbers"),
        [
            ("network_dim > 32", [2]),
            ("network_dim >= 16", [0, 1, 2]),
            ("network_dim == 16", [0, 1]),
            ("network_dim != 16", [2]),
            ("network_dim < 9", []),
            ("lr_scheduler == constant", [1]),
            ("shuffle_caption == true", [0, 1, 2]),
        ],
    )
    def test_runs_are_found_by_their_parameters(self, store: Store, condition: str, numbers: list[int]) -> None:
        for run in (make_run(0), make_run(1, lr_scheduler="constant"), make_run(2, network_dim=128)):
            store.save_run(run)
        assert [r.number for r in store.find_runs([Condition.parse(condition)])] == numbers

    def test_conditions_add_up(self, store: Store) -> None:
        store.save_run(make_run(0))
        both = [Condition.parse("network_dim > 8"), Condition.parse("network_dim < 16")]
        assert store.find_runs(both) == []

    def test_campaigns_are_kept_with_their_settings(self, store: Store) -> None:
        store.save_campaign("night", {"trials": 8, "bad": float("nan")}, "running")
        store.save_campaign("night", {"trials": 9}, "finished", "budget spent")
        (record,) = store.campaigns()
        assert (record.name, record.settings, record.status) == ("night", {"trials": 9}, "finished")
        assert record.end_reason == "budget spent"
        assert record.finished_at is not None
        store.save_campaign("night", {"trials": 9}, "finished", "budget spent")
        assert store.campaigns() == [record]
        store.save_campaign("night", {"trials": 12}, "running")
        assert store.campaigns()[0].finished_at is None

    def test_refusals_come_back_in_order(self, store: Store) -> None:
        for number in (3, 1):
            refusal = RefusedProposal(
                uid=uuid.uuid5(HOME, str(number)), campaign="night", number=number, parameters={"network_dim": 64},
                verdict=VERDICT.changed(decision=Decision.SKIP), predicted=PREDICTION, created_at=START,
            )  # fmt: skip
            store.save_refusal(refusal)
            store.save_refusal(refusal)
        assert [r.number for r in store.refusals("night")] == [1, 3]
        assert store.refusals("other") == []

    def test_proposed_experiments_are_replaced_by_newer_ones(self, store: Store) -> None:
        def hypothesis(n: int) -> Hypothesis:
            return Hypothesis(
                uid=uuid.uuid5(HOME, f"h{n}"), campaign="night", priority=n, change={"network_dim": 8}, parameters={},
                rationale="smaller", expected=PREDICTION, gain=2.0, created_at=START, gpu_hours=0.25 * n,
                blockers=("needs more pictures", "x")[:n - 1],
            )  # fmt: skip

        store.save_hypotheses([hypothesis(2), hypothesis(1)])
        assert [h.priority for h in store.hypotheses("night")] == [1, 2]
        assert store.hypotheses("night") == [hypothesis(1), hypothesis(2)]
        store.save_hypotheses([hypothesis(3)])
        assert store.hypotheses("night") == [hypothesis(3)]

    def test_the_newest_analysis_counts(self, store: Store) -> None:
        assert store.latest_analysis("night") is None
        effect = ParameterEffect(parameter="network_dim", n=5, effect=10.0, verdict="secondary")
        for n in (1, 2):
            store.save_analysis(
                Analysis(campaign="night", n_runs=n, effects=(effect,), created_at=START + timedelta(hours=n))
            )
        found = store.latest_analysis("night")
        assert found is not None
        assert found.n_runs == 2
        assert found.effects == (effect,)

    def test_principles_come_back_as_they_were_found(self, store: Store) -> None:
        def principle(n: int) -> Principle:
            return Principle(
                uid=uuid.uuid5(HOME, f"p{n}"), rule=f"network_dim <= {n}", support=9, exceptions=1,
                scope={"base_model": "/models/sd15", "dataset": "knights@0123"}, created_at=START + timedelta(hours=n),
                details=PrincipleDetails(runs=15, good=10, outside=5, against=("night-003",), p_value=0.01),
            )  # fmt: skip

        for n in (2, 1, 1):
            store.save_principle(principle(n))
        accepted = principle(2).changed(state="accepted", evidence=Evidence.TESTED)
        store.save_principle(accepted)
        assert store.principles() == [principle(1), accepted]

    @pytest.mark.parametrize(
        "text", ['it\'s "quoted"; drop table runs; --', "gr\u00fcn \U0001f451 \u738b\u51a0", "a\\nb\n\tc", "%s {} $1"]
    )
    def test_any_text_comes_back_as_it_was(self, store: Store, text: str) -> None:
        store.save_run(make_run(0, caption_version=text).changed(failure=text, recommended_next_steps=(text,)))
        found = store.run("night", 0)
        assert (found.failure, found.recommended_next_steps) == (text, (text,))
        assert found.all_parameters["caption_version"] == text
        assert len(store.find_runs([Condition(parameter="caption_version", operator="==", value=text)])) == 1

    def test_a_character_that_no_database_takes_is_shown_by_its_picture(self, store: Store) -> None:
        store.save_run(make_run(0).changed(failure="before\x00after"))
        assert store.run("night", 0).failure == "before\N{SYMBOL FOR NULL}after"

    def test_five_megabytes_in_one_row_are_kept(self, store: Store) -> None:
        settings = {"words": ["crown " * 100] * 8500}
        store.save_campaign("night", settings, "running")
        assert store.campaigns()[0].settings == settings

    def test_two_workers_that_write_the_same_epoch_leave_one(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: store.save_epoch(make_epoch(run, 1, quality=float(n))), range(20)))
        assert len(store.epochs(run.uid)) == 1

    def test_several_threads_may_save_at_once(self, store: Store) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: store.save_run(make_run(n)), range(20)))
        assert [r.number for r in store.runs("night")] == list(range(20))

    def test_a_later_word_of_a_person_takes_the_place_of_the_earlier(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        store.save_epoch(make_epoch(run, 1))
        for visual in (4.0, 7.5):
            rating = HumanRating(
                uid=rating_uid(run.uid, 1),
                run_uid=run.uid,
                epoch_number=1,
                visual=visual,
                words="nice",
                created_at=START,
            )
            store.save_rating(rating)
        assert store.ratings(run.uid) == [rating]
        assert rating.quality == 75.0
        assert store.epochs(run.uid) == [make_epoch(run, 1)]
        with pytest.raises(NotFoundError):
            store.save_rating(rating.changed(run_uid=make_run(5).uid))

    def test_a_choice_between_two_pictures_is_kept_once(self, store: Store) -> None:
        one, two = make_run(0), make_run(1)
        store.save_run(one)
        store.save_run(two)
        vote = PictureVote(
            uid=vote_uid(one.uid, 1, two.uid, 2, "queen-s1"), run_uid=one.uid, epoch_number=1, other_run_uid=two.uid,
            other_epoch_number=2, picture="queen-s1", choice="first", created_at=START,
        )  # fmt: skip
        store.save_vote(vote)
        store.save_vote(vote.changed(choice="tie"))
        assert store.votes(one.uid) == [vote.changed(choice="tie")]
        assert store.votes(two.uid) == []
        with pytest.raises(NotFoundError):
            store.save_vote(vote.changed(uid=uuid.uuid5(HOME, "v"), other_run_uid=make_run(5).uid))

    def test_what_was_known_of_the_parameters_is_kept_with_the_run(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        assert store.parameter_analysis(run.uid) == []
        effects = [
            ParameterEffect(parameter=name, n=5, effect=10.0, verdict="secondary", by_value={"<= 32": 70.0})
            for name in ("network_dim", "learning_rate")
        ]
        for kept in (effects, effects[:1]):
            store.save_parameter_analysis(run.uid, kept)
            assert store.parameter_analysis(run.uid) == kept
        store.save_run(run.changed(quality=50.0))
        assert store.parameter_analysis(run.uid) == effects[:1]
        with pytest.raises(NotFoundError):
            store.save_parameter_analysis(make_run(5).uid, effects)

    def test_files_are_remembered_once_by_epoch(self, store: Store) -> None:
        run = make_run(0)
        store.save_run(run)
        for epoch, path in ((None, "report.html"), (2, "b"), (1, "a"), (1, "a")):
            store.save_artifact(
                Artifact(
                    uid=artifact_uid(run.uid, path),
                    run_uid=run.uid,
                    epoch_number=epoch,
                    kind="checkpoint",
                    path=path,
                    storage="local",
                    bytes=2**40,
                    created_at=START,
                )
            )
        assert [(a.path, a.bytes) for a in store.artifacts(run.uid)] == [(p, 2**40) for p in ("a", "b", "report.html")]
