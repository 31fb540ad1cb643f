from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from schema.errors import ConfigError
from tasks import identity
from tasks.home import Home


def made(path: Path) -> Home:
    home = Home.at(path)
    _ = home.uid
    return home


def settle(home: Home, shared: bool = False, alone: bool = True) -> tuple[str | None, list[str]]:
    followed: list[str] = []

    def follow(former: str) -> bool:
        followed.append(former)
        return alone

    return identity.settle(home.root, shared, follow), followed


def test_a_copy_gets_an_identity_of_its_own_and_keeps_its_runs(tmp_path: Path) -> None:
    home = made(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = Home.at(tmp_path / "b")
    told, followed = settle(copy)
    assert told is not None
    assert "a copy of" in told
    assert followed == [str(home.root)]
    assert copy.uid != home.uid
    assert copy.uids == {copy.uid, home.uid}
    assert settle(copy) == (None, [])
    assert settle(home) == (None, [])


def test_runs_in_a_database_of_both_stay_the_originals(tmp_path: Path) -> None:
    home = made(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    copy = Home.at(tmp_path / "b")
    settle(copy, shared=True)
    assert copy.uids == {copy.uid}
    assert home.uid not in copy.uids


def test_a_moved_home_keeps_its_identity(tmp_path: Path) -> None:
    home = made(tmp_path / "a")
    uid = home.uid
    moved = Home.at((tmp_path / "a").rename(tmp_path / "b"))
    assert settle(moved, alone=False)[0] is None  # later, when nobody works with the former path
    told, followed = settle(moved)
    assert told is not None
    assert "moved from" in told
    assert followed == [str(home.root)]
    assert moved.uids == {uid}


@pytest.mark.parametrize("old", [True, False])
def test_a_home_that_stays_is_left_alone(tmp_path: Path, old: bool) -> None:
    home = made(tmp_path / "a")
    uid = home.uid
    if old:  # as code of November wrote it
        (home.root / "home.json").write_text(json.dumps({"uid": str(uid)}))
    assert settle(home) == (None, [])
    assert home.uids == {uid}
    assert identity.of(home.root / "home.json").path == str(home.root)


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"uid": 5}', "[]", "null", "", '{"uid": "00000000-0000-0000-0000-000000000000", "path": 5}',
        '{"uid": "00000000-0000-0000-0000-000000000000", "path": "/a\\u0000b"}',
        '{"uid": "00000000-0000-0000-0000-000000000000", "folder": [1e400, 2]}',
    ],
)  # fmt: skip
def test_a_broken_file_is_a_sentence(tmp_path: Path, text: str) -> None:
    (tmp_path / "home.json").write_text(text)
    with pytest.raises(ConfigError, match="does not hold the identity of a home"):
        identity.read(tmp_path / "home.json")
