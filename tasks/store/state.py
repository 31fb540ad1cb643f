"""What is saved of our own server beside its data, and finding the data where that is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from schema.errors import StoreError
from tasks.durable import replace_text
from tasks.identity import folder_of
from tasks.store.outside import find_outside

State = dict[str, Any]
"""Password, port, data folder; and which folder the password was made for."""


def read_state(file: Path) -> State | None:
    """Read the state, None where it is missing or torn."""
    try:
        state: State = json.loads(file.read_text())
        complete = {"password", "port", "data"} <= state.keys() and bool(str(state["data"]))
    except (OSError, ValueError, AttributeError):
        return None
    return state if complete else None


def save_state(file: Path, state: State) -> None:
    """Save the state for its owner alone."""
    replace_text(file, json.dumps(state), mode=0o600)


def made_for(data: Path) -> dict[str, list[int]]:
    """Record which folder a password is made for: a copy of the folder gets another one."""
    return {"folder": list(folder_of(data) or ())}


def find_data(root: Path) -> Path | None:
    """Find the data of a home whose state is lost."""
    inside = root / "server" / "data"
    return inside if (inside / "PG_VERSION").exists() else find_outside(root)


def find_lost(root: Path, state: Path) -> Path | None:
    """Find the data of a home whose state is lost; None where the home never had any.

    Raises:
        StoreError: it had some, but they are not here.
    """
    found = find_data(root)
    if found is None and ((root / "server").exists() or state.exists()):
        raise StoreError(
            f"{state} is missing or torn and no database lies beside it: restore the file or a backup; "
            f"if there are no rows to lose, remove {root}"
        )
    return found
