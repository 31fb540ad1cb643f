from __future__ import annotations

import copy
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schema.errors import ConfigError, StoreError
from schema.findings import Analysis, Hypothesis, ParameterEffect, RefusedProposal
from schema.runs import Artifact, HumanRating, PictureVote, artifact_uid, rating_uid, vote_uid
from schema.states import EffectVerdict
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.known import KnownHistory
from tasks.store.migrate import migrate
from tasks.store.portable import TABLES, export, read_export, restore
from tasks.store.postgres import PostgresStore
from tasks.store.row_check import _MODELS
from tests.tasks.store.store_contract import HOME, PREDICTION, START, VERDICT, make_epoch, make_run

HEAD = '{"pixelloop": "export", "version": 1}'


@dataclass(frozen=True)
class Exported:
    """An export with a row in each table, and an empty database to import it into."""

    lines: list[dict[str, Any]]
    store: PostgresStore
    url: str
    folder: Path

    def changed(self, index: int, place: tuple[str | int, ...], value: object) -> Path:
        """A file with one value replaced."""
        lines = copy.deepcopy(self.lines)
        inner: Any = lines[index]["row"]
        for part in place[:-1]:
            inner = inner[part]
        inner[place[-1]] = value
        return self.write(lines)

    def write(self, lines: list[dict[str, Any]]) -> Path:
        file = self.folder / "changed.jsonl"
        file.write_text("\n".join([HEAD, *map(json.dumps, lines)]))
        return file

    def index(self, table: str, column: str = "uid") -> int:
        """Where a row of ours has a value; the user's own rows, of no campaign, are not read."""
        rows = [line["row"] if line["table"] == table else {} for line in self.lines]
        return next(i for i, row in enumerate(rows) if row.get(column) is not None and row.get("campaign", "night"))

    def clear(self) -> None:
        with psycopg.connect(self.url) as connection:
            connection.execute(f"truncate {', '.join(TABLES)} cascade".encode())

    def rows(self) -> dict[str, int]:
        counts = {}
        with psycopg.connect(self.url) as connection:
            for table in TABLES:
                found = connection.execute(f"select count(*) from {table}".encode()).fetchone()
                counts[table] = found[0] if found else 0
        return counts


@pytest.fixture(scope="module")
def exported(postgres: EmbeddedPostgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Exported]:
    url = postgres.ensure_database(f"checked_{uuid.uuid4().hex[:8]}")
    migrate(url)
    store, folder = PostgresStore(url), tmp_path_factory.mktemp("exported")
    fill(store, url)
    export(store.tables, folder / "good.jsonl")
    lines = [json.loads(line) for line in (folder / "good.jsonl").read_text().splitlines()[1:]]
    assert {line["table"] for line in lines} == set(TABLES)
    yield Exported(lines, store, url, folder)
    store.close()


@pytest.fixture(autouse=True)
def empty(exported: Exported) -> None:
    exported.clear()


def fill(store: PostgresStore, url: str) -> None:
    base = make_epoch(make_run(0), 0)
    audit = {"dataset": "knights@0123", "pictures": 3}
    campaign = {"campaign": {"name": "night", "failed_quality": 20.0}}
    given = {"campaign": campaign, "base": base.model_dump(mode="json"), "audit": audit, "file": "night.toml"}
    store.save_campaign("night", given, "finished", "budget spent")
    run = make_run(0)
    store.save_run(run)
    effect = ParameterEffect(parameter="network_dim", n=8, effect=1.0, verdict=next(iter(EffectVerdict)))
    store.save_parameter_analysis(run.uid, [effect])
    store.save_epoch(make_epoch(run, 1))
    rating = {"uid": rating_uid(run.uid, 1), "run_uid": run.uid, "epoch_number": 1, "created_at": START}
    store.save_rating(HumanRating(**rating, visual=7.5, words="fine"))
    vote = {"run_uid": run.uid, "epoch_number": 1, "other_run_uid": run.uid, "other_epoch_number": 2}
    voted = vote_uid(run.uid, 1, run.uid, 2, "queen-s1")
    store.save_vote(PictureVote(uid=voted, **vote, picture="queen-s1", choice="tie", created_at=START))
    file = {"uid": artifact_uid(run.uid, "a"), "run_uid": run.uid, "kind": "checkpoint", "path": "a"}
    store.save_artifact(Artifact(**file, storage="local", bytes=2**50, created_at=START))
    more = {"campaign": "night", "parameters": {"network_dim": 8}, "created_at": START}
    store.save_refusal(RefusedProposal(uid=uuid.uuid5(HOME, "refused"), **more, number=3, verdict=VERDICT))
    proposed = {"priority": 1, "change": {}, "rationale": "r", "expected": PREDICTION, "gain": 1.0}
    store.save_hypotheses([Hypothesis(uid=uuid.uuid5(HOME, "next"), **more, **proposed)])
    store.save_analysis(Analysis(campaign="night", n_runs=1, effects=(effect,), created_at=START + timedelta(hours=1)))
    with psycopg.connect(url) as connection:
        connection.execute(
            """insert into test_prompts values ('night', 0, 'a', 'b', '{}');
               insert into caption_versions values ('knights@1', 'v1', 3, null, now());
               insert into principles
               values (gen_random_uuid(), 'rule', 3, 1, '{}', 'observed', 'proposed', null, now());
               insert into training_runs (run_name) values ('of the user');
               insert into epoch_results (training_run_id, epoch_number)
               select id, 1 from training_runs where campaign is null"""
        )


def read_everything(store: PostgresStore) -> int:
    """Read all rows as the commands do; how many there were."""
    runs, history = store.runs(), KnownHistory(store.tables).read()
    assert [h.run for h in history] == runs
    assert store.find_runs([]) == runs
    found = len(runs)
    for run in runs:
        assert store.run(run.campaign, run.number) == run
        store.colour_by_epoch(run.uid)
    for row in store.tables.select("training_runs", ("uid",), {}, ("uid",)):  # the user's own may be rated as well
        store.parameter_analysis(row["uid"])
        found += sum(len(read(row["uid"])) for read in (store.epochs, store.ratings, store.votes, store.artifacts))
    for name in {run.campaign for run in runs} | {c.name for c in store.campaigns()} | {"night"}:
        store.history(name)
        store.latest_analysis(name)
        found += len(store.refusals(name)) + len(store.hypotheses(name))
    return found + len(store.campaigns()) + len(store.principles())


BAD = [
    ("training_runs", "all_parameters", [1, 2, 3], r"night-000: all_parameters cannot be \[1, 2, 3\]"),
    ("training_runs", "all_parameters", {"network_dim": {"a": 1}}, "all_parameters.network_dim cannot be {'a': 1}"),
    ("training_runs", "all_parameters", None, "all_parameters is missing"),
    ("training_runs", "campaign", None, "campaign is missing"),
    ("training_runs", "number", 2**40, "number cannot be 1.09951e[+]12: it is too large"),
    ("training_runs", "epochs_done", True, "epochs_done cannot be True"),
    ("training_runs", "epochs_done", None, "epochs_done is missing"),
    ("training_runs", "uid", "x", "uid cannot be 'x'"),
    ("training_runs", "parameter_analysis", [1], "parameter_analysis.0 cannot be 1"),
    ("training_runs", "started_at", "1700000000", "started_at cannot be '1700000000'"),
    ("training_runs", "started_at", "0001-01-01T00:00:00+05:00", "no time that the database can keep"),
    ("training_runs", "run_name", "\ud800", "text that no database takes"),
    ("campaigns", "settings", 5, "night: settings cannot be 5"),
    ("campaigns", "settings", {"campaign": 5}, "settings.campaign cannot be 5"),
    ("campaigns", "settings", {"base": {}}, "settings.base.uid is missing"),
    ("epoch_results", "quantitative_metrics", None, "quantitative_metrics is missing"),
    ("epoch_results", "quantitative_metrics", {"worst": "x"}, "quantitative_metrics.worst cannot be 'x'"),
    ("hypotheses", "state", "maybe", "state cannot be 'maybe'"),
    ("picture_votes", "choice", "third", "choice cannot be 'third'"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "column", "value", "sentence"), BAD)
def test_a_row_that_could_not_be_read_again_is_named_before_anything_is_written(
    exported: Exported, table: str, column: str, value: object, sentence: str
) -> None:
    index = exported.index(table, column)
    file = exported.changed(index, (column,), value)
    with pytest.raises(ConfigError, match=rf"changed.jsonl line {index + 2}: {table}.*{sentence}") as raised:
        restore(exported.store.tables, read_export(file))
    assert "\n" not in str(raised.value)
    assert not any(exported.rows().values())


def test_a_row_whose_run_is_nowhere_or_that_comes_twice_is_named(exported: Exported) -> None:
    run = str(uuid.uuid4())
    file = exported.changed(exported.index("artifacts"), ("run_uid",), run)
    with pytest.raises(ConfigError, match=f"artifacts: run_uid names run {run}, which is neither in the file nor"):
        restore(exported.store.tables, read_export(file))
    with pytest.raises(ConfigError, match="campaigns night: the file holds this row twice"):
        read_export(exported.write([*exported.lines, exported.lines[0]]))
    assert not any(exported.rows().values())


def places(value: Any, place: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every place in a row."""
    if place:
        yield place
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*place, name))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.datetimes().map(str) | st.uuids().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_after_an_accepted_import_every_row_can_be_read(exported: Exported, data: st.DataObject) -> None:
    exported.clear()
    index = data.draw(st.integers(0, len(exported.lines) - 1))
    own = {"changed_in", "id"}
    place = data.draw(st.sampled_from([p for p in places(exported.lines[index]["row"]) if p[0] not in own]))
    others = [line["row"][place[0]] for line in exported.lines if place[0] in line["row"]]
    file = exported.changed(index, place, data.draw(VALUES | st.sampled_from(others)))
    try:
        rows = read_export(file)
        counts = restore(exported.store.tables, rows)
    except ConfigError:
        assert not any(exported.rows().values())
        return
    except StoreError:  # the row of a user, or a column that no record has: the database takes the rows before it
        line = exported.lines[index]
        users = line["row"].get("run_name") == "of the user" or line["row"].get("quantitative_metrics", "") is None
        assert users or place[0] not in _MODELS[line["table"]].model_fields
        return
    readable = sum(counts.values()) - 4 - counts["analyses"]  # prompts, captions and the user's rows are no records
    assert read_everything(exported.store) >= readable
