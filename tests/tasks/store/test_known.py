"""What a reader knows of the history is what a newcomer would read, whoever has written meanwhile."""

from __future__ import annotations

import random

import psycopg
import pytest

from tasks.store.postgres import PostgresStore
from tests.tasks.store.store_contract import make_epoch, make_run


@pytest.mark.parametrize("seed", range(4))
def test_history_is_as_if_read_anew(postgres_url: str, seed: int) -> None:
    rng = random.Random(seed)
    reader, writer = PostgresStore(postgres_url), PostgresStore(postgres_url)
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        for _ in range(30):
            run = make_run(rng.randrange(5)).changed(quality=float(rng.randrange(100)))
            deed = rng.choice(("run", "epoch", "delete", "reader", "touch"))
            if deed == "delete":
                connection.execute("delete from training_runs where uid = %s", [run.uid])
            elif deed == "touch":
                connection.execute("update epoch_results set quality = %s where epoch_number = 2", [rng.random()])
            else:
                store = reader if deed == "reader" else writer
                store.save_run(run)
                if deed == "epoch":
                    store.save_epoch(make_epoch(run, rng.randrange(1, 4), float(rng.randrange(100))))
            fresh = PostgresStore(postgres_url)
            assert reader.history() == fresh.history()
            assert reader.history("night") == reader.history()
            fresh.close()
    reader.close()
    writer.close()


def test_one_campaign_is_the_same_whether_all_were_read_or_not(postgres_url: str) -> None:
    writer = PostgresStore(postgres_url)
    for campaign in ("night", "day"):
        for number in (1, 0):
            run = make_run(number, campaign)
            writer.save_run(run)
            for epoch in (2, 1):
                writer.save_epoch(make_epoch(run, epoch))
    alone = writer.history("night")
    assert [h.run.number for h in alone] == [0, 1]
    assert [e.epoch_number for e in alone[0].epochs] == [1, 2]
    assert len(writer.history()) == 4
    assert writer.history("night") == alone
    writer.close()


def test_only_what_changed_is_read_again(postgres_url: str) -> None:
    store = PostgresStore(postgres_url)
    for number in range(3):
        store.save_run(make_run(number))
    before = {h.run.uid: h for h in store.history()}
    store.save_run(make_run(1).changed(quality=7.0))
    after = {h.run.uid: h for h in store.history()}
    assert [uid for uid in after if after[uid] is not before[uid]] == [make_run(1).uid]
    store.close()


def test_what_another_writer_has_not_yet_ended_is_not_missed(postgres_url: str) -> None:
    reader, writer = PostgresStore(postgres_url), PostgresStore(postgres_url)
    for number in range(2):
        writer.save_run(make_run(number))
    with psycopg.connect(postgres_url) as slow:
        slow.execute("update training_runs set quality = 7 where number = 0")
        assert [h.run.quality for h in reader.history()] == [make_run(0).quality, make_run(1).quality]
        writer.save_run(make_run(1).changed(quality=8.0))  # later, and ends sooner
        assert [h.run.quality for h in reader.history()] == [make_run(0).quality, 8.0]
    assert [h.run.quality for h in reader.history()] == [7.0, 8.0]
    reader.close()
    writer.close()
