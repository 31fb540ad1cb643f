"""The file of a backup: a tar whose last member lists all others with their checksums.

A torn file has no such member, so it is never taken for a whole one.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal

from pydantic import Field, ValidationError

from schema.base import Frozen
from schema.errors import ConfigError, shown
from tasks.durable import commit, part_of, sync_folder

_MANIFEST = "manifest.json"
_FOLDERS = ("database", "files")
_CHUNK = 1 << 20  # bytes read at a time: files may be larger than memory
_LARGEST_MANIFEST = 256 << 20  # bytes; about a million files


class Member(Frozen):
    """A file in a backup."""

    size: int
    sha256: str


class Facts(Frozen):
    """What a backup says about the home that it holds.

    Attributes:
        path: of the home; its rows name it.
        databases: rows by table, by database.
        elsewhere: where the rows of runs lie if not in the backup.
    """

    pixelloop: Literal["backup"] = "backup"
    version: Literal[1] = 1
    made_at: datetime
    uid: uuid.UUID
    earlier: tuple[uuid.UUID, ...]
    path: Annotated[str, Field(pattern=r"^/[^\x00]*$")]
    choice: str
    databases: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], dict[str, int]]
    elsewhere: str | None
    files: int
    members: dict[str, Member]


class Archive:
    """A backup that is being written."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar
        self.members: dict[str, Member] = {}

    def add(self, name: str, file: Path) -> bool:
        """Add a file as it is now; False if it has vanished."""
        try:
            source = file.open("rb")
        except FileNotFoundError:
            return False
        with source:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = os.fstat(source.fileno()).st_size, int(file.stat().st_mtime)
            info.mode = 0o600
            reader = _Reader(source)
            self._tar.addfile(info, reader)
        self.members[name] = Member(size=info.size, sha256=reader.digest)
        return True

    def close(self, **facts: Any) -> None:
        """Write `Facts` with the list of all members, which makes the backup whole."""
        text = Facts(**facts, members=self.members).model_dump_json().encode()
        info = tarfile.TarInfo(_MANIFEST)
        info.size, info.mode = len(text), 0o600
        self._tar.addfile(info, io.BytesIO(text))


@contextmanager
def written(file: Path) -> Iterator[Archive]:
    """Write a backup that appears under its name when it is whole. It holds secrets, so it is for its owner alone.

    Raises:
        ConfigError: there is a file already.
    """
    if file.exists():
        raise ConfigError(f"{file} exists: choose another name, or remove it first")
    file.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(file)
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as raw:
            with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
                yield Archive(tar)
            raw.flush()
            os.fsync(raw.fileno())
        commit(part, file)
    finally:
        part.unlink(missing_ok=True)


def extract(file: Path, folder: Path) -> Facts:
    """Write all members of a backup below a folder, and check each against the list.

    Returns:
        The facts that the backup holds about itself.

    Raises:
        ConfigError: no backup, a torn or changed one, or one that leads out of the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    manifest: bytes | None = None
    try:
        with tarfile.open(file, mode="r:") as tar:
            for info in tar:
                if manifest is not None:
                    raise ConfigError(f"{file} goes on after its end: it is no backup of pixelloop")
                source = tar.extractfile(info) if info.isreg() else None
                if source is None:
                    raise ConfigError(f"{file} holds {info.name!r}, which is no file: it is no backup of pixelloop")
                if info.name == _MANIFEST and info.size <= _LARGEST_MANIFEST:
                    manifest = source.read()
                else:
                    found[info.name] = _extract(source, folder, _safe(info.name, file), file)
    except FileNotFoundError:
        raise ConfigError(f"{file} does not exist: check the path") from None
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{file} is torn, or no backup of pixelloop: {error}") from None
    try:
        facts = Facts.model_validate_json(manifest or b"")
    except ValidationError:
        raise ConfigError(f"{file} is torn, or no backup of pixelloop: its list of contents is missing") from None
    listed = {name: member.sha256 for name, member in facts.members.items()}
    if wrong := sorted(set(listed.items()) ^ set(found.items())):
        raise ConfigError(f"{file} is damaged: {wrong[0][0]} is not what was backed up")
    return facts


def _safe(name: str, file: Path) -> Path:
    """Return a member's path, if it stays below the folder it is written to."""
    path = PurePosixPath(name)
    if path.is_absolute() or not path.parts or ".." in path.parts or "\0" in name or "\\" in path.parts[0]:
        raise ConfigError(
            f"{file} holds the path {shown(name)}, which leads out of the home: it is no backup of pixelloop"
        )
    # Anything else would lie beside them in the new home: a database folder, for instance, whose settings run programs.
    if path.parts[0] not in _FOLDERS or len(path.parts) < 2:
        raise ConfigError(f"{file} holds {shown(name)}, which no backup of pixelloop does: leave it alone")
    return Path(path)


def _extract(source: IO[bytes], folder: Path, path: Path, file: Path) -> str:
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    reader = _Reader(source)
    try:
        with target.open("xb") as written:
            while chunk := reader.read(_CHUNK):
                written.write(chunk)
            written.flush()
            os.fsync(written.fileno())
    except (FileExistsError, NotADirectoryError):
        raise ConfigError(f"{file} holds {path} twice: it is no backup of pixelloop") from None
    sync_folder(target.parent)
    return reader.digest


class _Reader(io.RawIOBase):
    """Reads a file and computes its checksum on the way."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source, self._hash = source, hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(size)
        self._hash.update(data)
        return data

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()
