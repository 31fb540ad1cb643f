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


def test_only_a_run_better_than_all_before_it_is_called_the_best() -> None:
    shown = io.StringIO()
    listener = TerminalListener(Console(file=shown, width=400))
    for quality, best in ((50.0, None), (40.0, 83.6), (90.0, 83.6)):
        run = factory.history(0, (quality,)).run.changed(quality=quality)
        listener.trial_started(run, 3, None, best)
        listener.trial_finished(run)
    assert [("best so far" in line) for line in shown.getvalue().splitlines()] == [True, False, True]
