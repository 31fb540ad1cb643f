"""Back up a home that is in use, and restore it under any path and on any machine."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import uuid
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from schema.errors import ConfigError
from tasks import identity
from tasks.backup.archive import Facts, extract, written
from tasks.backup.dump import dump, load
from tasks.backup.files import Choice, chosen, is_of_machine
from tasks.claims import Claim
from tasks.durable import commit
from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.rebase import rebase_database, rebase_files

_RUNS = "public.training_runs"


@dataclass(frozen=True)
class Contents:
    """What a backup holds.

    Attributes:
        rows: by table, of all databases.
        elsewhere: where the rows of runs lie if they are not in the backup.
    """

    rows: dict[str, int]
    files: int
    bytes: int
    elsewhere: str | None = None

    @property
    def runs(self) -> int:
        """Number of runs."""
        return self.rows.get(_RUNS, 0)


def back_up(
    home: Home,
    file: Path,
    choice: Choice,
    server: EmbeddedPostgres | None,
    elsewhere: str | None = None,
    best: Collection[str] = (),
    unfinished: Collection[str] = (),
) -> Contents:
    """Write a home into one file; campaigns may run meanwhile.

    Args:
        server: the home's own, which runs; None if all rows lie in a database of the user's.
        elsewhere: where the rows of runs lie, if not on that server.
        best: LoRA files that are the best of their runs.
        unfinished: folders of trials that have not ended.

    Raises:
        ConfigError: there is such a file already, or it would lie in the home.
        StoreError: the database cannot be dumped.
    """
    if file.resolve().is_relative_to(home.root):
        raise ConfigError(f"{file} lies in the home that it is to hold: choose a file outside of {home.root}")
    with written(file) as archive:
        databases = {}
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".pixelloop-") as folder:
            for name in server.databases() if server is not None else ():
                part = Path(folder, "dump")
                databases[name] = dump(server.url(name), part)  # type: ignore[union-attr]
                archive.add(f"database/{name}", part)
        # Rows first: files that come later do no harm, rows without their files would.
        files = sum(archive.add(f"files/{name}", path) for name, path in chosen(home.root, choice, best, unfinished))
        size = sum(member.size for member in archive.members.values())
        known = identity.of(home.root / identity.FILE)
        archive.close(
            made_at=datetime.now(UTC), uid=known.uid, earlier=known.earlier, path=str(home.root), choice=choice.value,
            databases=databases, elsewhere=elsewhere, files=files,
        )  # fmt: skip
    return _contents(databases, files, size, elsewhere)


def restore(file: Path, home: Home, instead: bool = False) -> Contents:
    """Make a home from a backup. It appears under its path when it is whole.

    Args:
        instead: the original is gone, and the new home takes over its identity.

    Raises:
        ConfigError: there is something at the path, or the file is no whole backup.
        StoreError: the database cannot be loaded.
    """
    target = home.root
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ConfigError(f"{target} exists: restore into a new folder, or move this one away first")
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = target.with_name(f".{target.name}.restoring")
    with contextlib.ExitStack() as stack:
        claim = Claim.take(staging.with_name(f"{staging.name}.lock"))
        if claim is None:
            raise ConfigError(f"another restore into {target} is running: wait for its end")
        stack.callback(claim.release)
        stack.callback(staging.with_name(f"{staging.name}.lock").unlink)
        _remove(staging)  # left by a restore that was killed
        stack.callback(_remove, staging)
        facts = extract(file, staging)
        contents = _restored(facts, staging, target, instead)
        commit(staging, target)
    return contents


def _restored(facts: Facts, staging: Path, target: Path, instead: bool) -> Contents:
    """Turn what was extracted into a home that is ready to be moved to its path."""
    for path in sorted((staging / "files").glob("*")):
        if is_of_machine(path.name):  # a database folder from elsewhere may name programs to run
            raise ConfigError(f"the backup holds files/{path.name}, which no backup of pixelloop does: leave it alone")
        path.rename(staging / path.name)
    present = str(target)
    if facts.databases:
        server = EmbeddedPostgres(staging / "postgres")
        server.start()
        try:
            for name, rows in facts.databases.items():
                load(server.ensure_database(name), staging / "database" / name, rows)
                rebase_database(server.url(name), facts.path, present)
        finally:
            server.stop_if_idle()
    for emptied in ("database", "files"):
        shutil.rmtree(staging / emptied, ignore_errors=True)
    rebase_files(staging / "runs", facts.path, present)
    earlier = () if facts.elsewhere else (facts.uid, *facts.earlier)
    known = identity.Identity(uuid.uuid4(), earlier, present, identity.folder_of(staging))
    if instead:
        known = replace(known, uid=facts.uid, earlier=facts.earlier)
    identity.write(staging / identity.FILE, known)
    size = sum(member.size for member in facts.members.values())
    return _contents(facts.databases, facts.files, size, facts.elsewhere)


def _contents(databases: dict[str, dict[str, int]], files: int, size: int, elsewhere: str | None) -> Contents:
    return Contents({table: n for rows in databases.values() for table, n in rows.items()}, files, size, elsewhere)


def _remove(staging: Path) -> None:
    if staging.exists():
        EmbeddedPostgres(staging / "postgres").stop()
        shutil.rmtree(staging)
