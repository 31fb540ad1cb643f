"""A torn, changed or hostile file is never taken for a backup."""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from schema.errors import ConfigError
from tasks.backup.archive import extract, written


@pytest.fixture
def backup(tmp_path: Path) -> Path:
    (tmp_path / "rows").write_bytes(b"r" * 5000)
    (tmp_path / "empty").touch()
    with written(tmp_path / "a.pixelloop") as archive:
        assert archive.add("files/rows", tmp_path / "rows")
        assert archive.add("files/runs/ü b", tmp_path / "empty")
        assert not archive.add("files/gone", tmp_path / "gone")
        archive.close(
            made_at=datetime.now(UTC), uid=uuid.uuid4(), earlier=(), path="/old", choice="all", databases={},
            elsewhere=None, files=2,
        )  # fmt: skip
    return tmp_path / "a.pixelloop"


def test_what_went_in_comes_out(backup: Path, tmp_path: Path) -> None:
    assert extract(backup, tmp_path / "out").path == "/old"
    assert (tmp_path / "out" / "files" / "rows").read_bytes() == b"r" * 5000
    assert (tmp_path / "out" / "files" / "runs" / "ü b").read_bytes() == b""
    assert backup.stat().st_mode & 0o777 == 0o600


def test_a_backup_cut_off_anywhere_is_refused(backup: Path, tmp_path: Path) -> None:
    data = backup.read_bytes()
    end = data.rindex(b"manifest.json")
    for size in (0, 1, 100, 512, 3000, 5632, 6144, end, end + 600):
        (tmp_path / "torn").write_bytes(data[:size])
        with pytest.raises(ConfigError, match="is torn, or no backup"):
            extract(tmp_path / "torn", tmp_path / f"out{size}")


def test_a_changed_byte_is_noticed(backup: Path, tmp_path: Path) -> None:
    backup.write_bytes(backup.read_bytes().replace(b"rrr", b"rxr", 1))
    with pytest.raises(ConfigError, match="files/rows is not what was backed up"):
        extract(backup, tmp_path / "out")


def test_a_writer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="disk"), written(tmp_path / "a.pixelloop"):
        raise OSError("disk full")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_overwritten(backup: Path) -> None:
    with pytest.raises(ConfigError, match="exists"), written(backup):
        pass


def _member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(tar: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = kind, link
        tar.addfile(info, io.BytesIO())

    return add


@pytest.mark.parametrize(
    "hostile",
    [
        _member("../outside"),
        _member("files/../../outside"),
        _member("/etc/outside"),
        _member(""),
        _member("files/link", tarfile.SYMTYPE, "/etc/passwd"),
        _member("files/link", tarfile.LNKTYPE, "/etc/passwd"),
        _member("files/pipe", tarfile.FIFOTYPE),
        _member("files", tarfile.DIRTYPE),
        _member("postgres/server/data/postgresql.conf"),
        _member("prefect/password"),
        _member("up.json"),
        _member("database"),
    ],
)
def test_what_leads_out_of_the_home_is_refused(hostile: Callable[[tarfile.TarFile], None], tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "evil", "w") as tar:
        hostile(tar)
        text = json.dumps({"pixelloop": "backup", "version": 1, "members": {}}).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    with pytest.raises(ConfigError, match="no backup of pixelloop"):
        extract(tmp_path / "evil", tmp_path / "out" / "in")
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "out" / "outside").exists()


@pytest.mark.parametrize("text", ["[]", "3", "{", "", '{"pixelloop": "backup", "version": 1}', '{"members": {"a": 1}}'])
def test_a_list_of_another_kind_is_refused(text: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "odd", "w") as tar:
        info = tarfile.TarInfo("manifest.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    with pytest.raises(ConfigError, match="no backup of pixelloop"):
        extract(tmp_path / "odd", tmp_path / "out")


@pytest.mark.parametrize("path", ["", "relative", "/a\0b"])
def test_a_home_without_a_proper_path_is_refused(backup: Path, tmp_path: Path, path: str) -> None:
    with tarfile.open(tmp_path / "odd", "w") as tar:
        facts = {
            "made_at": "2026-11-28T00:00:00Z", "uid": str(uuid.uuid4()), "earlier": [], "path": path, "choice": "all",
            "databases": {}, "elsewhere": None, "files": 0, "members": {},
        }  # fmt: skip
        text = json.dumps(facts).encode()
        info = tarfile.TarInfo("manifest.json")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text))
    with pytest.raises(ConfigError, match="no backup of pixelloop"):
        extract(tmp_path / "odd", tmp_path / "out")


def test_no_file_is_no_traceback(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        extract(tmp_path / "nothing", tmp_path / "out")


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_damage_is_noticed(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("damage")
    (folder / "rows").write_bytes(b"r" * 700)
    with written(folder / "a") as archive:
        archive.add("files/rows", folder / "rows")
        archive.close(
            made_at=datetime(2026, 11, 28, tzinfo=UTC), uid=uuid.UUID(int=1), earlier=(), path="/old", choice="all",
            databases={}, elsewhere=None, files=1,
        )  # fmt: skip
    whole = (folder / "a").read_bytes()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    (folder / "b").write_bytes(changed[: data.draw(st.integers(1, len(changed)))])
    with contextlib.suppress(ConfigError):
        extract(folder / "b", folder / "out")
        assert (folder / "out" / "files" / "rows").read_bytes() == b"r" * 700
