"""What a copied home knows of its original's Prefect server: nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from flows.runtime.prefect_login import ADDRESS, forget_server, one_time_link, password, redeem
from flows.runtime.prefect_server import running_server


def test_a_copy_gets_a_password_of_its_own_and_no_links(tmp_path: Path) -> None:
    original = tmp_path / "a"
    secret = password(original)
    token = one_time_link(original, "http://127.0.0.1:1").rpartition("/")[2]
    (original / ADDRESS).write_text(f"http://127.0.0.1:1/api {original.stat().st_ino}")
    copy = Path(shutil.copytree(original, tmp_path / "b"))
    forget_server(copy)
    assert password(copy) != secret
    assert not redeem(copy, token)
    assert not (copy / ADDRESS).exists()
    assert password(original) == secret
    assert redeem(original, token)


def test_an_address_that_came_with_a_copy_is_not_asked(tmp_path: Path) -> None:
    for text in (f"http://127.0.0.1:1/api {tmp_path.stat().st_ino + 1}", "http://127.0.0.1:1/api", "", "x y"):
        (tmp_path / ADDRESS).write_text(text)
        assert running_server(tmp_path) is None
