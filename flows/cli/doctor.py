"""The command that says what is wrong: doctor."""

from __future__ import annotations

import json
import os
from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from flows.cli.options import DEFAULT_HOME, HomeOption, JsonOption

_COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}

out = Console()


def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Check Python, disk, home, database and environment; say what is wrong and how to fix it. Changes nothing.

    The exit code is 2 if there is a problem, 0 if there are only warnings.

    Example: [bold]pixelloop doctor --home /data/pixelloop[/]
    """
    from tasks.doctor import Severity, examine
    from tasks.home import Home

    found = []
    for finding in examine(Home.at(home), _given()):
        found.append(finding)
        if as_json:
            continue
        mark = f"[{_COLOURS[finding.severity]}]{finding.severity:8}[/]"
        out.print(f"{mark} {finding.check:12} {escape(finding.sentence)}", soft_wrap=True, highlight=False)
        if finding.fix:
            out.print(f"{'':21} fix: {escape(finding.fix)}", soft_wrap=True, highlight=False)
    problems = sum(finding.severity is Severity.PROBLEM for finding in found)
    if as_json:
        print(json.dumps({"problems": problems, "findings": [f.model_dump(mode="json") for f in found]}, indent=2))
    raise typer.Exit(2 if problems else 0)


def _given() -> dict[str, str]:
    """Return the environment as the user gave it: the command line sets some of Prefect's variables itself."""
    from flows.runtime.prefect_environment import isolate, quiet_libraries

    before = dict(os.environ)
    try:
        os.environ.clear()
        isolate()
        quiet_libraries(Path.home() / ".prefect")
        ours = dict(os.environ)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return {name: value for name, value in before.items() if ours.get(name) != value}
