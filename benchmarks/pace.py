"""What a decision costs: ask, judge and tell beside so many runs, on a search of eight parameters."""

from __future__ import annotations

import time

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from benchmarks.campaigns import DATASET, history_run
from benchmarks.replay import Replayed
from optimizer.search.gate import Gate
from optimizer.search.proposer import CONSTRAINT, VIOLATION
from optimizer.search.space import KOHYA, Space
from optimizer.search.study import CampaignStudy
from optimizer.search.surrogate import Surrogate
from schema.campaign import GateSettings
from schema.runs import Outcome, RunHistory

_SPAN: dict[str, BaseDistribution] = {
    "learning_rate": FloatDistribution(1e-5, 1e-2, log=True),
    "network_dim": IntDistribution(4, 128, log=True),
    "network_alpha": FloatDistribution(1.0, 64.0, log=True),
    "optimizer_type": CategoricalDistribution(["AdamW", "Lion", "Prodigy"]),
    "lr_scheduler": CategoricalDistribution(["constant", "cosine", "linear"]),
    "caption_dropout_rate": FloatDistribution(0.0, 0.3),
    "network_dropout": FloatDistribution(0.0, 0.3),
    "min_snr_gamma": FloatDistribution(1.0, 20.0),
}
_REPEATS = 5


def milliseconds(runs: int) -> float:
    """Median processor time in ms of one ask + gate + tell beside `runs` runs, surrogate fitted anew each time.

    Processor time, because a machine that others use too would count theirs; on one core it is the wall's.
    """
    space = Space(_SPAN, {}, (), 20.0, KOHYA)
    history = _history(space, runs)
    study = CampaignStudy.open("pace", "sqlite://", space, "model", 0)
    gate = Gate(GateSettings(), space, 0)
    study.study.add_trials([_ended(space, run) for run in history])
    taken = []
    for _ in range(_REPEATS):
        started = time.process_time()
        surrogate = Surrogate.fit(history, space, 20.0, "base", DATASET)
        proposal = study.ask(surrogate=surrogate)
        parameters = space.complete(proposal.parameters)
        gate.judge(parameters, surrogate.predict(parameters), history, proposal.number, 0)
        study.finish(proposal.number, Outcome.OK, 50.0)
        taken.append(time.process_time() - started)
    study.close()
    return 1000 * float(np.median(taken))


def _ended(space: Space, run: RunHistory) -> FrozenTrial:
    """A trial as `CampaignStudy` leaves it; asking and telling a thousand of them would take minutes."""
    good = run.run.quality is not None
    return create_trial(
        state=TrialState.COMPLETE if good else TrialState.PRUNED,
        params=space.searched(run.run.all_parameters),
        distributions=space.distributions,
        value=run.run.quality,
        constraints={CONSTRAINT: -VIOLATION if good else VIOLATION},
        user_attrs={"outcome": str(run.run.outcome)},
    )


def judgement_ms(runs: int) -> float:
    """Median processor time in ms of one prediction beside `runs` runs."""
    space = Space(_SPAN, {}, (), 20.0, KOHYA)
    surrogate = Surrogate.fit(_history(space, runs), space, 20.0, "base", DATASET)
    settings = [h.run.all_parameters for h in _history(space, 50)]
    started = time.process_time()
    for setting in settings:
        surrogate.predict(setting)
    return 1000 * (time.process_time() - started) / len(settings)


def _history(space: Space, runs: int) -> list[RunHistory]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(runs):
        parameters = space.complete(space.at(rng.random(len(space.names))))
        failed = float(parameters["learning_rate"] or 0) > 4e-3
        quality = 60 - 8 * (np.log10(float(parameters["learning_rate"] or 1)) + 3.5) ** 2 + rng.normal(0, 2)
        ran = Replayed(np.array([max(quality, 0.0)]), failed, 1)
        found.append(history_run("base", number, parameters, ran))
    return found
