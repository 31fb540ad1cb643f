from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from optimizer.search.space import Space
from optimizer.search.study import CampaignStudy
from schema.errors import ConfigError, NotFoundError, StoreUnavailableError, TrialError
from schema.findings import Decision, GateVerdict
from schema.parameters import Parameters
from schema.runs import Outcome
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.postgres import patient_connect, wait_for_server
from tests.optimizer.worlds import a_run, random_runs, space_of

SPACE = space_of()
COMPLETE: Parameters = {
    "learning_rate": 1e-3, "network_dim": 16, "optimizer_type": "Lion", "caption_dropout_rate": 0.1,
}  # fmt: skip
Opener = Callable[..., CampaignStudy]


def refusal(rule: str = "known_failure") -> GateVerdict:
    return GateVerdict(decision=Decision.SKIP, reason="2 of 2 failed", rule=rule, p_fail=0.9)


@pytest.fixture
def reopen(tmp_path: Path) -> Iterator[Opener]:
    """Opens the same study anew, as another process would."""
    opened: list[CampaignStudy] = []

    def opener(space: Space = SPACE, sampler: str = "tpe", seed: int = 0, name: str = "night") -> CampaignStudy:
        opened.append(CampaignStudy.open(name, f"sqlite:///{tmp_path}/optuna.db", space, sampler, seed))
        return opened[-1]

    yield opener
    for study in opened:
        study.close()


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_same_past_gives_the_same_proposals(reopen: Opener, sampler: str) -> None:
    def proposals(name: str, again: bool) -> list[Parameters]:
        study, found = reopen(sampler=sampler, name=name), []
        for number in range(7):
            study = reopen(sampler=sampler, name=name) if again else study
            proposal = study.ask()
            assert proposal.number == number
            study.finish(number, Outcome.OK, 10.0 * (number % 3))
            found.append(proposal.parameters)
        return found

    kept, forgetful = proposals("one", again=False), proposals("two", again=True)
    assert kept == forgetful
    assert len({str(p) for p in kept}) == len(kept)


def test_a_killed_campaign_finds_its_running_trial(reopen: Opener) -> None:
    study = reopen()
    study.finish(study.ask().number, Outcome.OK, 50.0)
    asked = study.ask()
    study.report(asked.number, 1, 40.0)
    again = reopen()
    assert again.running() == [asked]
    again.report(asked.number, 1, 99.0)
    again.report(asked.number, 2, 45.0)
    again.finish(asked.number, Outcome.OK, 45.0)
    assert again.running() == []
    assert again.study.trials[asked.number].intermediate_values == {1: 40.0, 2: 45.0}


def test_a_trial_cut_off_while_it_was_being_asked_for_is_completed(reopen: Opener) -> None:
    study = reopen()
    study.study.enqueue_trial(COMPLETE)
    study.study.ask()  # the kill comes before any value is written
    assert reopen().running()[0].parameters == COMPLETE
    assert study.study.trials[0].params == COMPLETE


@pytest.mark.parametrize(
    ("outcome", "quality", "state", "constraint"),
    [
        (Outcome.OK, 60.0, TrialState.COMPLETE, -0.5),
        (Outcome.STOPPED_EARLY, 30.0, TrialState.COMPLETE, -0.5),
        (Outcome.DIVERGED, None, TrialState.PRUNED, 0.5),
        (Outcome.OUT_OF_MEMORY, 20.0, TrialState.PRUNED, 0.5),
        (Outcome.CRASHED, None, TrialState.FAIL, None),
        (Outcome.BAD_DATA, None, TrialState.FAIL, None),
        (Outcome.OK, None, TrialState.FAIL, None),
    ],
)
def test_an_end_is_told_once_however_often_it_is_told(
    reopen: Opener, outcome: Outcome, quality: float | None, state: TrialState, constraint: float | None
) -> None:
    study = reopen()
    number = study.ask().number
    for _ in range(2):
        study.finish(number, outcome, quality)
    trial = study.study.trials[number]
    assert trial.state is state
    assert trial.constraints.get("fails") == constraint
    # The dashboard's version reads the old form only.
    assert trial.system_attrs.get("constraints") == (None if constraint is None else [constraint])
    with pytest.raises(TrialError, match="ended before"):
        study.finish(number, Outcome.OK, 99.0)


def test_a_refused_proposal_is_shown_with_its_reason_and_never_asked_again(reopen: Opener) -> None:
    study = reopen()
    asked = study.ask(COMPLETE)
    for _ in range(2):
        study.refuse(asked.number, refusal())
    trial = study.study.trials[0]
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs == {"gate": "known_failure", "reason": "2 of 2 failed", "p_fail": 0.9}
    assert all(study.ask().parameters != COMPLETE for _ in range(5))


def test_a_suggestion_is_run_as_it_is_and_filled_where_it_is_open(reopen: Opener) -> None:
    study = reopen()
    assert study.ask(COMPLETE).parameters == COMPLETE
    half = study.ask({"network_dim": 9}).parameters
    assert half["network_dim"] == 9
    assert SPACE.problems(half) == []
    assert study.untried([COMPLETE, {"network_dim": 9}, {"network_dim": 10}]) == [{"network_dim": 10}]


@pytest.mark.parametrize("setting", [{"network_dim": 4096}, {"seed": 3}, {"optimizer_type": "Adam"}])
def test_a_suggestion_outside_the_space_is_refused(reopen: Opener, setting: Parameters) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        reopen().ask(setting)


def test_proposals_keep_the_rules(reopen: Opener) -> None:
    space = space_of(rules=("network_dim <= 8", "learning_rate < 0.0001"))
    study = reopen(space=space)
    for _ in range(12):
        proposal = study.ask()
        assert space.violations(space.complete(proposal.parameters)) == []
        study.finish(proposal.number, Outcome.OK, 50.0)


def test_rules_that_leave_nothing_are_said(reopen: Opener) -> None:
    space = space_of(rules=("network_dim < 8", "network_dim > 8"))
    with pytest.raises(ConfigError, match="leave nothing"):
        reopen(space=space).ask()


def test_a_space_used_up_still_gives_proposals(reopen: Opener) -> None:
    study = reopen(space=space_of({"optimizer_type": {"choices": ["AdamW", "Lion"]}}))
    found = [study.ask().parameters["optimizer_type"] for _ in range(4)]
    assert set(found[:2]) == {"AdamW", "Lion"}


def test_past_campaigns_guide_the_search_unseen(reopen: Opener) -> None:
    history = [*random_runs(SPACE, 40, seed=0), a_run(99, SPACE.complete(COMPLETE | {"learning_rate": 1.0}), 50.0)]
    study, cold = reopen(), reopen(name="cold")
    assert study.warm_start(history) == 40
    rates = [study.ask().parameters["learning_rate"] for _ in range(6)]
    assert len(study.study.trials) == 6
    assert sum(float(r or 0) > 1e-2 for r in rates) <= 1  # a quarter of the span diverges
    assert rates[0] != cold.ask().parameters["learning_rate"]


def test_a_changed_scale_asks_for_a_new_name(reopen: Opener) -> None:
    reopen().ask()
    with pytest.raises(ConfigError, match="new name"):
        reopen(space=space_of({"optimizer_type": {"choices": ["AdamW", "Lion"]}}))
    moved: dict[str, Any] = {"learning_rate": {"low": 1e-5, "high": 1e-2, "log": True}}
    assert SPACE.names != reopen(space=space_of(moved)).ask().parameters.keys()


def test_unknown_names_are_said(reopen: Opener) -> None:
    with pytest.raises(NotFoundError, match="no trial 7"):
        reopen().trial_id(7)
    with pytest.raises(ConfigError, match="tpe, gp, random"):
        reopen(sampler="cmaes")


def test_the_study_lives_in_postgres(postgres_url: str) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://")
    study = CampaignStudy.open("night", url, SPACE, "tpe", 0)
    asked = study.ask()
    study.note(asked.number, "hello", {"a": 1})
    other = CampaignStudy.open("night", url, SPACE, "tpe", 0)
    assert other.running() == [asked]
    other.finish(asked.number, Outcome.OK, 61.0)
    assert optuna.load_study(study_name="night", storage=study.storage).best_value == 61.0
    study.close()
    other.close()


def test_a_database_that_dies_between_two_reports_is_started_again(postgres: EmbeddedPostgres) -> None:
    url = postgres.ensure_database("patience")
    connect = patient_connect(lambda: url, postgres.start)
    study = CampaignStudy.open("night", url.replace("://", "+psycopg://"), SPACE, "random", 0, connect)
    number = study.ask().number
    study.report(number, 1, 50.0)
    postgres.stop()
    study.report(number, 2, 60.0)
    study.finish(number, Outcome.OK, 60.0)
    assert study.study.trials[0].intermediate_values == {1: 50.0, 2: 60.0}
    study.close()


def test_numbers_of_other_homes_are_skipped_and_teach_nothing(reopen: Opener) -> None:
    study = reopen()
    study.skip({0, 1, 3, 2**31})
    first = study.ask(COMPLETE, home="mine")
    assert (first.number, first.home) == (2, "mine")
    study.skip({0, 1, 3, 2**31})
    assert reopen().ask().number == 4
    assert [study.holds(number) for number in range(6)] == [False, False, True, False, True, False]
    study.give_up(2)
    study.give_up(2)
    assert not study.holds(2)
    assert [proposal.number for proposal in reopen().running()] == [4]
    assert reopen().untried([COMPLETE, {}]) == [COMPLETE]  # what was given up was never tried


def test_a_database_of_others_is_waited_for(postgres: EmbeddedPostgres) -> None:
    url = postgres.ensure_database("others")
    connect = patient_connect(lambda: url, lambda: wait_for_server(url))
    study = CampaignStudy.open("night", url.replace("://", "+psycopg://"), SPACE, "random", 0, connect)
    postgres.stop()
    somebody = threading.Timer(1.5, postgres.start)
    somebody.start()
    assert study.ask().number == 0
    somebody.join()
    postgres.stop()
    study.storage.engine.dispose()
    hopeless = patient_connect(lambda: url, lambda: wait_for_server(url, patience=0.0))
    with pytest.raises(StoreUnavailableError, match="cannot be reached"):
        hopeless()
    postgres.start()
    study.close()


def test_processes_that_ask_alone_share_a_study_without_twins(postgres_url: str) -> None:
    url = postgres_url.replace("postgresql://", "postgresql+psycopg://") + "?options=-csearch_path%3Doptuna"
    CampaignStudy.open("shared", url, SPACE, "random", 0).close()

    def worker(number: int) -> list[Parameters]:
        study, found = CampaignStudy.open("shared", url, SPACE, "random", 0), []
        for turn in range(5):
            with study.alone():
                wanted = {**COMPLETE, "network_dim": 20 + number} if turn == 2 else None
                proposal = study.ask(wanted)
            assert wanted is None or proposal.parameters == wanted
            found.append(proposal.parameters)
            study.finish(proposal.number, Outcome.OK, 50.0)
        study.close()
        return found

    with ThreadPoolExecutor(4) as pool:
        asked = [parameters for found in pool.map(worker, range(4)) for parameters in found]
    assert len({str(sorted(parameters.items())) for parameters in asked}) == 20
