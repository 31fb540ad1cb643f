"""The house rule: imports between the rooms go down only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = {
    "schema": set[str](),
    "optimizer": {"schema"},
    "tasks": {"schema"},
    "flows": {"schema", "optimizer", "tasks", "demo"},
    "demo": {"schema"},
}
"""What each room may import of the others."""

ONLY_IN = {
    "prefect": {"flows"},
    "torch": {"tasks", "demo", "flows"},
    "diffusers": {"tasks", "demo"},
    "psycopg": {"tasks"},
    "optuna": {"optimizer", "tasks"},
    "sklearn": {"optimizer"},
}
SCHEMA_KNOWS = {"pydantic", "pydantic_settings"}
OPTIMIZER_KNOWS = {"optuna", "numpy", "scipy", "sklearn", "threadpoolctl", "pydantic"}
OPTIMIZER_KNOWS |= {"sqlalchemy"}  # Optuna lets its errors through

FILES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and top-level name of everything a file imports, at its head or later."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            yield node.lineno, (node.module or "").split(".")[0]


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_downwards_only(path: Path) -> None:
    room = room_of(path)
    for line, name in imports(path):
        if name in ROOMS and name != room:
            assert name in ROOMS[room], f"{path}:{line}: {room} must not import {name}"
        if name in ONLY_IN:
            assert room in ONLY_IN[name], f"{path}:{line}: {room} must not import {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_schema_and_optimizer_know_few_libraries(path: Path) -> None:
    import sys

    known = {"schema": SCHEMA_KNOWS, "optimizer": OPTIMIZER_KNOWS}.get(room_of(path))
    if known is None:
        return
    for line, name in imports(path):
        assert name in known | set(ROOMS) | sys.stdlib_module_names, f"{path}:{line} imports {name}"


def test_optimizer_reads_no_clock_and_no_network() -> None:
    for path in (ROOT / "optimizer").rglob("*.py"):
        for line, name in imports(path):
            assert name not in {"time", "socket", "urllib", "http", "subprocess", "requests", "httpx"}, f"{path}:{line}"


def test_flows_holds_no_file_that_hides_a_room() -> None:
    hiding = {"schema.py", "tasks.py", "optimizer.py", "demo.py"}
    assert not hiding & {path.name for path in (ROOT / "flows").iterdir()}


def test_flows_hold_no_models_enums_or_exceptions() -> None:
    for path in (ROOT / "flows").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                assert not bases & {"BaseModel", "Frozen", "Enum", "StrEnum", "Exception"}, f"{path}: {node.name}"


def test_no_room_reaches_into_private_modules_of_frameworks() -> None:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                parts = node.module.split(".")
                if parts[0] in {"prefect", "optuna", "optuna_dashboard", "diffusers"}:
                    assert not any(part.startswith("_") for part in parts), f"{path}:{node.lineno} {node.module}"


def floor_of(path: Path) -> int:
    """Floor of a file inside flows: runtime below the flows, the command line above them."""
    folder = path.relative_to(ROOT / "flows").parts[0]
    return {"runtime": 0, "cli": 2}.get(folder, 1)


@pytest.mark.parametrize("path", sorted((ROOT / "flows").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_inside_flows_imports_go_down_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        if isinstance(node, ast.ImportFrom) and node.module in ("flows", "flows.runtime", "flows.cli"):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        for name in (n for n in names if n and n.startswith("flows.")):
            floor = {"runtime": 0, "cli": 2}.get(name.split(".")[1], 1)
            assert floor <= floor_of(path), f"{path}:{getattr(node, 'lineno', 0)} imports {name} from a floor above"


def test_no_modules_import_each_other_in_a_circle() -> None:
    from benchmarks.house import measure

    assert measure()["circles"] == []
