"""Generated histories whose rule is known: does the impact analysis find it, and nothing where nothing is?"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import numpy as np

from optimizer.effects.effects import survey
from optimizer.effects.principles import learnt, scope_of
from optimizer.experiments.paired import LEAST_PAIRS, Change, missing, verdict_on, worth_of
from optimizer.search.rules import Rule
from optimizer.search.space import Space
from schema.campaign import CampaignFile
from schema.findings import Principle
from schema.parameters import Parameters
from schema.runs import Outcome, RunHistory, RunStatus, TrainingRun

_START = datetime(2026, 1, 1, tzinfo=UTC)
_RUNS = 40
_NOISE = 4.0
_SEED_NOISE = 1.0  # points between runs that differ by the seed alone, as the demo's do
_BEFORE = 10  # runs before a test
_CLAIMS = ("critical", "secondary")
MATTERING = frozenset(("network_dim", "learning_rate"))
"""Parameters that the generated quality depends on."""


def space() -> Space:
    """Six parameters, of which two matter."""
    return Space.of(
        CampaignFile.model_validate(
            {
                "campaign": {"name": "rules", "base_model": "base", "dataset": "data"},
                "search": {
                    "learning_rate": {"low": 1e-5, "high": 1e-3},
                    "network_dim": {"low": 4, "high": 128},
                    "keep_tokens": {"low": 0, "high": 3},
                    "caption_dropout_rate": {"low": 0.0, "high": 0.2},
                    "lr_scheduler": {"choices": ["constant", "cosine", "linear"]},
                    "flip_aug": {"choices": [True, False]},
                },
                "fixed": {"shuffle_caption": True},
            }
        )
    )


def quality(parameters: Parameters) -> float:
    """The rule: 25 points less above rank 32, and a peak of the learning rate at 1e-4."""
    rate, rank = float(parameters["learning_rate"] or 0), float(parameters["network_dim"] or 0)
    return 70 - (25 if rank > 32 else 0) - 20 * float(np.log10(rate / 1e-4)) ** 2


def history(seed: int, within: Space) -> list[RunHistory]:
    """Runs at random settings, with noise."""
    rng = np.random.default_rng(seed)
    settings = [within.complete(within.at(rng.random(len(within.names)))) for _ in range(_RUNS)]
    return [_run(i, p, float(np.clip(quality(p) + rng.normal(0, _NOISE), 0, 100))) for i, p in enumerate(settings)]


def _run(number: int, parameters: Parameters, reached: float) -> RunHistory:
    rank = float(parameters["network_dim"] or 0)
    run = TrainingRun(
        uid=uuid.UUID(int=number), campaign="rules", number=number, run_name=f"rules-{number:03d}",
        best_epoch=1 + int(reached) % 7, total_training_time=100 + rank,
        status=RunStatus.FINISHED, outcome=Outcome.OK, base_model="base", dataset="data", all_parameters=parameters,
        quality=reached, started_at=_START + timedelta(hours=number),
    )  # fmt: skip
    return RunHistory(run=run)


def shuffled(runs: list[RunHistory], seed: int) -> list[RunHistory]:
    """The same settings, outcomes dealt anew."""
    order = np.random.default_rng(seed).permutation(len(runs))
    return [
        RunHistory(run=runs[int(i)].run.changed(all_parameters=r.run.all_parameters))
        for r, i in zip(runs, order, strict=True)
    ]


def claims_on_shuffles(draws: int) -> float:
    """Share of the shuffles in which any parameter is claimed to matter for any outcome."""
    within = space()
    runs = [shuffled(history(seed % 5, within), seed) for seed in range(draws)]
    return float(np.mean([any(e.verdict in _CLAIMS for e in survey(some, within).effects) for some in runs]))


def principle_claims_on_shuffles(draws: int) -> float:
    """Share of the shuffles from which any principle is learnt."""
    within = space()
    runs = [shuffled(history(seed % 5, within), seed) for seed in range(draws)]
    return float(np.mean([bool(_principles(some, within)) for some in runs]))


def principles_recovered(draws: int) -> float:
    """Share of the histories from which the limit of the rank is learnt, at 32 within the runs' resolution."""
    within = space()
    return float(np.mean([_limit_found(history(seed, within), within) for seed in range(draws)]))


def _limit_found(runs: list[RunHistory], within: Space) -> bool:
    dims = [float(h.run.all_parameters["network_dim"] or 0) for h in runs]
    below = max(d for d in dims if d <= 32)
    limits = [Rule.parse(p.rule) for p in _principles(runs, within) if p.rule.startswith("network_dim <=")]
    # Below the cliff a rate far off is bad as well, so that the highest good rank may lie lower.
    return any(isinstance(r.right, float) and below / 2 <= r.right <= 32 for r in limits)


def _principles(runs: list[RunHistory], within: Space) -> list[Principle]:
    return learnt(runs, within, (), scope_of("base", "data"), _START)


TRUE, FALSE = "network_dim 64 -> 16", "keep_tokens 1 -> 3"
"""Hypotheses of which the generating rule makes one true (25 points) and one false (nothing)."""


def tested(hypothesis: str, draws: int) -> tuple[dict[str, float], float]:
    """Test a hypothesis by pairs after ten runs at random settings, as `pixelloop test` does.

    Returns:
        Share of each verdict, and the median number of runs that it took.
    """
    told = [_tested(Change.parse(hypothesis), seed) for seed in range(draws)]
    shares = {s: float(np.mean([state == s for state, _ in told])) for s in ("confirmed", "refuted", "inconclusive")}
    return shares, float(np.median([runs for _, runs in told]))


def _tested(change: Change, seed: int) -> tuple[str, int]:
    within, rng = space(), np.random.default_rng([seed, 1])
    runs = [
        _run(i, h.run.all_parameters, _measured(h.run.all_parameters, rng))
        for i, h in enumerate(history(seed, within)[:_BEFORE])
    ]
    worth = worth_of(_SEED_NOISE)
    while (told := verdict_on(change, runs, within, worth)).state == "running":
        for half in missing(change, runs, within, max(LEAST_PAIRS - told.pairs, 1)):
            runs.append(_run(len(runs), half, _measured(half, rng)))
    return told.state, len(runs) - _BEFORE


def _measured(parameters: Parameters, rng: np.random.Generator) -> float:
    return float(np.clip(quality(parameters) + rng.normal(0, _SEED_NOISE), 0, 100))


def rules_recovered(draws: int) -> float:
    """Share of the histories in which the parameters that matter for quality, and no others, are claimed."""
    within = space()
    return float(np.mean([_claimed(history(seed, within), within) == MATTERING for seed in range(draws)]))


def _claimed(runs: list[RunHistory], within: Space) -> frozenset[str]:
    rows = survey(runs, within).effects
    return frozenset(row.parameter for row in rows if row.outcome == "quality" and row.verdict in _CLAIMS)
