from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks.durable import replace_text


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    file.write_text("before")

    def torn() -> Iterator[str]:
        yield "half"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        replace_text(file, torn())
    assert file.read_text() == "before"
    replace_text(file, "after", mode=0o600)
    assert file.read_text() == "after"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]
