"""What the store does with a life's work: 10,000 runs of 10 epochs; and with a database that goes away.

    python -m benchmarks.store [--quick] [--json] [--runs 10000] [--away 60]

Milliseconds are medians of five. Rows are counted before and after.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from schema.runs import EpochMetrics, EpochResult, PictureMetrics, TrainingRun, epoch_uid, run_uid
from tasks.store.base import Condition
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.migrate import migrate
from tasks.store.outbox import OutboxStore
from tasks.store.postgres import PostgresStore

_HOME = uuid.UUID(int=9)
_NOW = datetime(2026, 11, 25, tzinfo=UTC)
_PICTURE = PictureMetrics(
    edge_sharpness=50.0, pixel_art_purity=50.0, palette_size=16, palette_score=50.0, dithering_score=50.0,
    photorealism=10.0, grid_confidence=0.5, style=50.0, overall=50.0,
)  # fmt: skip
_RARE = '{"network_dim": 16, "seed": 17}'
_FILL = """
insert into training_runs (uid, campaign, number, run_name, base_model, dataset, status, outcome, quality, best_epoch,
    epochs_done, all_parameters, started_at)
select gen_random_uuid(), 'night-' || n / 100, n %% 100, 'run-' || n, 'sd15', 'knights@1', 'finished', 'ok', n %% 100,
    7, 10,
    %s::jsonb || jsonb_build_object('network_dim', 8 * (1 + n %% 16), 'seed', n %% 1000, 'learning_rate', n * 1e-8),
    now() - n * interval '1 minute'
from generate_series(0, %s - 1) n;
"""
_EPOCHS = """
insert into epoch_results (uid, run_uid, training_run_id, epoch_number, quality, quantitative_metrics)
select gen_random_uuid(), r.uid, r.id, e, r.quality, %s::jsonb || jsonb_build_object('worst', (r.id * 10 + e) %% 5000)
from training_runs r, generate_series(1, 10) e
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 runs, away for 6 s")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--runs", type=int, default=10_000)
    parser.add_argument("--away", type=float, default=60.0, help="seconds without the database")
    options = parser.parse_args()
    runs, away = (1_000, 6.0) if options.quick else (options.runs, options.away)
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedPostgres(Path(folder) / "postgres")
        url = server.start()
        try:
            migrate(url)
            figures = measure(url, runs) | outage(server, url, Path(folder) / "outbox", away)
        finally:
            server.stop()
            shutil.rmtree(json.loads((server.root / "state.json").read_text())["data"], ignore_errors=True)
    print("\n".join(f"{name:28} {value}" for name, value in figures.items()))
    if options.json:
        print(json.dumps(figures))


def measure(url: str, runs: int) -> dict[str, Any]:
    """Times of the questions that commands and decisions ask, with the plan of the two that use a GIN index."""
    started = time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(_FILL, [json.dumps({f"parameter_{n}": n for n in range(60)}), runs])
        connection.execute(_EPOCHS, [EpochMetrics(mean=_PICTURE, pictures=(_PICTURE,) * 4).model_dump_json()])
        connection.execute("vacuum analyze training_runs")
        connection.execute("vacuum analyze epoch_results")
        counted = {
            name: _one(connection, f"select count(*) from {name}") for name in ("training_runs", "epoch_results")
        }
        figures = {f"rows_{name}": n for name, n in counted.items()} | {"fill_s": round(time.monotonic() - started, 1)}
        for name, question in (
            ("parameters_gin", f"select run_name from training_runs where all_parameters @> '{_RARE}'"),
            ("metrics_gin", "select uid from epoch_results where quantitative_metrics @> '{\"worst\": 4711}'"),
        ):
            plan = "\n".join(str(row[0]) for row in connection.execute(f"explain (analyze) {question}".encode()))
            figures[f"{name}_used"] = "Bitmap Index Scan on" in plan and "Seq Scan" not in plan
            figures[f"{name}_ms"] = _ms(lambda q=question: connection.execute(q.encode()).fetchall())
            print(plan + "\n")
    store = PostgresStore(url)
    some = store.runs("night-5")[7]
    rare = [Condition.parse("network_dim == 16"), Condition.parse("seed == 17")]
    new = _run(10**6)
    figures |= {
        "find_equal_ms": _ms(lambda: store.find_runs(rare)),
        "find_above_ms": _ms(lambda: store.find_runs([Condition.parse("network_dim > 120")])),
        "run_ms": _ms(lambda: store.run("night-5", 7)),
        "epochs_ms": _ms(lambda: store.epochs(some.uid)),
        "history_of_campaign_ms": _ms(lambda: store.history("night-5")),
        "save_run_ms": _ms(lambda: store.save_run(new)),
        "save_epoch_ms": _ms(lambda: store.save_epoch(_epoch(new, 1))),
    }
    started = time.monotonic()
    figures["history_rows"] = sum(len(h.epochs) for h in store.history())
    figures["history_of_all_s"] = round(time.monotonic() - started, 1)
    store.save_run(new)
    figures["history_again_ms"] = _ms(store.history)
    store.close()
    return figures


def outage(server: EmbeddedPostgres, url: str, folder: Path, seconds: float) -> dict[str, Any]:
    """Rows that a writer saves while the server is stopped for some seconds, and those that are there afterwards."""
    campaign = "outage"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("truncate training_runs, epoch_results cascade")
    store, saved = OutboxStore(PostgresStore(url), folder), 0
    with _away(server, seconds) as back:
        while not back.is_set():
            run = _run(saved, campaign)
            store.save_run(run)
            store.save_epoch(_epoch(run, 1))
            saved += 1
            time.sleep(0.1)
    waited = store.waiting
    store.flush()
    store.flush()
    store.close()
    with psycopg.connect(url) as connection:
        kept = _one(connection, "select count(*) from training_runs where campaign = 'outage'")
        epochs = _one(connection, "select count(*) from epoch_results")
    return {
        "away_s": seconds, "away_saved": 2 * saved, "away_waited": waited, "away_kept": kept + epochs,
        "away_lost": 2 * saved - kept - epochs, "away_refused": len(store.refused()),
    }  # fmt: skip


@contextmanager
def _away(server: EmbeddedPostgres, seconds: float) -> Iterator[threading.Event]:
    """The server goes away after a second, and is back when the event is set."""
    back = threading.Event()

    def go() -> None:
        time.sleep(1)
        server.stop()
        time.sleep(seconds)
        server.start()
        time.sleep(1)
        back.set()

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield back
    finally:
        thread.join()


def _run(number: int, campaign: str = "new") -> TrainingRun:
    return TrainingRun(
        uid=run_uid(_HOME, campaign, number), campaign=campaign, number=number, run_name=f"{campaign}-{number}",
        base_model="sd15", dataset="knights@1", all_parameters={"network_dim": 16}, started_at=_NOW,
    )  # fmt: skip


def _epoch(run: TrainingRun, epoch: int) -> EpochResult:
    metrics = EpochMetrics(worst=1.0)
    return EpochResult(
        uid=epoch_uid(run.uid, epoch),
        run_uid=run.uid,
        epoch_number=epoch,
        quantitative_metrics=metrics,
        created_at=_NOW,
    )


def _ms(work: Callable[[], object]) -> float:
    times = []
    for _ in range(5):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return round(1000 * statistics.median(times), 2)


def _one(connection: psycopg.Connection[Any], question: str) -> int:
    row = connection.execute(question.encode()).fetchone()
    return int(row[0]) if row else 0


if __name__ == "__main__":
    main()
