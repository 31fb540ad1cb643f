"""The store on Postgres, through psycopg."""

from __future__ import annotations

import math
import threading
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb
from pydantic import ValidationError

from schema.base import Frozen
from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from schema.findings import Analysis, Hypothesis, RefusedProposal
from schema.runs import EpochResult, RunHistory, TrainingRun
from tasks.store.base import CampaignRecord, Condition, EpochColours

Record = TypeVar("Record", bound=Frozen)
Answer = TypeVar("Answer")
Query = sql.SQL | sql.Composed
Connection = psycopg.Connection[dict[str, Any]]

_RUN = tuple(TrainingRun.model_fields)
_EPOCH = tuple(name for name in EpochResult.model_fields if name != "run_uid")
_TEXT_ARRAYS = {"recommended_next_steps", "recommendations"}
_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_SAVE_CAMPAIGN = """
insert into public.campaigns as kept (name, settings, status, end_reason, finished_at)
values (%s, %s, %s, %s, case when %s::text is not null then now() end)
on conflict (name) do update set
    settings = excluded.settings, status = excluded.status, end_reason = excluded.end_reason,
    finished_at = case when excluded.end_reason is not null then coalesce(kept.finished_at, excluded.finished_at) end
"""
_COLOUR_BY_EPOCH = """
select e.epoch_number,
    (e.quantitative_metrics->'mean'->>'colour')::float as colour,
    (e.quantitative_metrics->'mean'->>'background_accuracy')::float as background_accuracy,
    (e.quantitative_metrics->'mean'->>'hair_accuracy')::float as hair_accuracy,
    (e.quantitative_metrics->'mean'->>'crown_accuracy')::float as crown_accuracy
from public.epoch_results e join public.training_runs r on r.id = e.training_run_id
where r.uid = %s and e.quantitative_metrics is not null
order by e.epoch_number
"""
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)


class PostgresStore:
    """Implements `tasks.store.base.Store`. One short transaction a call; reconnects once by itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None
        self._lock = threading.RLock()  # one thread must not close what another has just opened again

    def close(self) -> None:
        """Let go of the connection; the next call opens a new one."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign; it counts as finished from the first save with a reason to end."""
        self._do(sql.SQL(_SAVE_CAMPAIGN), [name, _json(settings), status, end_reason, end_reason])

    def campaigns(self) -> list[CampaignRecord]:
        """All campaigns, oldest first."""
        columns = sql.SQL(", ").join(map(sql.Identifier, CampaignRecord.model_fields))
        query = sql.SQL("select {} from public.campaigns order by created_at, name").format(columns)
        return _records(CampaignRecord, self._ask(query))

    def save_run(self, run: TrainingRun) -> None:
        """Insert or replace a run."""
        self._upsert("training_runs", _row(run, _RUN), key=("uid",))

    def save_epoch(self, epoch: EpochResult) -> None:
        """Insert or replace an epoch; its run must be in the store.

        Raises:
            NotFoundError: no such run.
        """
        found = self._ask(sql.SQL("select id from public.training_runs where uid = %s"), [epoch.run_uid])
        if not found:
            raise NotFoundError(f"epoch {epoch.epoch_number} belongs to run {epoch.run_uid}, which is not in the store")
        row = _row(epoch, _EPOCH) | {"training_run_id": found[0]["id"]}
        self._upsert("epoch_results", row, key=("uid",))

    def run(self, campaign: str, number: int) -> TrainingRun:
        """One run.

        Raises:
            NotFoundError: no such run.
        """
        found = self._runs(sql.SQL("campaign = %s and number = %s"), [campaign, number])
        if not found:
            raise NotFoundError(f"no run {number} in campaign {campaign}")
        return found[0]

    def runs(self, campaign: str | None = None) -> list[TrainingRun]:
        """Runs of one campaign or of all, oldest first."""
        return self._runs(sql.SQL("(%s::text is null or campaign = %s)"), [campaign, campaign])

    def find_runs(self, where: Sequence[Condition]) -> list[TrainingRun]:
        """Runs whose parameters meet every condition; numbers compare as numbers."""
        parts: list[Query] = [sql.SQL("true")]
        values: list[Any] = []
        for condition in where:
            # jsonb compares within a type only by value: a text never counts as above a number.
            parts.append(
                sql.SQL("(jsonb_typeof(all_parameters->%s) = jsonb_typeof(%s) and all_parameters->%s {} %s)").format(
                    sql.SQL(_OPERATORS[condition.operator])
                )
            )
            values += [condition.parameter, Jsonb(condition.value), condition.parameter, Jsonb(condition.value)]
        return self._runs(sql.SQL(" and ").join(parts), values)

    def epochs(self, run_uid: uuid.UUID) -> list[EpochResult]:
        """Epochs of a run in order."""
        return self._epochs(sql.SQL("r.uid = %s"), [run_uid])

    def colour_by_epoch(self, run_uid: uuid.UUID) -> list[EpochColours]:
        """Colour accuracy of a run's epochs in order."""
        return _records(EpochColours, self._ask(sql.SQL(_COLOUR_BY_EPOCH), [run_uid]))

    def history(self, campaign: str | None = None) -> list[RunHistory]:
        """Runs with their epochs, oldest first."""
        epochs: dict[uuid.UUID, list[EpochResult]] = {}
        for epoch in self._epochs(sql.SQL("(%s::text is null or r.campaign = %s)"), [campaign, campaign]):
            epochs.setdefault(epoch.run_uid, []).append(epoch)
        return [RunHistory(run=run, epochs=tuple(epochs.get(run.uid, ()))) for run in self.runs(campaign)]

    def save_refusal(self, refusal: RefusedProposal) -> None:
        """Insert or replace a refused proposal."""
        self._upsert("refused_proposals", _row(refusal, RefusedProposal.model_fields), key=("uid",))

    def refusals(self, campaign: str) -> list[RefusedProposal]:
        """What the gate refused, in order."""
        return self._of_campaign(RefusedProposal, "refused_proposals", campaign, order="number")

    def save_hypotheses(self, hypotheses: Sequence[Hypothesis]) -> None:
        """Make these the campaign's proposed experiments; those no longer proposed are dropped."""
        proposed = sql.SQL("campaign = any(%s) and state = 'proposed' and uid <> all(%s)")
        kept = [[h.campaign for h in hypotheses], [h.uid for h in hypotheses]]
        upserts = [_upsert("hypotheses", _row(h, Hypothesis.model_fields), key=("uid",)) for h in hypotheses]

        def replace(connection: Connection) -> None:
            with connection.transaction():  # a reader sees the old ones or the new, never none
                connection.execute(sql.SQL("delete from public.hypotheses where {}").format(proposed), kept)
                for statement, values in upserts:
                    connection.execute(statement, values)

        self._attempt(replace)

    def hypotheses(self, campaign: str) -> list[Hypothesis]:
        """Next experiments, the first priority first."""
        return self._of_campaign(Hypothesis, "hypotheses", campaign, order="priority")

    def save_analysis(self, analysis: Analysis) -> None:
        """Keep an analysis; the newest of a campaign is the one that counts."""
        names = [name for name in Analysis.model_fields if name != "hypotheses"]
        self._upsert("analyses", _row(analysis, names), key=("campaign", "created_at"))

    def latest_analysis(self, campaign: str) -> Analysis | None:
        """The newest analysis with the hypotheses of now."""
        query = "select campaign, created_at, n_runs, effects from public.analyses where campaign = %s"
        rows = self._ask(sql.SQL(query + " order by created_at desc limit 1"), [campaign])
        if not rows:
            return None
        return _records(Analysis, rows)[0].changed(hypotheses=tuple(self.hypotheses(campaign)))

    def _runs(self, where: Query, values: Sequence[Any]) -> list[TrainingRun]:
        columns = sql.SQL(", ").join(map(sql.Identifier, _RUN))
        # Rows that a user's own table had before carry no parameters of ours: they are not runs of ours.
        query = sql.SQL(
            "select {} from public.training_runs where all_parameters is not null and campaign is not null and {}"
            " order by started_at, number"
        ).format(columns, where)
        return _records(TrainingRun, self._ask(query, values))

    def _epochs(self, where: Query, values: Sequence[Any]) -> list[EpochResult]:
        columns = sql.SQL(", ").join(sql.Identifier("e", name) for name in _EPOCH)
        query = sql.SQL(
            "select {}, r.uid as run_uid from public.epoch_results e join public.training_runs r"
            " on r.id = e.training_run_id where e.quantitative_metrics is not null and {} order by r.id, e.epoch_number"
        ).format(columns, where)
        return _records(EpochResult, self._ask(query, values))

    def _of_campaign(self, model: type[Record], table: str, campaign: str, order: str) -> list[Record]:
        columns = sql.SQL(", ").join(map(sql.Identifier, model.model_fields))
        query = sql.SQL("select {} from {} where campaign = %s order by {}").format(
            columns, sql.Identifier("public", table), sql.Identifier(order)
        )
        return _records(model, self._ask(query, [campaign]))

    def _upsert(self, table: str, row: Mapping[str, Any], key: Sequence[str]) -> None:
        self._do(*_upsert(table, row, key))

    def _do(self, statement: Query, values: Sequence[Any]) -> None:
        self._attempt(lambda connection: connection.execute(statement, values))

    def _ask(self, query: Query, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return self._attempt(lambda connection: connection.execute(query, values).fetchall())

    def _attempt(self, work: Callable[[Connection], Answer]) -> Answer:
        """Do work that may be repeated as a whole, once more if the server has restarted meanwhile."""
        try:
            with self._lock:
                try:
                    return work(self._open())
                except _AWAY:
                    self.close()
                    return work(self._open())
        except _AWAY as error:
            raise StoreUnavailableError(f"the database cannot be reached: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise StoreError(f"the database refused: {_first_line(error)}") from error

    def _open(self) -> Connection:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._url, autocommit=True, row_factory=dict_row, connect_timeout=10)
        return self._connection


def _upsert(table: str, row: Mapping[str, Any], key: Sequence[str]) -> tuple[Query, list[Any]]:
    """A statement that inserts a row or replaces the one with the same key, and its values."""
    changed = [name for name in row if name not in key]
    statement = sql.SQL("insert into {} ({}) values ({}) on conflict ({}) do update set {}").format(
        sql.Identifier("public", table),
        sql.SQL(", ").join(map(sql.Identifier, row)),
        sql.SQL(", ").join(sql.Placeholder() * len(row)),
        sql.SQL(", ").join(map(sql.Identifier, key)),
        sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in changed),
    )
    return statement, list(row.values())


def _row(record: Frozen, names: Iterable[str]) -> dict[str, Any]:
    """A record as column values: nested data as JSON, text tuples as arrays."""
    data = _finite(record.model_dump(mode="json"))
    row: dict[str, Any] = {}
    for name in names:
        value = data[name]
        row[name] = Jsonb(value) if isinstance(value, dict | list) and name not in _TEXT_ARRAYS else value
    return row


def _json(value: Any) -> Jsonb:
    return Jsonb(_finite(value))


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def _records(model: type[Record], rows: Iterable[Mapping[str, Any]]) -> list[Record]:
    """Rows as records; a column that is null takes the field's default.

    Raises:
        StoreError: a row was changed to what we cannot read.
    """
    return [_record(model, {k: v for k, v in row.items() if v is not None}) for row in rows]


def _record(model: type[Record], row: Mapping[str, Any]) -> Record:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        which = row.get("run_name") or row.get("uid") or row.get("name") or row.get("campaign")
        column = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{model.__name__} {which} cannot be read: {column}: {first['msg']}; mend that row in the database"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
