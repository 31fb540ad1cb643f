"""Read TensorBoard event files without TensorBoard.

TensorFlow's record format is: length, its checksum, data, its checksum. The data is a protobuf `Event`:
wall_time = 1, step = 2, summary = 5 {value = 1 {tag = 1, simple_value = 2, tensor = 8 {float_val = 5}}}.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from schema.errors import ConfigError
from tasks.history.facts import EpochFound, Found, whole_number

_EPOCH = ("loss/epoch_average", "loss/epoch")  # sd-scripts' tag, and that of older versions


@dataclass(frozen=True)
class Scalar:
    """Hold one value of a curve; `wall` is in seconds since 1970."""

    tag: str
    step: int
    value: float
    wall: float


def read_events(path: Path) -> Found:
    """Read the loss of each epoch.

    Event files do not name their run. The result has an empty name, and is matched to a run by its time.

    Raises:
        ConfigError: the file is not an event file.
    """
    scalars = list(read_scalars(path))
    losses = {s.step: s for s in scalars if s.tag in _EPOCH and whole_number(s.step) is not None}
    epochs = tuple(
        EpochFound(s.step, loss=s.value, at=datetime.fromtimestamp(s.wall, UTC)) for _, s in sorted(losses.items())
    )
    first = min((s.wall for s in scalars), default=None)
    at = datetime.fromtimestamp(first, UTC) if first is not None else None
    notes = () if epochs else (f"{path.name}: it holds no loss/epoch_average",)
    return Found(str(path), "", epochs=epochs, at=at, notes=notes)


def read_scalars(path: Path) -> Iterator[Scalar]:
    """Yield all scalars of an event file, up to a record that a kill has cut off.

    Raises:
        ConfigError: the file is not an event file.
    """
    data, position = path.read_bytes(), 0
    while position + 12 <= len(data):
        # 8 bytes of length and 4 of checksum before the data, 4 of checksum after it. Checksums are not verified.
        (length,) = struct.unpack_from("<Q", data, position)
        start, position = position + 12, position + 16 + length
        if position > len(data):
            return
        try:
            yield from _event(data[start : start + length])
        except (struct.error, IndexError, UnicodeDecodeError, ValueError):
            raise ConfigError(f"{path} is no TensorBoard event file") from None


def _event(data: bytes) -> Iterator[Scalar]:
    wall, step, summaries = 0.0, 0, list[bytes]()
    for number, value in _fields(data):
        if number == 1:
            (wall,) = struct.unpack("<d", value)
        elif number == 2:
            step = value
        elif number == 5:
            summaries.append(value)
    for summary in summaries:
        for number, value in _fields(summary):
            if number == 1 and (scalar := _scalar(value)) is not None:
                yield Scalar(scalar[0], step, scalar[1], wall)


def _scalar(data: bytes) -> tuple[str, float] | None:
    tag, found = "", None
    for number, value in _fields(data):
        if number == 1:
            tag = value.decode()
        elif number == 2:
            (found,) = struct.unpack("<f", value)
        elif number == 8:
            values = [v for n, v in _fields(value) if n == 5 and len(v) >= 4]
            found = struct.unpack("<f", values[0][:4])[0] if values else found
    return None if found is None else (tag, float(found))


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and raw value of each field of a protobuf message: an int for varints, else bytes."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if kind == 2:
            length, position = _varint(data, position)
        elif kind in (1, 5):
            length = 8 if kind == 1 else 4
        else:
            raise ValueError("unknown wire type")
        if position + length > len(data):
            raise ValueError("cut off")
        yield key >> 3, data[position : position + length]
        position += length


def _varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
        shift += 7
