"""Our own search on a replayed table: the campaign's real parts, with a table in place of training.

Ask, judge, run, stop and tell are those of `flows.campaign`; nothing is left out but the pictures.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from benchmarks.replay import Replay, Replayed
from benchmarks.searchers import Done
from optimizer.control.stopping import Outlook
from optimizer.search.gate import Gate
from optimizer.search.study import CampaignStudy, Proposal
from optimizer.search.surrogate import Surrogate
from schema.campaign import GateSettings, StoppingSettings
from schema.findings import Decision, GateVerdict
from schema.parameters import Parameters
from schema.runs import EpochResult, Outcome, RunHistory, RunStatus, TrainingRun, epoch_uid

DATASET = "table"
_START = datetime(2026, 1, 1, tzinfo=UTC)
_NAMES = uuid.UUID("4f8c0b5e-2b0f-4d0e-8f5c-0d5d4c1f9a11")


@dataclass
class CampaignOnTable:
    """One search.

    Attributes:
        replay: the table.
        seed: of the search.
        elsewhere: runs on other tasks of the same kind.
        sampler: as in campaign.toml.
        gate: as in campaign.toml.
        stopping: as in campaign.toml.
    """

    replay: Replay
    seed: int
    elsewhere: Sequence[RunHistory] = ()
    sampler: str = "model"
    gate: GateSettings = field(default_factory=GateSettings)
    stopping: StoppingSettings = field(default_factory=StoppingSettings)

    def run(self, budget: int) -> list[Done]:
        """Search until so many trials have run."""
        space = self.replay.space
        study = CampaignStudy.open(f"table-{self.seed}", "sqlite://", space, self.sampler, self.seed)
        gate = Gate(self.gate, space, self.seed)
        history: list[RunHistory] = []
        done: list[Done] = []
        while len(done) < budget:
            proposal, _ = propose(study, gate, surrogate_for(self.replay, [*self.elsewhere, *history]), history)
            ran = self.replay.run(proposal.parameters)
            kept = self._watched(ran, history)
            run = history_run(self.replay.table.name, proposal.number, proposal.parameters, ran, kept)
            history.append(run)
            study.finish(proposal.number, run.run.outcome or Outcome.CRASHED, run.run.quality)
            done.append(
                Done(proposal.parameters, run.run.quality, kept / ran.total, ran.failed and kept == len(ran.curve))
            )
        study.close()
        return done

    def _watched(self, ran: Replayed, history: Sequence[RunHistory]) -> int:
        """Checkpoints until the run ends or is stopped."""
        outlook = Outlook(history, ran.total)
        curve: list[tuple[int, float]] = []
        for epoch, quality in enumerate(ran.curve, start=1):
            curve.append((epoch, float(quality)))
            if epoch < ran.total and outlook.stop(curve, self.stopping) is not None:
                return epoch
        return len(ran.curve)


def propose(
    study: CampaignStudy, gate: Gate, surrogate: Surrogate, history: Sequence[RunHistory]
) -> tuple[Proposal, list[GateVerdict]]:
    """The next proposal that the gate lets run, and all verdicts on the way."""
    verdicts: list[GateVerdict] = []
    while True:
        proposal = study.ask(surrogate=surrogate)
        prediction = surrogate.predict(proposal.parameters)
        verdict = gate.judge(proposal.parameters, prediction, history, proposal.number, len(verdicts))
        verdicts.append(verdict)
        if verdict.decision is Decision.RUN:
            return proposal, verdicts
        study.refuse(proposal.number, verdict)


def surrogate_for(replay: Replay, history: Sequence[RunHistory]) -> Surrogate:
    """What is known for a table."""
    return Surrogate.fit(history, replay.space, replay.space.failed_quality, replay.table.name, DATASET)


def history_run(task: str, number: int, setting: Parameters, ran: Replayed, kept: int | None = None) -> RunHistory:
    """A run as the store would have it.

    Args:
        task: name of the table; it stands for the base model.
        number: of the run.
        setting: its parameters.
        ran: what came of it.
        kept: checkpoints until it was stopped; all if left out.
    """
    curve = ran.curve[:kept]
    whole = len(curve) == len(ran.curve)
    outcome = Outcome.STOPPED_EARLY if not whole else Outcome.DIVERGED if ran.failed else Outcome.OK
    run = TrainingRun(
        uid=uuid.uuid5(_NAMES, f"{task}/{number}"),
        campaign=task,
        number=number,
        run_name=f"{task}-{number:03d}",
        status=RunStatus.FINISHED,
        outcome=outcome,
        base_model=task,
        dataset=DATASET,
        all_parameters=setting,
        quality=None if outcome is Outcome.DIVERGED else float(curve.max()),
        epochs_done=len(curve),
        started_at=_START + timedelta(hours=number),
        finished_at=_START + timedelta(hours=number + 1),
    )
    return RunHistory(run=run, epochs=tuple(_epoch(run, i + 1, float(q)) for i, q in enumerate(curve)))


def measured_runs(replay: Replay, rows: Sequence[int]) -> list[RunHistory]:
    """Rows of a table as runs."""
    return [history_run(replay.table.name, i, replay.table.settings[i], replay.measured(i)) for i in rows]


def _epoch(run: TrainingRun, number: int, quality: float) -> EpochResult:
    return EpochResult(
        uid=epoch_uid(run.uid, number), run_uid=run.uid, epoch_number=number, quality=quality, created_at=_START
    )
