from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from schema.errors import BadDataError
from tasks.training.dataset import (
    Placement,
    caption_path,
    dataset_fingerprint,
    find_samples,
    load_picture,
    num_images,
)


def picture(path: Path, size: tuple[int, int] = (4, 4), colour: str = "red") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    path.with_suffix(".txt").write_text("pixel art, hair\nsecond line")


def test_kohyas_folders_carry_their_repeats(tmp_path: Path) -> None:
    picture(tmp_path / "10_knight" / "a.png")
    picture(tmp_path / "2_king" / "b.png")
    picture(tmp_path / "notes" / "c.png")
    found = find_samples(tmp_path, ".txt", num_repeats=3)
    assert [(s.path.name, s.repeats) for s in found] == [("a.png", 30), ("b.png", 6)]
    assert found[0].caption.splitlines()[0] == "pixel art, hair"
    assert num_images(tmp_path) == 2


def test_the_fingerprint_changes_with_a_caption_and_not_with_the_place(tmp_path: Path) -> None:
    for name in ("one", "two"):
        picture(tmp_path / name / "set" / "a.png")
    one, two = (dataset_fingerprint(tmp_path / n / "set") for n in ("one", "two"))
    assert one == two
    (tmp_path / "two" / "set" / "a.txt").write_text("another caption")
    assert dataset_fingerprint(tmp_path / "two" / "set") != one


def test_pixel_art_is_enlarged_without_new_colours(tmp_path: Path) -> None:
    Image.fromarray(np.eye(4, dtype=np.uint8)[..., None].repeat(3, 2) * 255).save(tmp_path / "a.png")
    loaded = load_picture(tmp_path / "a.png", Placement.of((4, 4), (16, 16)), "nearest")
    assert loaded.shape == (3, 16, 16)
    assert set(np.unique(loaded)) == {-1.0, 1.0}


def test_a_wide_picture_covers_the_size_and_is_cut_in_the_middle(tmp_path: Path) -> None:
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 255
    Image.fromarray(wide).save(tmp_path / "a.png")
    assert (load_picture(tmp_path / "a.png", Placement.of((8, 4), (4, 4)), "nearest") == 1).all()


@given(st.one_of(st.text(), st.text(st.sampled_from("./\\ab\0"))))
@example("/../../secret.txt")
@example("txt")
@example(".")
def test_a_caption_always_lies_beside_its_picture(extension: str) -> None:
    picture = Path("/data/set/a.png")
    try:
        assert caption_path(picture, extension).parent == picture.parent
    except BadDataError:
        return


def test_links_in_a_data_set_are_followed_and_strange_names_are_only_names(tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "linked.png")
    folder = tmp_path / "set"
    picture(folder / "[a]*.png")
    for ending in (".png", ".txt"):
        (folder / f"b{ending}").symlink_to(tmp_path / "elsewhere" / f"linked{ending}")
    assert [sample.path.name for sample in find_samples(folder, ".txt", 1)] == ["[a]*.png", "b.png"]
    before = dataset_fingerprint(folder)
    (folder / "[a]*.txt").write_text("another caption")
    assert dataset_fingerprint(folder) != before
    with pytest.raises(BadDataError, match="caption_extension"):
        find_samples(folder, "/../elsewhere/linked.txt", 1)
