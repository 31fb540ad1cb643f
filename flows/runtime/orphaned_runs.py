"""``python -m flows.runtime.orphaned_runs HOME``: tell Prefect of the flow runs whose process is gone.

After a power cut Prefect takes what ran for running for ever, and the places of a deployment's limit for taken. Each of
our flow runs holds a claim that the system frees with its process, so what is free but not tidied away has died; flow
runs of other programs, and ours that still run, are never touched. Every campaign does this when it begins; where a
limit would keep it from beginning, let it be done before the Prefect worker starts.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Crashed

from tasks.claims import Claim
from tasks.home import Home


@contextlib.contextmanager
def signed_in(home: Home) -> Iterator[None]:
    """Hold the claim of the flow run that this is called in."""
    place = home.flow_runs / str(runtime.flow_run.id)
    with Claim.take(place) or contextlib.nullcontext():
        yield
    place.unlink(missing_ok=True)


def tidy(home: Home) -> int:
    """Mark the flow runs of a home as crashed whose process is gone, with all that ran in them; how many there were."""
    found = 0
    with get_client(sync_client=True) as client:
        for place in sorted(home.flow_runs.glob("*-*")):
            claim = Claim.take(place)
            if claim is not None:
                with claim:
                    found += _bury(client, UUID(place.name))
                    place.unlink()
    return found


def _bury(client: SyncPrefectClient, run: UUID) -> int:
    """Mark a flow run and those inside it, the inner ones first."""
    inside = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]))
    found = sum(_bury(client, child.id) for child in client.read_flow_runs(flow_run_filter=inside))
    with contextlib.suppress(ObjectNotFound):  # of another Prefect server
        state = client.read_flow_run(run).state
        if state is not None and not state.is_final():
            # One that was to be cancelled is: a crash would have it run again.
            end = Cancelled if state.is_cancelling() else Crashed
            client.set_flow_run_state(run, end(message="its process is gone"), force=True)
            found += 1
    return found


def main() -> None:
    """Tidy the home that is named."""
    print(f"{tidy(Home.at(Path(sys.argv[1])))} flow runs had died and are marked as crashed")


if __name__ == "__main__":
    main()
