"""``python -m tests.audit.audit PIP_AUDIT``: whether any package of requirements.lock has a known vulnerability.

The service that knows them may be out of reach, or know nothing of the packages: then that is said, and nothing fails.
An advisory that does not concern us is excepted in pyproject.toml, with a reason: ``[tool.pixelloop.audit]``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
_LONGEST = 300.0  # seconds


def judge(report: Mapping[str, Any] | None, exceptions: Mapping[str, str]) -> tuple[list[str], bool]:
    """What there is to say, and whether it is a failure.

    Args:
        report: pip-audit's, as JSON; None where it could not work.
        exceptions: reasons by the id of an advisory, or one of its other names.
    """
    packages = [] if report is None else list(report["dependencies"])
    asked = [package for package in packages if "skip_reason" not in package]
    if not asked:
        return ["the service that knows vulnerabilities cannot be asked here: nothing is known, good or bad"], False
    told, failed = list[str](), False
    for package in asked:
        for found in package["vulns"]:
            names = {found["id"], *found.get("aliases", ())}
            reason = next((exceptions[name] for name in sorted(names) if exceptions.get(name)), None)
            mend = f"mended in {', '.join(found['fix_versions'])}" if found["fix_versions"] else "no mended version yet"
            end = f"excepted: {reason}" if reason else mend
            told.append(f"{package['name']} {package['version']}: {found['id']}, {end}")
            failed |= reason is None
    told.append(f"{len(asked)} of {len(packages)} packages were looked up, {len(told)} advisories found")
    return told, failed


def ask(pip_audit: str) -> dict[str, Any] | None:
    """pip-audit's report on the lock; None where it is not installed or the service does not answer."""
    words = [pip_audit, "-s", "pypi", "--no-deps", "--disable-pip", "--progress-spinner", "off", "-f", "json"]
    try:
        result = subprocess.run(
            [*words, "-r", str(ROOT / "requirements.lock")], capture_output=True, text=True, timeout=_LONGEST
        )
        report: dict[str, Any] = json.loads(result.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return report


def main() -> None:
    """Say it, and exit with 1 at an advisory that nobody has excepted."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    exceptions = project["tool"]["pixelloop"]["audit"]["exceptions"]
    told, failed = judge(ask(sys.argv[1]), exceptions)
    print("\n".join(f"audit: {line}" for line in told))
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
