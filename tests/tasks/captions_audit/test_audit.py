from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

from demo.portraits import write_dataset
from schema.errors import BadDataError
from schema.findings import DataAudit, Level
from schema.parameters import Parameters
from tasks.captions_audit.audit import audit_dataset
from tasks.captions_audit.captions import least_tokens

SHUFFLED: Parameters = {"shuffle_caption": True, "keep_tokens": 1}


@pytest.fixture
def portraits(tmp_path: Path) -> Path:
    write_dataset(tmp_path / "portraits", 20, 7, 64)
    return tmp_path / "portraits"


def checks(audit: DataAudit, *levels: Level) -> dict[str, int]:
    return {f.check: f.count for f in audit.findings if not levels or f.level in levels}


def rewrite(folder: Path, name: str, text: str) -> None:
    (folder / f"portrait_{name}.txt").write_text(text)


def test_clean_data_have_neither_errors_nor_warnings(portraits: Path) -> None:
    audit = audit_dataset(portraits, SHUFFLED)
    assert checks(audit, Level.ERROR, Level.WARNING) == {}
    assert audit.pictures == 20
    assert audit.protected == ("pixel art",)
    assert sum(audit.balance["background"].values()) == 20


def test_missing_and_empty_captions_and_broken_pictures_stop_a_night(portraits: Path) -> None:
    (portraits / "portrait_000.txt").unlink()
    rewrite(portraits, "001", " \n")
    (portraits / "portrait_002.png").write_bytes(b"no picture")
    audit = audit_dataset(portraits, {})
    assert checks(audit, Level.ERROR) == {"missing_caption": 1, "empty_caption": 1, "unreadable": 1}


def test_captions_of_other_pictures_are_found(portraits: Path) -> None:
    files = sorted(portraits.glob("*.txt"))[:6]
    texts = [file.read_text() for file in files]
    for file, text in zip(files, texts[1:] + texts[:1], strict=True):
        file.write_text(text)
    (found,) = audit_dataset(portraits, {}).warnings
    assert found.check == "caption_mismatch"
    assert set(found.files) <= {file.with_suffix(".png").name for file in files}


@pytest.mark.parametrize(
    ("caption", "check"),
    [
        ("pixel art, blue background (#2f6fd6), brown hair (#2f6fd6)", "shared_code"),
        ("pixel art, brown hair (#5a3a22), #2f6fd6", "code_without_feature"),
        ("pixel art, " + ", ".join(f"thing{i} word" for i in range(40)), "too_many_tokens"),
    ],
)
def test_what_is_wrong_with_one_caption(portraits: Path, caption: str, check: str) -> None:
    rewrite(portraits, "003", caption)
    assert checks(audit_dataset(portraits, {}), Level.WARNING)[check] == 1


def test_a_feature_may_be_named_twice_with_its_code(portraits: Path) -> None:
    rewrite(portraits, "003", "pixel art, brown hair (#5a3a22), long hair (#5a3a22)")
    assert "shared_code" not in checks(audit_dataset(portraits, {}))


def test_duplicates_and_equal_captions(portraits: Path) -> None:
    (portraits / "copy.png").write_bytes((portraits / "portrait_004.png").read_bytes())
    (portraits / "copy.txt").write_text((portraits / "portrait_004.txt").read_text())
    found = checks(audit_dataset(portraits, {}), Level.WARNING)
    assert found == {"duplicates": 2, "equal_captions": 2}


def test_near_twins_are_noted(portraits: Path) -> None:
    with Image.open(portraits / "portrait_005.png") as image:
        twin = image.convert("RGB")
    twin.putpixel((30, 30), (255, 0, 0))
    twin.save(portraits / "twin.png")
    (portraits / "twin.txt").write_text("pixel art, twin")
    assert checks(audit_dataset(portraits, {}))["near_twins"] == 2


def test_soft_edges(portraits: Path) -> None:
    for path in sorted(portraits.glob("*.png"))[:5]:
        with Image.open(path) as image:
            soft = image.convert("RGB").filter(ImageFilter.GaussianBlur(1.5))
        soft.save(path)
    assert checks(audit_dataset(portraits, {}), Level.WARNING)["soft_edges"] == 5


def test_sizes_and_upscaling_that_is_no_whole_number(portraits: Path) -> None:
    with Image.open(portraits / "portrait_006.png") as image:
        native = image.convert("RGB").resize((16, 16), Image.Resampling.NEAREST)
    native.resize((150, 150), Image.Resampling.NEAREST).save(portraits / "portrait_006.png")
    found = audit_dataset(portraits, {"resolution": 100})
    assert checks(found, Level.WARNING) == {"fractional_upscaling": 1, "mixed_sizes": 1, "too_small": 19}
    assert "16 art pixels" in next(f.mend for f in found.findings if f.check == "fractional_upscaling")


def test_few_pictures(tmp_path: Path) -> None:
    write_dataset(tmp_path / "p", 4, 7, 64)
    assert checks(audit_dataset(tmp_path / "p", {}), Level.WARNING) == {"few_pictures": 4}


def test_sides_count_only_where_pictures_are_mirrored(portraits: Path) -> None:
    rewrite(portraits, "003", "pixel art, earring on the left")
    assert checks(audit_dataset(portraits, {}), Level.NOTE)["sided_tags"] == 1
    assert checks(audit_dataset(portraits, {"flip_aug": True}), Level.WARNING)["sided_tags"] == 1


def test_a_trigger_that_shuffling_moves(portraits: Path) -> None:
    found = checks(audit_dataset(portraits, {"shuffle_caption": True, "keep_tokens": 0}), Level.WARNING)
    assert found == {"unprotected_trigger": 20}
    assert checks(audit_dataset(portraits, {"keep_tokens": 0}), Level.WARNING) == {}


def test_balance_is_read_from_the_captions(portraits: Path) -> None:
    for index, path in enumerate(sorted(portraits.glob("*.txt"))):
        path.write_text(f"pixel art, {'green' if index else 'red'} background, {random.Random(index).random()}")
    audit = audit_dataset(portraits, {})
    assert audit.balance == {"background": {"green": 19, "red": 1}}
    assert checks(audit, Level.NOTE)["unbalanced"] == 19


def test_tokens_are_never_counted_too_high() -> None:
    assert least_tokens("brown hair (#5a3a22)") == 10


def test_no_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadDataError, match="check the path"):
        audit_dataset(tmp_path / "nowhere", {})


@pytest.mark.parametrize("size", [(1, 1), (2, 2), (1, 5000), (5000, 2)])
def test_a_picture_too_small_to_measure_is_a_finding(portraits: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(portraits / "portrait_003.png")
    found = {f.check: f for f in audit_dataset(portraits, {}).findings}
    assert found["tiny_picture"].files == ("portrait_003.png",)


def test_a_pipe_in_place_of_a_caption_does_not_block(portraits: Path) -> None:
    (portraits / "portrait_000.txt").unlink()
    os.mkfifo(portraits / "portrait_000.txt")
    (portraits / "portrait_001.txt").unlink()
    (portraits / "portrait_001.txt").symlink_to("/dev/zero")
    audit = audit_dataset(portraits, {})
    assert checks(audit, Level.ERROR) == {"missing_caption": 2}


def test_a_large_picture_takes_bounded_memory(portraits: Path) -> None:
    small = Image.open(portraits / "portrait_000.png")
    small.resize((4096, 4096), Image.Resampling.NEAREST).save(portraits / "portrait_000.png")
    code = (
        "import resource, sys; from pathlib import Path;"
        "from tasks.captions_audit.audit import audit_dataset;"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss;"
        "audit = audit_dataset(Path(sys.argv[1]), {});"
        "print(audit.pictures, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(portraits)], capture_output=True, text=True, check=True)
    pictures, kilobytes = map(int, run.stdout.split())
    assert pictures == 20
    assert kilobytes < 1.2e6  # it took 6 GB at 360 bytes a pixel


def test_captions_without_any_tag_are_audited(portraits: Path) -> None:
    for file in portraits.glob("*.txt"):
        file.write_text(",")
    assert audit_dataset(portraits, {"shuffle_caption": True}).pictures == 20
