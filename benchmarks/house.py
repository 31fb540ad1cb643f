"""Measure how the code is built: the figures that docs and reviews talk about, counted by one script.

    python -m benchmarks.house [--json] [--commands HOME]

Counts product code only (schema, optimizer, tasks, flows, demo). With `--commands`, also times `pixelloop --help` and
`pixelloop status` on a home: the median of five runs, as whole processes.
"""

from __future__ import annotations

import argparse
import ast
import json
import statistics
import subprocess
import sys
import time
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from schema import states

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("schema", "optimizer", "tasks", "flows", "demo")
LONG_FILE = 300  # lines: the house rule
LONG_FUNCTION = 50  # lines: a function that no longer fits a screen
_RUNS = 5

STATES = {
    member.value
    for kind in vars(states).values()
    if isinstance(kind, type) and issubclass(kind, StrEnum)
    for member in kind
}
"""Values that are states or kinds: compared as bare strings, mypy cannot check them."""


@dataclass
class Module:
    """One file, parsed."""

    name: str
    path: Path
    text: str
    tree: ast.Module

    @property
    def lines(self) -> int:
        """Number of lines."""
        return self.text.count("\n")


def modules() -> list[Module]:
    """Return every product file."""
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            text = path.read_text(encoding="utf-8")
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            found.append(Module(name, path, text, ast.parse(text)))
    return found


def functions(module: Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def inner_imports(module: Module) -> int:
    """Count import statements inside functions."""
    nested = {
        id(node)
        for function in functions(module)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    return len(nested)


def imported(module: Module, known: set[str]) -> set[str]:
    """Return the product modules that a module imports at run time, anywhere in it."""
    found: set[str] = set()
    typing_only = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(module.tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return (found & known) - {module.name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that import each other (strongly connected, Tarjan 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(name: str) -> None:
        order[name] = low[name] = len(order)
        stack.append(name)
        for other in sorted(graph[name]):
            if other not in order:
                visit(other)
            if other in stack:
                low[name] = min(low[name], low[other])
        if low[name] == order[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                groups.append(sorted(group))

    for name in sorted(graph):
        if name not in order:
            visit(name)
    return groups


def bare_states(module: Module) -> int:
    """Count comparisons and matches with a state written as a bare string."""
    count = 0
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Compare):
            texts = [c.value for part in node.comparators for c in ast.walk(part) if isinstance(c, ast.Constant)]
            texts += [node.left.value] if isinstance(node.left, ast.Constant) else []
            count += any(isinstance(text, str) and text in STATES for text in texts)
        elif isinstance(node, ast.MatchValue) and isinstance(node.value, ast.Constant):
            count += node.value.value in STATES
    return count


def unexplained_constants(module: Module) -> list[str]:
    """Return module-level numbers in capitals with neither a comment nor a text behind them."""
    found = []
    lines = module.text.split("\n")
    for place, node in enumerate(module.tree.body):
        if not isinstance(node, ast.Assign | ast.AnnAssign) or node.value is None:
            continue
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        names = [n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)]
        if not names or not all(name.isupper() for name in names) or not _is_number(node.value):
            continue
        follower = module.tree.body[place + 1] if place + 1 < len(module.tree.body) else None
        explained = isinstance(follower, ast.Expr) and isinstance(follower.value, ast.Constant)
        around = lines[node.lineno - 1 : node.end_lineno]
        if not explained and not any("#" in line for line in around) and not lines[node.lineno - 2].startswith("#"):
            found.append(f"{module.path.relative_to(ROOT)}:{node.lineno} {', '.join(names)}")
    return found


def _is_number(value: ast.expr) -> bool:
    numbers = [n for n in ast.walk(value) if isinstance(n, ast.Constant)]
    return bool(numbers) and all(
        isinstance(n.value, int | float) and not isinstance(n.value, bool) for n in numbers
    ) and not any(isinstance(n, ast.Call | ast.Dict | ast.Name) for n in ast.walk(value))  # fmt: skip


def comment_lines(module: Module) -> int:
    """Count comments that are not directives to a tool."""
    with module.path.open("rb") as file:
        found = [t.string for t in tokenize.tokenize(file.readline) if t.type == tokenize.COMMENT]
    return sum(not text.lstrip("# ").startswith(("fmt:", "type:", "noqa")) for text in found)


def measure() -> dict[str, float | int | list[str]]:
    """Return all figures of the code."""
    everything = modules()
    known = {module.name for module in everything}
    lines = sum(module.lines for module in everything)
    lengths = [(f.end_lineno or f.lineno) - f.lineno + 1 for m in everything for f in functions(m)]
    inner = sum(map(inner_imports, everything))
    groups = circles({m.name: imported(m, known) for m in everything})
    states = {str(m.path.relative_to(ROOT)): count for m in everything if (count := bare_states(m))}
    constants = [text for m in everything for text in unexplained_constants(m)]
    rooms: dict[str, int] = defaultdict(int)
    for module in everything:
        rooms[str(module.path.parent.relative_to(ROOT))] += 1
    return {
        "files": len(everything),
        "lines": lines,
        "functions": len(lengths),
        "long_functions": sum(length > LONG_FUNCTION for length in lengths),
        "long_files": sorted(str(m.path.relative_to(ROOT)) for m in everything if m.lines > LONG_FILE),
        "largest_folder_files": max(rooms.values()),
        "inner_imports": inner,
        "inner_imports_per_1000_lines": round(1000 * inner / lines, 2),
        "circles": [" <-> ".join(group) for group in groups],
        "bare_states": sum(states.values()),
        "bare_state_files": len(states),
        "constants_without_reason": len(constants),
        "comments_per_100_lines": round(100 * sum(map(comment_lines, everything)) / lines, 2),
        "fmt_skips": sum(m.text.count("# fmt: skip") for m in everything),
    }


def seconds(*command: str) -> float:
    """Return the median time of a command as a whole process."""
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-P", "-m", "flows.cli", *command], stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - begin)
    return round(statistics.median(times), 2)


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--commands", metavar="HOME", help="also time --help, and status on this home")
    arguments = parser.parse_args()
    figures: dict[str, object] = dict(measure())
    if arguments.commands:
        figures["help_s"] = seconds("--help")
        figures["status_s"] = seconds("status", "--home", arguments.commands)
    if arguments.json:
        print(json.dumps(figures))
        return
    for name, figure in figures.items():
        print(f"{name:32s} {figure if not isinstance(figure, list) else len(figure)}")
        for line in figure if isinstance(figure, list) else ():
            print(f"    {line}")


if __name__ == "__main__":
    main()
