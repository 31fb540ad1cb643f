"""Start Python modules of ours as processes that the caller's environment cannot mislead."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
"""Folder that holds our packages: a checkout or site-packages."""

_PACKAGES = ("schema", "optimizer", "tasks", "flows", "demo")
_DEBUGGING = {
    "PYTHONBREAKPOINT", "PYTHONCASEOK", "PYTHONDEBUG", "PYTHONINSPECT", "PYTHONPROFILEIMPORTTIME", "PYTHONSTARTUP",
    "PYTHONVERBOSE", "PYTHONWARNINGS",
}  # fmt: skip
"""Variables for somebody's own debugging. In a process without a terminal they stop it (PYTHONINSPECT waits for input),
end it (PYTHONWARNINGS=error) or flood its log."""

_LOCAL = ("127.0.0.1", "localhost", "::1")


def module_command(module: str, *words: object) -> list[str]:
    """Return the command that runs a module of ours; ``-P`` keeps the current folder off its module path."""
    return [sys.executable, "-P", "-m", module, *map(str, words)]


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment for a process of ours.

    PYTHONPATH stays, as a user may need it, without the folders that would hide our packages: relative ones, which
    mean something else in every folder, and those with a package that is named as one of ours.
    """
    environment = {name: value for name, value in os.environ.items() if name not in _DEBUGGING}
    if (paths := environment.pop("PYTHONPATH", "")) and (kept := [p for p in paths.split(os.pathsep) if _harmless(p)]):
        environment["PYTHONPATH"] = os.pathsep.join(kept)
    return environment | dict(changes or {})


def _harmless(entry: str) -> bool:
    folder = Path(entry)
    if not folder.is_absolute():
        return False
    return folder.resolve() == _ROOT or not any(
        (folder / name).is_dir() or (folder / f"{name}.py").exists() for name in _PACKAGES
    )


def keep_local_calls_off_proxies() -> None:
    """Add this machine's own addresses to NO_PROXY and no_proxy, whichever proxies are set."""
    known = [name for key in ("NO_PROXY", "no_proxy") for name in os.environ.get(key, "").replace(" ", ",").split(",")]
    names = list(dict.fromkeys([*filter(None, known), *_LOCAL]))
    for key in ("NO_PROXY", "no_proxy"):
        os.environ[key] = "*" if "*" in names else ",".join(names)
