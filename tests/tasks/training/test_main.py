from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.training.__main__ import main


def call(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["training", *words])
    return main()


def test_a_trial_or_kohyas_options(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trial: Callable[..., Path], tiny_model: Path,
    dataset: Path, tmp_path: Path,
) -> None:  # fmt: skip
    assert call(monkeypatch, str(trial(max_train_epochs=1)), "--threads", "1") == 0
    assert call(monkeypatch, "--config_file", str(tmp_path / "none.toml")) == 2
    assert "none.toml does not exist" in capsys.readouterr().err
    places = ["--pretrained_model_name_or_path", str(tiny_model), "--train_data_dir", str(dataset)]
    options = ["--caption_extension", ".txt", "--network_args", "conv_dim=1", "--max_train_steps", "2"]
    assert call(monkeypatch, "--device", "cpu", *places, *options, "--output_dir", str(tmp_path / "out")) == 0
    assert (tmp_path / "out" / "last.safetensors").exists()
    with pytest.raises(SystemExit):
        call(monkeypatch)
    with pytest.raises(SystemExit):
        call(monkeypatch, "a.toml", "b.toml")
