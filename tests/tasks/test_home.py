from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tasks.home import Home, copy_atomically, replace_text


def test_a_home_keeps_its_identity_when_moved(tmp_path: Path) -> None:
    home = Home.at(tmp_path / "a")
    assert not home.exists
    identity = home.uid
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert Home.at(tmp_path / "b").uid == identity


def test_several_processes_agree_on_the_identity(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: Home.at(tmp_path / "home").uid, range(16)))
    assert len(found) == 1
    assert [p.name for p in (tmp_path / "home").iterdir()] == ["home.json"]


def test_paths_inside_the_home_are_kept_relative(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    inside = home.trial("night", 3).sheet(2)
    assert home.relative(inside) == "runs/night/003/samples/epoch-002.png"
    assert home.absolute(home.relative(inside)) == inside
    outside = tmp_path.parent / "elsewhere" / "campaign.toml"
    assert home.absolute(home.relative(outside)) == outside


def test_a_copy_replaces_its_target_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    copy_atomically(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert not (tmp_path / "b.part").exists()


def test_a_text_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    replace_text(page, "old")
    with pytest.raises(ZeroDivisionError):
        replace_text(page, (str(1 // left) for left in (1, 0)))
    assert page.read_text() == "old"
    assert replace_text(page, iter(("n", "ew"))).read_text() == "new"
