"""Create a data folder, and give one whose password is lost or shared a new password."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from schema.errors import StoreError
from tasks.store import cluster

_SETTINGS = """
shared_buffers = '64MB'
max_connections = 60
timezone = 'UTC'
log_timezone = 'UTC'
password_encryption = 'scram-sha-256'
"""


def create(place: Path, password: str) -> Path:
    """Create an empty database cluster; its data folder.

    Raises:
        StoreError: Postgres cannot make one here.
    """
    place.mkdir()
    user = cluster.server_user()
    cluster.own(place, user)
    with (
        tempfile.NamedTemporaryFile("w", dir=place, prefix="pw-") as file,
        cluster.reachable(place, user) as (path, keep),
    ):
        file.write(password)
        file.flush()
        if user is not None:
            os.chown(file.name, user.uid, user.gid)
        done, output = cluster.tool(
            "initdb", "-D", f"{path}/data", "-U", "postgres", "--pwfile", f"{path}/{Path(file.name).name}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", "--no-instructions",
            user=user, keep=keep,
        )  # fmt: skip
    if not done:
        raise StoreError(f"initdb failed: {output}")
    with (place / "data" / "postgresql.auto.conf").open("a") as settings:
        settings.write(_SETTINGS)
    return place / "data"


def set_password(data: Path, password: str, held: int) -> None:
    """Set the password of a cluster that no server runs on, without knowing the former one.

    Args:
        held: open file of the lock on the data.

    Raises:
        StoreError: the data is damaged.
    """
    user = cluster.server_user(data.parent)
    cluster.own(data.parent, user)
    (data / "postmaster.pid").unlink(missing_ok=True)
    with cluster.reachable(data.parent, user) as (place, keep):
        done, output = cluster.tool(
            "postgres", "--single", "-D", f"{place}/data", "-c", "log_statement=none", "postgres",
            user=user, keep=(*keep, held), given=f"alter role postgres password '{password}'\n",
        )  # fmt: skip
    errors = [line for line in output.splitlines() if "ERROR" in line or "FATAL" in line or "PANIC" in line]
    if not done or errors:
        reason = (errors or output.splitlines() or ["no reason given"])[-1].replace(password, "...")
        raise StoreError(
            f"the database in {data} does not open: {reason}; if it was copied from a running home, "
            "copy it again with 'pixelloop backup' and 'pixelloop restore'"
        )
