"""The store on Postgres, through psycopg."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg import sql
from psycopg.rows import dict_row
from psycopg.types.json import Jsonb

from schema.base import Frozen
from schema.errors import NotFoundError, StoreError, StoreUnavailableError
from schema.findings import Analysis, Hypothesis, RefusedProposal
from schema.runs import EpochResult, RunHistory, TrainingRun
from tasks.store.base import CampaignRecord, Condition

Record = TypeVar("Record", bound=Frozen)
Query = sql.SQL | sql.Composed

_RUN = tuple(TrainingRun.model_fields)
_EPOCH = tuple(name for name in EpochResult.model_fields if name != "run_uid")
_TEXT_ARRAYS = {"recommended_next_steps", "recommendations"}
_OPERATORS = {"==": "=", "!=": "<>", "<": "<", "<=": "<=", ">": ">", ">=": ">="}
_AWAY = (psycopg.OperationalError, psycopg.InterfaceError)


class PostgresStore:
    """Implements `tasks.store.base.Store`. One short transaction a call; reconnects once by itself."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: psycopg.Connection[dict[str, Any]] | None = None

    def close(self) -> None:
        """Let go of the connection; the next call opens a new one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def save_campaign(self, name: str, settings: dict[str, Any], status: str, end_reason: str | None = None) -> None:
        """Insert or replace a campaign."""
        row = {"name": name, "settings": _json(settings), "status": status, "end_reason": end_reason}
        self._upsert("campaigns", row, key=("name",))

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
        for campaign in {h.campaign for h in hypotheses}:
            kept = [h.uid for h in hypotheses if h.campaign == campaign]
            statement = "delete from public.hypotheses where campaign = %s and state = 'proposed' and uid <> all(%s)"
            self._do(sql.SQL(statement), [campaign, kept])
        for hypothesis in hypotheses:
            self._upsert("hypotheses", _row(hypothesis, Hypothesis.model_fields), key=("uid",))

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
        changed = [name for name in row if name not in key]
        statement = sql.SQL("insert into {} ({}) values ({}) on conflict ({}) do update set {}").format(
            sql.Identifier("public", table),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
            sql.SQL(", ").join(map(sql.Identifier, key)),
            sql.SQL(", ").join(sql.SQL("{0} = excluded.{0}").format(sql.Identifier(name)) for name in changed),
        )
        self._do(statement, list(row.values()))

    def _do(self, statement: Query, values: Sequence[Any]) -> None:
        self._execute(statement, values)

    def _ask(self, query: Query, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        return self._execute(query, values).fetchall()

    def _execute(self, query: Query, values: Sequence[Any]) -> psycopg.Cursor[dict[str, Any]]:
        try:
            try:
                return self._open().execute(query, values)
            except _AWAY:
                self.close()  # the server may have restarted: every statement can be repeated
                return self._open().execute(query, values)
        except _AWAY as error:
            raise StoreUnavailableError(f"the database cannot be reached: {_first_line(error)}") from error
        except psycopg.Error as error:
            raise StoreError(f"the database refused: {_first_line(error)}") from error

    def _open(self) -> psycopg.Connection[dict[str, Any]]:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(self._url, autocommit=True, row_factory=dict_row, connect_timeout=10)
        return self._connection


def _row(record: Frozen, names: Iterable[str]) -> dict[str, Any]:
    """A record as column values: nested data as JSON, text tuples as arrays."""
    data = record.model_dump(mode="json")
    row: dict[str, Any] = {}
    for name in names:
        value = data[name]
        row[name] = _json(value) if isinstance(value, dict | list) and name not in _TEXT_ARRAYS else value
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
    """Rows as records; a column that is null takes the field's default."""
    return [model.model_validate({k: v for k, v in row.items() if v is not None}) for row in rows]


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
