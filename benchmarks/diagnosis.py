"""Does the analysis name what is wrong, and nothing where nothing is?

    python -m benchmarks.diagnosis [--quick] [--data DIR] [--json] [--work DIR]

Real trials of the demo's tiny model with planted faults (`benchmarks.faults`) and healthy ones. Each is diagnosed
with the other healthy runs as history and the audit of its data set; the label is never seen. `first` and `top3`:
share of the faulty runs whose cause is named first, or among three. `false_alarms`: share of the healthy runs of
which a cause is blamed with a confidence of at least a half. `calibration_error`: mean distance of confidence and
share of right first causes in five bins, over all runs that blame anything. `false_claims_shuffled`: share of 200
shuffles of a history's outcomes in which the impact analysis claims anything. `rule_recovered`: share of generated
histories in which the parameters that made them, and no others, are claimed. `false_principles_shuffled` and
`principle_recovered`: the same of the principles. `true_hypothesis_confirmed` and `false_hypothesis_refuted`: share of
100 paired tests of a change that does, or does not, matter in the generator; `runs_to_confirm` and `runs_to_refute`:
the median number of runs of such a test.

Finished trials are kept in the work folder. `--data` may hold another `base` model and `prompts.toml`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.fault_trials import Laboratory, Trial
from benchmarks.faults import FAULTS
from benchmarks.rules import (
    FALSE,
    TRUE,
    claims_on_shuffles,
    principle_claims_on_shuffles,
    principles_recovered,
    rules_recovered,
    tested,
)
from benchmarks.scores import mean
from demo.workspace import PACKAGE
from optimizer.diagnosis.diagnose import blamed, diagnose_run
from optimizer.search.space import Space
from schema.campaign import load_campaign
from schema.findings import LikelyCause
from schema.runs import RunHistory
from tasks.captions_audit.audit import audit_dataset, model_tokens
from tasks.captions_audit.captions import least_tokens

_ALARM = 0.5
_BINS = 5


@dataclass(frozen=True)
class Answer:
    """What was blamed for a trial, the most likely first."""

    trial: Trial
    causes: tuple[LikelyCause, ...]
    harmed: bool

    @property
    def label(self) -> str:
        """What was planted."""
        return self.trial.fault.name if self.trial.fault else "healthy"

    def right(self, among: int) -> bool:
        """Whether what was planted is among the first causes."""
        wanted = self.trial.fault.factors if self.trial.fault else frozenset[str]()
        return any(cause.factor in wanted for cause in self.causes[:among])


def trials(laboratory: Laboratory, quick: bool) -> Iterator[Trial]:
    """Healthy trials, then faulty ones."""
    for seed in range(1, 9 if quick else 21):
        yield laboratory.trial(None, seed)
    for seed in (101,) if quick else (101, 102, 103):
        for fault in FAULTS:
            yield laboratory.trial(fault, seed)


def answer(trial: Trial, healthy: Sequence[RunHistory], space: Space, base: Path) -> Answer:
    """Diagnose one trial."""
    tokens = model_tokens(base) or least_tokens
    audit = audit_dataset(trial.dataset, trial.run.run.all_parameters, tokens)
    others = [h for h in healthy if h.run.uid != trial.run.run.uid]
    found = diagnose_run(trial.run, others, space, audit)
    harmed = any(d.issue not in ("risky_setting", "risky_data", "slow") and not d.normal_for_epoch for d in found)
    return Answer(trial, blamed(found), harmed)


def _alarm(answer: Answer) -> bool:
    return bool(answer.causes) and answer.causes[0].confidence >= _ALARM


def calibration_error(answers: Sequence[Answer]) -> float | None:
    """Expected calibration error of the first causes' confidence; None where nothing is blamed."""
    named = [(a.causes[0].confidence, a.right(1)) for a in answers if a.causes]
    if not named:
        return None
    bins = np.minimum((np.array([c for c, _ in named]) * _BINS).astype(int), _BINS - 1)
    gaps = [
        len(here) * abs(float(np.mean([c for c, _ in here])) - float(np.mean([r for _, r in here])))
        for here in ([pair for pair, b in zip(named, bins, strict=True) if b == k] for k in range(_BINS))
        if here
    ]
    return sum(gaps) / len(named)


def confusion(answers: Sequence[Answer]) -> str:
    """By planted fault, what was named first and how often."""
    lines = []
    for label in dict.fromkeys(a.label for a in answers):
        mine = [a for a in answers if a.label == label]
        named = Counter(a.causes[0].factor if a.causes else "-" for a in mine)
        first = ", ".join(f"{factor} {many}" for factor, many in named.most_common())
        sure = mean([a.causes[0].confidence if a.causes else 0.0 for a in mine])
        lines.append(
            f"{label:30s} harm seen {sum(a.harmed for a in mine)}/{len(mine)}  sure {sure:.2f}  named: {first}"
        )
    return "\n".join(lines)


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one seed a fault, eight healthy runs, 40 shuffles")
    parser.add_argument("--data", type=Path, help="folder with another base model and prompts.toml")
    parser.add_argument("--work", type=Path, help="folder that keeps finished trials; a temporary one if left out")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        figures = measured(args.work or Path(temporary), args.data, args.quick)
    if args.json:
        print(json.dumps(figures))


def measured(work: Path, data: Path | None, quick: bool) -> dict[str, float | int | None]:
    """All figures; the confusion table is printed."""
    base = data / "base" if data is not None and (data / "base").exists() else PACKAGE / "base"
    prompts = (
        data / "prompts.toml" if data is not None and (data / "prompts.toml").exists() else PACKAGE / "prompts.toml"
    )
    laboratory, done = Laboratory(work, base, prompts), []
    try:
        for trial in trials(laboratory, quick):
            done.append(trial)
            print(f"{len(done):3d} {trial.fault.name if trial.fault else 'healthy'}", file=sys.stderr, flush=True)
    finally:
        laboratory.close()
    space = Space.of(load_campaign(PACKAGE / "campaign.toml"))
    healthy = [t.run for t in done if t.fault is None]
    answers = [answer(trial, healthy, space, base) for trial in done]
    faulty = [a for a in answers if a.trial.fault is not None]
    well = [a for a in answers if a.trial.fault is None]
    print(confusion(answers))
    draws = 20 if quick else 100
    (true, runs_true), (false, runs_false) = tested(TRUE, draws), tested(FALSE, draws)
    everything = [t.run for t in done]
    mixed = [answer(trial, everything, space, base) for trial in done]
    return {
        "first": mean([a.right(1) for a in faulty]),
        "top3": mean([a.right(3) for a in faulty]),
        "first_where_harm_was_seen": mean([a.right(1) for a in faulty if a.harmed]),
        "first_beside_all_runs_where_harm_was_seen": mean([a.right(1) for a in mixed if a.trial.fault and a.harmed]),
        "false_alarms_beside_all_runs": mean([_alarm(a) for a in mixed if a.trial.fault is None]),
        "false_alarms": mean([_alarm(a) for a in well]),
        "false_claims_shuffled": claims_on_shuffles(40 if quick else 200),
        "false_principles_shuffled": principle_claims_on_shuffles(40 if quick else 200),
        "principle_recovered": principles_recovered(5 if quick else 20),
        "true_hypothesis_confirmed": true["confirmed"],
        "runs_to_confirm": runs_true,
        "false_hypothesis_refuted": false["refuted"],
        "false_hypothesis_confirmed": false["confirmed"],
        "runs_to_refute": runs_false,
        "rule_recovered": rules_recovered(5 if quick else 20),
        "calibration_error": calibration_error(answers),
        "faulty_runs": len(faulty),
        "healthy_runs": len(well),
    }


if __name__ == "__main__":
    main()
