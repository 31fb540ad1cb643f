"""Look at a machine and a home without changing or starting anything: what is wrong, and how to fix it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path

from schema.base import Frozen
from schema.errors import ConfigError, PixelloopError
from tasks import identity
from tasks.claims import Claim
from tasks.home import Home, missing_database
from tasks.store import cluster
from tasks.store.address import postgres_address
from tasks.store.embedded import EmbeddedPostgres
from tasks.store.libpq import VARIABLES, drop_libpq
from tasks.store.outside import check_owner
from tasks.store.spool import readable, refused_rows

_FULL, _TIGHT = 1 << 30, 10 << 30  # bytes: less than one run of an SD1.5 LoRA needs; less than a night needs
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_PYTHONS = ((3, 11), (3, 13))


class Severity(StrEnum):
    """How much a finding matters. A problem keeps something from working."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


class Finding(Frozen):
    """One thing that was looked at; the fix is empty where none is needed."""

    check: str
    severity: Severity
    sentence: str
    fix: str = ""


def examine(home: Home, environ: Mapping[str, str]) -> Iterator[Finding]:
    """Run all checks, the quick ones first."""
    yield from check_python()
    yield from check_environment(environ)
    yield from check_disk(home.root)
    yield from check_home(home)
    if home.exists or _holds_work(home):
        if "DATABASE_URL" not in environ:
            yield from check_database(home, rows_elsewhere="SUPABASE_URL" in environ)
        yield from check_outbox(home.outbox)
    yield from check_torch()


def check_python() -> Iterator[Finding]:
    """Check that Python is of a version that we support."""
    version = ".".join(map(str, sys.version_info[:3]))
    if _PYTHONS[0] <= sys.version_info[:2] <= _PYTHONS[1]:
        yield _ok("python", f"Python {version}")
    else:
        yield _problem("python", f"Python {version} is not supported", "install Python 3.11 to 3.13")


def check_torch() -> Iterator[Finding]:
    """Check that torch can be imported; a broken installation shows nowhere else before the first trial."""
    try:
        import torch  # seconds, and the other checks must not wait for it
    except Exception as error:  # noqa: BLE001 - a broken native library raises anything
        yield _problem("torch", f"torch cannot be imported: {error}", "install pixelloop anew into a fresh environment")
        return
    yield _ok("torch", f"torch {torch.__version__}")


def check_environment(environ: Mapping[str, str]) -> Iterator[Finding]:
    """Name the variables that change what pixelloop connects to."""
    url = environ.get("DATABASE_URL")
    libpq = sorted(VARIABLES & environ.keys())
    if url is not None and not url.startswith("block:"):
        try:
            postgres_address(url)
        except ConfigError as error:
            yield _problem("environment", str(error), "correct DATABASE_URL, or unset it to use the home's own")
        else:
            yield _ok("environment", "DATABASE_URL is set: the home's own database is not used")
    if libpq and url is not None:
        names = ", ".join(libpq)
        yield _warning("environment", f"{names}: set, and used for DATABASE_URL", "unset what it does not need")
    elif libpq:
        yield _ok("environment", f"{', '.join(libpq)}: set, but not used for the home's own database")
    if (proxies := [name for name in _PROXIES if environ.get(name)]) and not _bypasses(environ):
        yield _warning(
            "environment", f"{', '.join(proxies)}: set, and no_proxy does not name 127.0.0.1",
            "set no_proxy=127.0.0.1,localhost, so that local servers are reached directly",
        )  # fmt: skip
    if prefect := sorted(name for name in environ if name.startswith("PREFECT_")):
        yield _warning(
            "environment", f"{', '.join(prefect)}: set, and used by Prefect's client and server",
            "unset them unless they are meant for pixelloop",
        )  # fmt: skip


def check_disk(root: Path) -> Iterator[Finding]:
    """Check that a night fits on the disk of the home."""
    place = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(place).free
    sentence = f"{free / (1 << 30):.1f} GiB free on the disk of {place}"
    if free < _FULL:
        yield _problem("disk", sentence, "make room: training stops when the disk is full")
    elif free < _TIGHT:
        yield _warning("disk", sentence, "make room, or set [retention] best_checkpoints in campaign.toml")
    else:
        yield _ok("disk", sentence)


def check_home(home: Home) -> Iterator[Finding]:
    """Check that there is a home that we may write, and whether it has moved."""
    staging = home.root.with_name(f".{home.root.name}.restoring")
    if staging.exists():
        yield _warning("home", f"{staging} is left by a restore that did not end", "repeat the restore, or remove it")
    file = home.root / identity.FILE
    if file.is_dir():
        yield _problem("home", f"{file} is a folder", "remove it, and restore the file from a backup of this home")
        return
    if not home.exists and _holds_work(home):
        yield _problem(
            "home", f"{file} is missing, though {home.root} holds a database or trials",
            "restore the file from a backup: with a new identity, the runs count as another home's",
        )  # fmt: skip
        return
    if not home.exists:
        yield _problem("home", f"no pixelloop home at {home.root}", "name one with --home, or start a campaign in it")
        return
    try:
        known = identity.read(file)
    except (ConfigError, OSError) as error:
        yield _problem("home", str(error), "restore home.json from a backup of this home")
        return
    if not os.access(home.root, os.W_OK):
        yield _problem("home", f"{home.root} cannot be written", "make it yours: chown -R it, or mount it writable")
    elif known.path not in (None, str(home.root)):
        yield _ok("home", f"{home.root} was {known.path} before: the next command changes the paths in its rows")
    else:
        yield _ok("home", str(home.root))


def check_database(home: Home, rows_elsewhere: bool = False) -> Iterator[Finding]:
    """Check where the data lie, whose they are, and whether a server serves them.

    Args:
        rows_elsewhere: a home whose rows are in a Supabase project can do without its former data.
    """
    root = home.postgres
    server = EmbeddedPostgres(root)
    if server.is_missing() and home.has_trials() and not rows_elsewhere:
        sentence, _, fix = missing_database(home).partition(": ")
        yield _problem("database", sentence, fix)
        return
    if not root.exists():
        yield _ok("database", "none yet: the first campaign makes one")
        return
    if (root / "state.json").is_dir():
        yield _problem(
            "database", f"{root / 'state.json'} is a folder",
            "move it away: the next command makes the file anew and sets a new password",
        )  # fmt: skip
        return
    data = server.data()
    if data is None:
        found = (root / "server" / "data" / "PG_VERSION").exists()
        sentence = f"{root / 'state.json'} is missing or torn"
        if found:
            yield _warning("database", f"{sentence}, but the data are here", "run 'pixelloop status': it repairs that")
        elif not (root / "creating").exists():
            yield _problem("database", f"{sentence}, and no data lie beside it", "restore the file, or a backup")
        return
    yield from _check_data(root, data)
    running = cluster.postmaster(data)
    if running is None:
        yield _ok("server", "no server runs: the next command starts one")
        return
    drop_libpq()
    if not server.answers():
        yield _problem(
            "server", f"process {running[0]} serves the data, but does not answer",
            f"see {data.parent / 'server.log'}, or end it: kill -INT {running[0]}",
        )  # fmt: skip
    elif (alone := Claim.take(root / "users")) is not None:
        alone.release()
        yield _warning(
            "server", f"Postgres (process {running[0]}) was left running by a process that was killed",
            "nothing to do: the next command uses it and ends it",
        )  # fmt: skip
    else:
        yield _ok("server", f"its server answers at port {running[1]}")


def _check_data(root: Path, data: Path) -> Iterator[Finding]:
    try:
        cluster.check_version(data)
        if not (data / "postgresql.conf").is_file():
            yield _problem(
                "database", f"{data / 'postgresql.conf'} is missing: the server cannot start",
                "restore a backup, or copy that file from the database folder of another home",
            )  # fmt: skip
            return
        if data.is_relative_to(root.absolute()):
            yield _ok("database", f"its data lie in {data}")
            return
        check_owner(root, data, root / "state.json", record=False)
    except (PixelloopError, OSError) as error:
        yield _problem("database", str(error), "see docs/backup.md")
        return
    yield _warning(
        "database", f"its data lie outside of the home, in {data.parent}: a copy of the home's folder holds no rows",
        "move them in: 'pixelloop backup FILE', then 'pixelloop restore FILE --home NEW'",
    )  # fmt: skip


def check_outbox(folder: Path) -> Iterator[Finding]:
    """Count the rows that the database refused, and those that wait for it."""
    if refused := refused_rows(folder):
        yield _problem(
            "outbox", f"{len(refused)} rows were refused by the database: {folder / 'refused.jsonl'} says why",
            "correct what it names, then 'pixelloop db retry'",
        )  # fmt: skip
    waiting = _lines(folder / "waiting.jsonl")
    if torn := sum(not readable(line.encode())[0] for line in waiting):
        yield _warning(
            "outbox", f"{torn} of {len(waiting)} lines in {folder / 'waiting.jsonl'} cannot be read",
            "nothing to do: whole lines are set aside in refused.jsonl, and a line torn at the end is dropped",
        )  # fmt: skip
    if waiting:
        yield _warning("outbox", f"{len(waiting)} rows wait for the database", "they are sent when it is back")


def _holds_work(home: Home) -> bool:
    return not EmbeddedPostgres(home.postgres).is_missing() or home.has_trials()


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8", errors="replace").split("\n") if line]
    except OSError:
        return []


def _bypasses(environ: Mapping[str, str]) -> bool:
    names = f"{environ.get('no_proxy', '')},{environ.get('NO_PROXY', '')}".split(",")
    return bool({"127.0.0.1", "*"} & {name.strip() for name in names})


def _ok(check: str, sentence: str) -> Finding:
    return Finding(check=check, severity=Severity.OK, sentence=sentence)


def _warning(check: str, sentence: str, fix: str) -> Finding:
    return Finding(check=check, severity=Severity.WARNING, sentence=sentence, fix=fix)


def _problem(check: str, sentence: str, fix: str) -> Finding:
    return Finding(check=check, severity=Severity.PROBLEM, sentence=sentence, fix=fix)
