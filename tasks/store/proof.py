"""Prove which data folder a server serves, and ask whether others use it."""

from __future__ import annotations

import os
import time
import uuid
from pathlib import Path
from typing import Any

import psycopg

_PLACE = "pg_stat_tmp"  # Postgres leaves this folder alone, and base backups leave it out
_LINGER = 1.0  # seconds; a server process outlives the connection that its client has closed


def proves(connection: psycopg.Connection[Any], data: Path) -> bool:
    """Let a server read what was just written to a data folder: no copy of the folder holds it.

    This works through any path, link, mount or container, where neither paths nor process numbers compare.
    """
    name, secret = f"{_PLACE}/pixelloop-{uuid.uuid4().hex}", uuid.uuid4().hex
    file = data / name
    try:
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as written:
            os.fchmod(written.fileno(), 0o644)  # whatever the umask: another user's server reads it
            written.write(secret)
        found = connection.execute("select pg_read_file(%s, true)", [name]).fetchone()
    except OSError:
        return False
    finally:
        file.unlink(missing_ok=True)
    return found == (secret,)


def is_used(connection: psycopg.Connection[Any]) -> bool:
    """Return whether others are connected. Connections that were just closed get a moment to end."""
    deadline = time.monotonic() + _LINGER
    while connection.execute(
        "select from pg_stat_activity where backend_type = 'client backend' and pid <> pg_backend_pid() limit 1"
    ).fetchall():
        if time.monotonic() > deadline:
            return True
        time.sleep(0.05)
    return False
