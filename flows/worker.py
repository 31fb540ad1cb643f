"""Run trials of a campaign beside the process that began it.

``python -m flows.worker CAMPAIGN_FILE HOME NUMBER TRIALS`` is such a process. It ends when the budget is spent,
and saves its trial and ends when the campaign does.
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import flow

from flows.campaign import adopt, budget_of
from flows.loop import work
from flows.runtime import interrupt, pause, progress
from flows.runtime.orphaned_runs import signed_in
from flows.runtime.retry import patiently
from flows.runtime.served import end_with_parent
from flows.runtime.wiring import open_campaign, pin_gpu, session
from flows.runtime.workers import EXPLAINED, WORKER_GRACE
from schema.campaign import load_campaign
from schema.errors import PixelloopError

_BEFORE_THE_KILL = 10.0
"""Seconds between the end that this process takes by itself and the one that the campaign gives it."""


@flow(name="worker", flow_run_name="{campaign} worker {number}")
def worker(campaign: str, campaign_file: str, home: str, number: int, trials: int | None = None) -> str:
    """Run trials of a campaign beside the process that began it.

    Returns:
        Why it ended.
    """
    with session():
        context = open_campaign(campaign_file, home)
        with signed_in(context.home):
            pin_gpu(context.services.settings.device)
            pause.end_at(context.file.budget.until)
            adopt(context)
            return work(context, budget_of(context, trials), patient=False)


def main() -> None:
    """Run trials until the budget is spent."""
    file, home, number, trials = sys.argv[1:]
    interrupt.listen()
    end_with_parent(WORKER_GRACE - _BEFORE_THE_KILL)
    progress.listener = progress.LineListener()
    name = load_campaign(Path(file)).campaign.name
    try:
        patiently(lambda: worker(name, file, home, int(number), int(trials) or None))
    except PixelloopError as error:
        progress.listener.message(f"[red]worker {number} ended[/]: {error}")
        sys.exit(EXPLAINED)


if __name__ == "__main__":
    main()
