"""Principles from the history of a real home to the hard limits of the next campaign."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from typer.testing import CliRunner

from demo.workspace import lay_out
from flows import analysis
from flows.analysis import keep_principles
from flows.cli.main import app
from flows.runtime import wiring
from optimizer.effects.principles import learnt
from optimizer.search.rules import Rule
from schema.errors import ConfigError, NotFoundError
from schema.findings import Principle
from schema.runs import Outcome, TrainingRun, run_uid
from tasks.claims import Claim
from tasks.home import Home
from tests.conftest import remove
from tests.optimizer.worlds import START

DIMS = (4, 8, 8, 16, 16, 32, 32, 16, 64, 64, 64, 64)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home whose earlier campaign went badly at rank 64, and a campaign on the same model and data."""
    folder = tmp_path_factory.mktemp("home")
    file = lay_out(folder)
    with wiring.session():
        services = wiring.open_home(str(folder))
        services.store.save_campaign("demo", {"file": services.home.relative(file)}, "finished", "budget spent")
        context = wiring.open_campaign(str(file), str(folder))
        rng = np.random.default_rng(0)
        for number, dim in enumerate(DIMS):
            parameters = context.space.complete({"network_dim": dim, "learning_rate": float(10 ** rng.uniform(-5, -1))})
            context.store.save_run(_ended(context, number, parameters, 80.0 if dim < 64 else 30.0))
        keep_principles(context)
        embedded = services.embedded
    yield folder
    assert embedded is not None
    remove(embedded)


def _ended(context: wiring.Context, number: int, parameters: dict[str, object], quality: float) -> TrainingRun:
    return context.new_run(number, parameters).changed(  # type: ignore[arg-type]
        uid=run_uid(context.home.uid, "earlier", number), campaign="earlier", run_name=f"earlier-{number:03d}",
        outcome=Outcome.OK, quality=quality, started_at=START + timedelta(hours=number),
    )  # fmt: skip


def ask(home: Path, *words: str) -> str:
    result = CliRunner().invoke(app, [*words, "--home", str(home)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def rules(home: Path) -> tuple[Rule, ...]:
    with wiring.session():
        return wiring.open_campaign(str(home / "campaign.toml"), str(home)).space.rules


def test_a_principle_is_listed_accepted_obeyed_and_taken_back(home: Path) -> None:
    assert "network_dim <= 32 in 8 of 8 good runs; 0 of 4 others are good" in ask(home, "principles")
    assert rules(home) == ()
    assert "is a hard limit" in ask(home, "principles", "accept", "1")
    assert [str(rule) for rule in rules(home)] == ["network_dim <= 32"]
    assert "would be refused" in ask(home, "predict", "network_dim=64")
    (kept,) = json.loads(ask(home, "principles", "--json"))
    assert kept["state"] == "accepted"
    ask(home, "principles", "drop", "1")
    assert rules(home) == ()


def test_a_users_word_in_the_midst_of_an_analysis_is_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [sys.executable, "-m", "flows.cli", "principles", "accept", "1", "--home", str(home)]
    with wiring.session():
        context = wiring.open_campaign(str(home / "campaign.toml"), str(home))
        context.store.save_run(_ended(context, len(DIMS), context.space.complete({"network_dim": 8}), 81.0))
        spoken: list[subprocess.Popen[bytes]] = []

        def learnt_meanwhile(*known: Any) -> list[Principle]:
            found = learnt(*known)
            spoken.append(subprocess.Popen(words, stdout=subprocess.DEVNULL))
            while spoken[0].poll() is None and not waits(context):
                time.sleep(0.1)
            return found

        monkeypatch.setattr(analysis, "learnt", learnt_meanwhile)
        keep_principles(context)
        assert spoken[0].wait(60) == 0
        (known,) = context.store.principles()
    assert (known.state, known.details.good) == ("accepted", 9)
    ask(home, "principles", "drop", "1")


def waits(context: wiring.Context) -> bool:
    with psycopg.connect(context.services.database_url) as connection:
        held = connection.execute("select count(*) from pg_locks where locktype = 'advisory' and not granted")
        return bool((held.fetchone() or (0,))[0])


def test_what_is_fixed_now_must_keep_an_accepted_rule(home: Path) -> None:
    with wiring.session():
        store = wiring.open_home(str(home)).store
        (known,) = store.principles()
        store.save_principle(known.changed(rule="caption_dropout_rate <= 0.01"))
    with pytest.raises(ConfigError, match=r"change \[fixed\] or drop the rule"):
        ask(home, "principles", "accept", "1")
    with wiring.session():
        forced = known.changed(rule="caption_dropout_rate <= 0", state="accepted")
        wiring.open_home(str(home)).store.save_principle(forced)
    with pytest.raises(ConfigError, match="does not hold"):
        rules(home)
    ask(home, "principles", "drop", "1")  # and there is a way out
    assert rules(home) == ()
    with wiring.session():
        wiring.open_home(str(home)).store.save_principle(known)


def test_what_cannot_be_accepted_is_a_sentence(home: Path) -> None:
    with pytest.raises(NotFoundError, match="no principle 7: there are 1"):
        ask(home, "principles", "accept", "7")
    with wiring.session():
        store = wiring.open_home(str(home)).store
        (known,) = store.principles()
        store.save_principle(known.changed(state="withdrawn"))
    with pytest.raises(ConfigError, match="contradicted"):
        ask(home, "principles", "accept", "1")


def test_an_option_that_would_not_be_heard_is_a_sentence(home: Path) -> None:
    with pytest.raises(ConfigError, match="write --home behind accept"):
        CliRunner().invoke(app, ["principles", "--home", str(home), "accept", "1"], catch_exceptions=False)


def test_no_paired_test_runs_beside_a_campaign(home: Path) -> None:
    with (
        Claim.take(Home.at(home).at_work, shared=True) or pytest.fail("not free"),
        pytest.raises(ConfigError, match="a campaign or another test is at work in"),
    ):
        ask(home, "test", "network_dim 16 -> 8")
    with Claim.take(Home.at(home).at_work) or pytest.fail("not free"):
        assert "next: 6 runs" in ask(home, "test", "network_dim 16 -> 8", "--plan")
