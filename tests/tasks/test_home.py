from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schema.errors import ConfigError, StoreError
from tasks.home import Home, copy_atomically, replace_text

PARTS = st.sampled_from(["..", ".", "", "a", "runs", "night", "000", "\0", "~", "...", "etc"])
PATHS = st.builds(lambda parts, lead: lead + "/".join(parts), st.lists(PARTS, max_size=6), st.sampled_from(["", "/"]))
PLACES: dict[str, Callable[[Home, str], Path]] = {
    "trial": lambda home, name: home.trial(name, 0).root,
    "base": lambda home, name: home.base_samples(name).root,
    "file": Home.campaign_file, "report": Home.report, "impact": Home.impact, "best": Home.best_lora,
}  # fmt: skip


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


def test_trials_are_told_from_other_folders(tmp_path: Path) -> None:
    home = Home.at(tmp_path)
    assert not home.has_trials()
    home.base_samples("night").root.mkdir(parents=True)
    assert not home.has_trials()
    home.trial("night", 1000).root.mkdir()
    assert home.has_trials()


def test_a_copy_replaces_its_target_whole(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("new")
    (tmp_path / "b").write_text("old")
    copy_atomically(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "new"
    assert not (tmp_path / "b.part").exists()


@pytest.mark.parametrize("place", PLACES)
@given(name=st.one_of(PATHS, st.text(max_size=12)))
@example(name="../../night")
@example(name="..")
@example(name="")
def test_no_name_of_a_campaign_leads_out_of_the_home(place: str, name: str) -> None:
    home = Home(Path("/home/of/pixelloop"))
    try:
        found = PLACES[place](home, name)
    except ConfigError:
        return
    assert found.is_relative_to(home.root)
    assert ".." not in found.parts
    assert len(found.relative_to(home.root).parts) == {"trial": 3, "base": 3, "file": 2}.get(place, 1)


@given(PATHS)
@example("/etc/passwd")
@example("runs/night/000/../../../../elsewhere")
def test_no_path_of_a_row_leads_out_of_the_home(path: str) -> None:
    home = Home(Path("/home/of/pixelloop"))
    for folder, inside in ((None, home.root), (home.trial("night", 0), home.trial("night", 0).root)):
        try:
            found = home.inside(path, folder)
        except StoreError:
            continue
        assert found.resolve().is_relative_to(inside)


def test_a_link_out_of_the_home_is_not_followed_but_the_runs_may_lie_on_another_disk(tmp_path: Path) -> None:
    home, disk = Home.at(tmp_path / "home"), tmp_path / "disk"
    disk.mkdir()
    home.root.mkdir()
    (home.root / "runs").symlink_to(disk)
    sheet = home.trial("night", 0).sheet(1)
    assert home.inside(home.relative(sheet)).resolve() == disk / "night" / "000" / "samples" / "epoch-001.png"
    (home.root / "away").symlink_to(tmp_path)
    with pytest.raises(StoreError, match="lies outside"):
        home.inside("away/elsewhere.png")


def test_a_text_that_breaks_off_leaves_the_old_one(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    replace_text(page, "old")
    with pytest.raises(ZeroDivisionError):
        replace_text(page, (str(1 // left) for left in (1, 0)))
    assert page.read_text() == "old"
    assert replace_text(page, iter(("n", "ew"))).read_text() == "new"


def test_two_writers_of_one_file_do_not_tread_on_each_other_though_they_have_one_process_number(tmp_path: Path) -> None:
    """As in two containers, each of which counts its processes from 1."""
    page, first = tmp_path / "page.html", iter(["be", "gun"])

    def second() -> Iterator[str]:
        yield next(first)
        replace_text(page, "other")
        yield next(first)

    assert replace_text(page, second()).read_text() == "begun"
    assert list(tmp_path.iterdir()) == [page]


@pytest.mark.parametrize("kept", ["", "{}", '{"uid": 7}', "[1]", '{"uid": "no number"}'])
def test_a_home_whose_identity_is_broken_is_one_sentence(tmp_path: Path, kept: str) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "home.json").write_text(kept)
    with pytest.raises(ConfigError, match=r"home.json does not hold the identity of a home"):
        _ = Home.at(tmp_path / "home").uid
