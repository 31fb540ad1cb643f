"""What the terminal shows of a campaign holds paths and captions, which may look like its markup."""

from __future__ import annotations

import io
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from flows.runtime.progress import TerminalListener
from schema.runs import Outcome
from tests.tasks.reports import factory


@given(st.text(st.sampled_from("[]/=a red@("), max_size=20).map(str.strip))
@example("[/data] is full")
@example("[link=http://elsewhere.invalid]here[/link]")
def test_a_failure_is_shown_as_it_is_written(failure: str) -> None:
    shown = io.StringIO()
    listener = TerminalListener(Console(file=shown, width=400))
    listener.trial_finished(factory.history(0, (), {}, Outcome.CRASHED, failure=failure or None).run)
    listener.message(failure)  # of no known origin: whatever it shows, it does not break off the night
    assert failure in shown.getvalue()


@pytest.mark.parametrize("command", ["measure", "run", "audit"])
def test_a_path_that_looks_like_markup_is_one_sentence(command: str) -> None:
    words = [sys.executable, "-m", "flows.cli", command, "nowhere[/x]"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert result.returncode == 2
    assert "nowhere[/x]" in result.stderr
    assert "Traceback" not in result.stderr
