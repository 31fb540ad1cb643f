"""The audit of dependencies: what it finds fails, what it cannot ask it says; and the locks hold what they promise."""

from __future__ import annotations

import base64
import itertools
import json
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.audit.audit import ROOT, ask, judge

FOUND = {"id": "PYSEC-2026-1", "fix_versions": ["2.0"], "aliases": ["CVE-2026-1"], "description": "bad"}


def report(*vulnerabilities: dict[str, Any], skipped: int = 0) -> dict[str, Any]:
    """As pip-audit writes it."""
    asked = [
        {"name": "some", "version": "1.0", "vulns": list(vulnerabilities)},
        {"name": "b", "version": "1", "vulns": []},
    ]
    unknown = [{"name": "other", "skip_reason": "Dependency not found on PyPI and could not be audited"}]
    return {"dependencies": asked + unknown * skipped, "fixes": []}


def test_an_advisory_fails_and_says_the_mend() -> None:
    told, failed = judge(report(FOUND), {})
    assert failed
    assert told == [
        "some 1.0: PYSEC-2026-1, mended in 2.0", "2 of 2 packages were looked up, 1 advisories found"
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["PYSEC-2026-1", "CVE-2026-1"])
def test_an_exception_needs_a_reason_and_is_told(name: str) -> None:
    told, failed = judge(report(FOUND), {name: "we parse no such file"})
    assert not failed
    assert "excepted: we parse no such file" in told[0]
    assert judge(report(FOUND), {name: ""})[1]
    assert judge(report(FOUND), {"CVE-2026-2": "another"})[1]


def test_nothing_found_counts_only_what_was_looked_up() -> None:
    assert judge(report(skipped=3), {}) == (["2 of 5 packages were looked up, 0 advisories found"], False)


@pytest.mark.parametrize("unasked", [None, {"dependencies": report(skipped=3)["dependencies"][2:]}])
def test_a_service_that_does_not_answer_is_told_and_fails_nothing(unasked: dict[str, Any] | None) -> None:
    told, failed = judge(unasked, {})
    assert not failed
    assert "nothing is known, good or bad" in told[0]


def test_a_missing_tool_is_no_answer(tmp_path: Path) -> None:
    assert ask(str(tmp_path / "pip-audit")) is None
    (tmp_path / "broken").write_text(f"#!{sys.executable}\nprint('no JSON')\n")
    (tmp_path / "broken").chmod(0o755)
    assert ask(str(tmp_path / "broken")) is None


def locked() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def test_the_lock_holds_all_that_the_project_asks_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    versions = locked()
    wanted = [*project["dependencies"], *itertools.chain(*project["optional-dependencies"].values())]
    for requirement in map(Requirement, wanted):
        version = versions.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement} is not in requirements.lock"
        assert requirement.specifier.contains(version), f"{requirement}, but the lock has {version}"


def test_what_is_installed_by_the_lock_fits_together_and_nothing_is_left_open() -> None:
    """Every requirement of every locked package is locked too, at a version that it takes."""
    from importlib.metadata import PackageNotFoundError, requires

    versions, seen = locked(), 0
    for name in versions:
        try:
            needed = [Requirement(text) for text in requires(name) or []]
        except PackageNotFoundError:
            continue  # for another Python than this one
        seen += 1
        for one in needed:
            if one.marker is None or one.marker.evaluate({**default_environment(), "extra": ""}):
                version = versions.get(canonicalize_name(one.name))
                assert version is not None or _of_the_platform(one.name), f"{name} needs {one}, which is not locked"
                assert version is None or one.specifier.contains(version, prereleases=True), f"{name} needs {one}"
    assert seen > 100


def _of_the_platform(name: str) -> bool:
    """Torch's CUDA comes with torch, at the versions that torch pins itself; setuptools comes with Python's venv."""
    return bool(re.match(r"(nvidia|cuda)-|triton$|setuptools$", canonicalize_name(name)))


def test_npm_takes_only_what_has_the_right_hash() -> None:
    folder = ROOT / "tests" / "supabase"
    wanted = json.loads((folder / "package.json").read_text())["devDependencies"]
    packages = json.loads((folder / "package-lock.json").read_text())["packages"]
    for name, version in wanted.items():
        assert re.fullmatch(r"[0-9][0-9a-zA-Z.+-]*", version), f"{name} is not pinned: {version}"
        assert packages[f"node_modules/{name}"]["version"] == version
    for place, package in packages.items():
        if place:
            kind, _, digest = package["integrity"].partition("-")
            assert kind == "sha512", place
            assert len(base64.b64decode(digest, validate=True)) == 64, place
