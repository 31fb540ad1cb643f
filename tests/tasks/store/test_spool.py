"""Whatever stands in an outbox, reading it ends with rows and reasons, never with an error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.store.memory import MemoryStore
from tasks.store.outbox import OutboxStore
from tasks.store.spool import parse_row, readable, refused_rows
from tests.refusals import refusal_of
from tests.tasks.store.store_contract import make_epoch, make_run

RUN = make_run(0, "demo")
ROWS: list[dict[str, Any]] = [
    {"kind": "campaign", "data": {"name": "demo", "settings": {}, "status": "running", "end_reason": None}},
    {"kind": "run", "data": RUN.model_dump(mode="json")},
    {"kind": "epoch", "data": make_epoch(RUN, 1).model_dump(mode="json")},
]
odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.just(10**400), st.just("\0"),
    st.just([]), st.just({}), st.lists(st.none(), max_size=2), st.just("\ud800"),
)  # fmt: skip


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    """A row with one value changed, a torn row, or any bytes."""
    kind = draw(st.sampled_from(["changed", "torn", "bytes", "json"]))
    if kind == "bytes":
        return draw(st.binary(max_size=40)).replace(b"\n", b"")
    if kind == "json":
        return json.dumps(draw(odd)).encode()
    row = json.loads(json.dumps(draw(st.sampled_from(ROWS))))
    if kind == "torn":
        text = json.dumps(row).encode()
        return text[: draw(st.integers(0, len(text)))]
    place = draw(st.sampled_from([row, row["data"]]))
    place[draw(st.sampled_from(sorted(place)))] = draw(odd)
    return json.dumps(row).encode()


def not_blank(line: bytes) -> bool:
    return bool(line.strip())


fuzz = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@fuzz
@given(lines())
def test_any_line_is_a_row_or_a_reason(line: bytes) -> None:
    rows, unreadable = readable(line)
    assert b"".join([*unreadable, *rows]) == line
    for part in rows:
        refusal_of(lambda part=part: parse_row(part)[1](MemoryStore()))


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(lines().filter(not_blank), max_size=5), st.lists(lines().filter(not_blank), max_size=3))
def test_an_outbox_of_any_lines_is_emptied_and_nothing_vanishes(
    tmp_path_factory: pytest.TempPathFactory, waiting: list[bytes], refused: list[bytes]
) -> None:
    folder: Path = tmp_path_factory.mktemp("outbox")
    (folder / "waiting.jsonl").write_bytes(b"".join(line + b"\n" for line in waiting))
    (folder / "refused.jsonl").write_bytes(b"".join(line + b"\n" for line in refused))
    before = len(refused_rows(folder))
    store = MemoryStore()
    outbox = OutboxStore(store, folder)
    outbox.save_run(RUN.changed(run_name="after"))
    assert outbox.run("demo", 0).run_name == "after"  # what comes after odd rows is stored
    assert (folder / "waiting.jsonl").read_bytes() == b""
    assert len(outbox.refused()) >= before
