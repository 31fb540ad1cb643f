"""What is installed, and what goes into the image, is whole: code, and every file that lies beside it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("schema", "optimizer", "tasks", "flows", "demo")


def test_a_wheel_holds_every_file_of_the_packages(tmp_path: Path) -> None:
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, tmp_path)
    build = f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"
    subprocess.run([sys.executable, "-c", build], cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    wanted = {
        file.relative_to(tmp_path).as_posix()
        for name in PACKAGES
        for file in (tmp_path / name).rglob("*")
        if file.is_file()
    }
    assert wanted - set(zipfile.ZipFile(wheel).namelist()) == set()


def test_the_image_gets_every_package() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    copied = {name for line in re.findall(r"^COPY (.+) \S+$", dockerfile, re.MULTILINE) for name in line.split()}
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(PACKAGES) < copied == let_through
    assert all((ROOT / name).exists() for name in copied)
