"""One opener for all picture files: a picture, or one sentence with the file's name."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from schema.errors import BadDataError
from tasks.pictures import open_picture, picture_size, reduced
from tests.refusals import refusal_of


def png(width: int, height: int) -> bytes:
    """A PNG that says it has this size, whatever follows."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))


def encoded(kind: str) -> bytes:
    rng = random.Random(0)
    picture = Image.new("RGB", (16, 16))
    picture.putdata([(rng.randrange(256), rng.randrange(256), rng.randrange(256)) for _ in range(256)])
    buffer = io.BytesIO()
    picture.save(buffer, kind)
    return buffer.getvalue()


FILES = {kind: encoded(kind) for kind in ("PNG", "JPEG", "WEBP", "BMP")}


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_is_a_picture_or_a_sentence(
    tmp_path_factory: pytest.TempPathFactory, kind: str, data: st.DataObject
) -> None:
    content = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    message = refusal_of(lambda: open_picture(file).size)
    assert not message or file.name in message


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 1), (13_000, 13_000)])
def test_a_picture_too_large_to_decode_is_refused_unread(tmp_path: Path, size: tuple[int, int]) -> None:
    file = tmp_path / "huge.png"
    file.write_bytes(png(*size))
    for read in (open_picture, picture_size):
        with pytest.raises(BadDataError, match=r"huge\.png (has|cannot be read)"):
            read(file)


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(BadDataError, match=r"pipe\.png is not a regular file"):
        open_picture(tmp_path / "pipe.png")


def test_a_reduced_picture_keeps_its_colours_and_hard_edges() -> None:
    art = np.random.default_rng(0).integers(0, 256, (24, 24, 3), np.uint8)
    large = Image.fromarray(art.repeat(100, 0).repeat(100, 1))
    small, step = reduced(large)
    assert small.size == (800, 800)
    assert step == 3
    assert (np.asarray(small)[16::33, 16::33][:24, :24] == art).mean() > 0.9
    assert reduced(small) == (small, 1)
    assert reduced(Image.new("RGB", (1, 5000)))[0].size == (1, 1000)
