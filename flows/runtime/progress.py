"""What a person sees on the terminal while a campaign runs.

Flows tell what happens to `progress.listener`; the command line puts a rich display there, a worker
leaves the default, which logs.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Protocol

from rich.console import Console
from rich.errors import MarkupError
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from schema.findings import GateVerdict
from schema.runs import EpochResult, TrainingRun

logger = logging.getLogger(__name__)


class Listener(Protocol):
    """Hears what happens in a campaign."""

    def message(self, text: str) -> None:
        """Something a person should know."""

    def trial_started(self, run: TrainingRun, trials: int, time_left: float | None, best: float | None) -> None:
        """A run begins, the n-th of `trials`; `time_left` in seconds where it can be guessed."""

    def refused(self, number: int, verdict: GateVerdict) -> None:
        """The gate refused a proposal."""

    def stepped(self, step: int, total_steps: int, epoch: float, loss: float | None) -> None:
        """The trainer got on."""

    def measured(self, result: EpochResult) -> None:
        """An epoch was drawn and measured."""

    def trial_finished(self, run: TrainingRun) -> None:
        """A run ended, well or not."""


class LogListener:
    """Writes to the log: for workers, where nobody watches a terminal."""

    def message(self, text: str) -> None:
        """Log the text."""
        logger.info(text)

    def trial_started(self, run: TrainingRun, trials: int, time_left: float | None, best: float | None) -> None:
        """Log the start."""
        left = f", {clock(time_left)} left" if time_left is not None else ""
        logger.info("trial %s started (%d planned%s)", run.run_name, trials, left)

    def refused(self, number: int, verdict: GateVerdict) -> None:
        """Log the reason."""
        logger.info("proposal %d refused: %s", number, verdict.reason)

    def stepped(self, step: int, total_steps: int, epoch: float, loss: float | None) -> None:
        """Too frequent to log."""

    def measured(self, result: EpochResult) -> None:
        """Log the quality."""
        logger.info("epoch %d: quality %s", result.epoch_number, score(result.quality))

    def trial_finished(self, run: TrainingRun) -> None:
        """Log the outcome."""
        logger.info("trial %s: %s", run.run_name, describe(run))


class LineListener(LogListener):
    """A line for each thing that is done: for processes whose words another one passes on."""

    def message(self, text: str) -> None:
        """Print the text."""
        print(text, flush=True)

    def refused(self, number: int, verdict: GateVerdict) -> None:
        """Print the reason."""
        self.message(f"[yellow]refused[/] proposal {number}: {escape(verdict.reason)}")

    def trial_finished(self, run: TrainingRun) -> None:
        """Print how it went."""
        self.message(f"{run.run_name} {escape(describe(run))}")


class TerminalListener:
    """One living line for the running trial, and a lasting line for each thing that is done."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"), console=console, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("", total=None, state="", visible=False)
        self._best: float | None = None
        self._state: dict[str, str] = {}
        self._started = time.monotonic()

    def __enter__(self) -> TerminalListener:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def message(self, text: str) -> None:
        """Print the text with the time since the start; one that is no markup, for a path in it, as it stands."""
        try:
            shown = Text.from_markup(text)
        except MarkupError:
            shown = Text(text)
        line = Text.assemble((clock(time.monotonic() - self._started), "dim"), " ", shown)
        self._console.print(line, soft_wrap=not self._console.is_terminal)  # a line of a log stays one

    def trial_started(self, run: TrainingRun, trials: int, time_left: float | None, best: float | None) -> None:
        """Show the new trial's bar. `best` is the best quality before it, also of earlier processes."""
        self._best = best
        self._state = {"left": f"{clock(time_left)} left" if time_left is not None else ""}
        title = f"{run.run_name} of {trials}" if trials else run.run_name
        self._bar.reset(self._task, description=title, total=None, state=self._line(), visible=True)

    def refused(self, number: int, verdict: GateVerdict) -> None:
        """Print the reason; a refusal is never silent."""
        self.message(f"[yellow]refused[/] proposal {number}: {escape(verdict.reason)}")

    def stepped(self, step: int, total_steps: int, epoch: float, loss: float | None) -> None:
        """Move the bar."""
        self._state["epoch"] = f"epoch {epoch:.1f}"
        if loss is not None:
            self._state["loss"] = f"loss {loss:.3f}"
        self._bar.update(self._task, completed=step, total=total_steps, state=self._line())

    def measured(self, result: EpochResult) -> None:
        """Show the newest quality beside the bar."""
        self._state["quality"] = f"quality {score(result.quality)} (epoch {result.epoch_number})"
        self._bar.update(self._task, state=self._line())

    def trial_finished(self, run: TrainingRun) -> None:
        """Print how it went; the best so far stands out."""
        self._bar.update(self._task, visible=False)
        best = run.quality is not None and (self._best is None or run.quality > self._best)
        colour = "green" if best else "red" if run.outcome is not None and run.outcome.failed else "default"
        mark = "  [bold green]best so far[/]" if best else ""
        self.message(f"[{colour}]{run.run_name}[/] {escape(describe(run))}{mark}")

    def _line(self) -> str:
        return "  ".join(self._state[key] for key in ("epoch", "loss", "quality", "left") if self._state.get(key))


def describe(run: TrainingRun) -> str:
    """How a run ended, in a few words."""
    parts = [str(run.outcome or run.status)]
    if run.quality is not None:
        parts.append(f"quality {score(run.quality)} at epoch {run.best_epoch}")
    if run.failure:
        parts.append(run.failure)
    if run.root_cause_diagnosis:
        parts.append("; ".join(d.issue.replace("_", " ") for d in run.root_cause_diagnosis[:2]))
    return ", ".join(parts)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))


def score(quality: float | None) -> str:
    """A quality with one decimal, or a dash."""
    return "-" if quality is None else f"{quality:.1f}"


listener: Listener = LogListener()
"""Who hears of it; the command line replaces it."""
