"""Children of ours run our own modules, whatever the caller's folder and variables hold."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

import tasks
from tasks.child_process import child_environment, keep_local_calls_off_proxies, module_command

ROOT = Path(tasks.__file__).parents[1]


def test_a_current_folder_with_a_package_of_our_name_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "__init__.py").write_text("raise SystemExit('the wrong one')")
    done = subprocess.run(
        module_command("tasks.training", "--help"),
        cwd=tmp_path,
        env=child_environment(),
        capture_output=True,
        text=True,
    )
    assert "the wrong one" not in done.stderr
    assert "usage" in done.stdout.lower()


def test_pythonpath_keeps_what_cannot_hide_our_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (good, folder, file) = (tmp_path / name for name in ("good", "folder", "file"))
    for place in (good, folder / "schema", file):
        place.mkdir(parents=True)
    (file / "flows.py").touch()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", ".", "relative", *map(str, (folder, good, file, ROOT))]))
    assert child_environment()["PYTHONPATH"] == os.pathsep.join([str(good), str(ROOT)])
    monkeypatch.setenv("PYTHONPATH", str(folder))
    assert "PYTHONPATH" not in child_environment()


def test_variables_for_debugging_do_not_reach_children(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS"):
        monkeypatch.setenv(name, "1")
    found = child_environment({"OMP_NUM_THREADS": "3"})
    assert not {"PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS"} & found.keys()
    assert found["OMP_NUM_THREADS"] == "3"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, "127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "intranet, example.org"}, "intranet,example.org,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a", "no_proxy": "b"}, "a,b,127.0.0.1,localhost,::1"),
        ({"no_proxy": "localhost"}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_local_calls_use_no_proxy(monkeypatch: pytest.MonkeyPatch, before: dict[str, str], after: str) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, before.get(name, ""))
    for _ in range(2):
        keep_local_calls_off_proxies()
        assert (os.environ["NO_PROXY"], os.environ["no_proxy"]) == (after, after)
