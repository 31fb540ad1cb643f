"""Choose which files of a home go into a backup."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from enum import StrEnum
from pathlib import Path, PurePosixPath


class Choice(StrEnum):
    """How many files go into a backup."""

    NONE = "none"
    BEST = "best"
    ALL = "all"


_CACHES = {"latents", "compiled", "prefect", "flow-runs"}  # made anew, or for processes of this machine
_MACHINE = {"postgres", "up", "up.json", "up.log", "at-work", "workers.log", "warm-trainer.log", "home.json"}
_LOCKS = {"claim", "lock"}
_SETTINGS = {"campaigns", "campaigns.json", "outbox"}
_HEAVY = {"checkpoints", "state"}  # of a trial: LoRA files, and what training goes on from


def chosen(
    root: Path, choice: Choice, best: Collection[str] = (), unfinished: Collection[str] = ()
) -> Iterator[tuple[str, Path]]:
    """List files of a home by their path in it.

    Args:
        best: LoRA files that `Choice.BEST` includes, by path in the home.
        unfinished: folders of trials that have not ended, which it includes whole.
    """
    for path in _walk(root):
        relative = path.relative_to(root).as_posix()
        if _is_wanted(PurePosixPath(relative), choice, best, unfinished):
            yield relative, path


def is_of_machine(name: str) -> bool:
    """Return whether something in a home belongs to the machine it is on, so that no backup holds it."""
    return name in _CACHES | _MACHINE


def _is_wanted(path: PurePosixPath, choice: Choice, best: Collection[str], unfinished: Collection[str]) -> bool:
    top = path.parts[0]
    if is_of_machine(top) or path.name in _LOCKS or path.suffix == ".part":
        return False
    if choice is Choice.NONE:
        return top in _SETTINGS or (len(path.parts) == 1 and path.suffix == ".toml")
    if choice is Choice.ALL or top != "runs" or len(path.parts) < 5 or path.parts[3] not in _HEAVY:
        return True
    return str(path) in best or "/".join(path.parts[:3]) in unfinished


def _walk(root: Path) -> Iterator[Path]:
    """List regular files. `runs` may be a link to another disk; other links to folders are not followed."""
    tops = sorted(root.iterdir())
    yield from (path for path in tops if path.is_file())
    for top in tops:
        if top.is_dir() and not is_of_machine(top.name) and (top.name == "runs" or not top.is_symlink()):
            for folder, _, names in os.walk(top):
                yield from (path for name in sorted(names) if (path := Path(folder, name)).is_file())
