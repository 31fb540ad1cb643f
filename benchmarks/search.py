"""The search against random, TPE, GPSampler, TPE with a median pruner and SMAC3, on replayed tables of real trainings.

    python -m benchmarks.search [--quick] [--data DIR] [--json]
    python -m benchmarks.search --seeds 3 --against gp smac --jobs 2 --work DIR

Without --data the tables of ../shared/data/tables are taken where they lie, else small made-up ones. Searches run in
as many processes as there are cores. With --work the opponents' are kept there and not run again, as long as tables
and versions are the same. SMAC3 is one of them where it is installed (benchmarks/requirements.txt).
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks import searcher_smac
from benchmarks.contest import OURS, Contest, names_of, quiet
from benchmarks.gatekeeping import Refusals, SweepRule, best_rule, refusals, transfer_first, veto_on_sweep
from benchmarks.made_up import made_up_tables
from benchmarks.pace import judgement_ms, milliseconds
from benchmarks.replay import TARGET_REGRET, Replay, is_grid, regret
from benchmarks.searchers import Done
from benchmarks.tables import Table, load_tables
from schema.errors import ConfigError

DATA = Path("../shared/data/tables")
BUDGET = 40
_SWEEP = 64
"""A grid of at most this many cells is a sweep: it tests transfer, not search."""

Runs = Mapping[str, list[list[Done]]]
"""For each searcher the trials of each seed."""


@dataclass(frozen=True)
class Result:
    """What came of one table; a searcher's runs are in the order of the seeds."""

    name: str
    runs: Runs

    def regrets(self, who: str) -> np.ndarray:
        """Regret so far after each trial, shape (seeds, budget)."""
        found = [[regret(d.quality) for d in run] for run in self.runs[who]]
        return np.minimum.accumulate(np.array(found), axis=1)

    def solved_after(self, who: str) -> list[float]:
        """Trials to the target for each seed, infinite where it was not reached."""
        return [_first(curve, TARGET_REGRET) for curve in self.regrets(who)]

    def ratio(self, other: str, compute: bool) -> list[float]:
        """For each seed, what we need to be as good as the other ends, over what the other needed for it.

        Where we do not get there, all that we spent and one trial more counts.
        """
        ratios = []
        for seed, (mine, theirs) in enumerate(zip(self.regrets(OURS), self.regrets(other), strict=True)):
            level = float(theirs[-1]) + 1e-9
            needs = []
            for who, curve in ((OURS, mine), (other, theirs)):
                trials = min(_first(curve, level), len(curve) + 1.0)
                costs = [d.cost for d in self.runs[who][seed]] + [1.0]
                needs.append(sum(costs[: int(trials)]) if compute else trials)
            ratios.append(needs[0] / needs[1])
        return ratios

    def row(self) -> dict[str, object]:
        """The table's figures, by searcher."""
        return {"table": self.name, **{who: self._figures(who) for who in self.runs}}

    def _figures(self, who: str) -> dict[str, object]:
        curves, flat = self.regrets(who), [d for run in self.runs[who] for d in run]
        seeds = len(curves)
        return {
            "trials_to_target": _finite(float(np.median(self.solved_after(who)))),
            "solved": f"{sum(math.isfinite(t) for t in self.solved_after(who))}/{seeds}",
            "regret_15": _finite(round(float(np.median(curves[:, min(14, curves.shape[1] - 1)])), 3)),
            "regret_end": _finite(round(float(np.median(curves[:, -1])), 3)),
            "failed": round(float(np.mean([d.failed for d in flat])), 3),
            "full_runs": round(sum(d.cost for d in flat) / seeds, 1),
        }


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one table a family, two seeds, 20 trials")
    parser.add_argument("--data", type=Path, help="folder of tables")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="searches at a time")
    parser.add_argument("--against", nargs="+", default=(), metavar="NAME", help="some of the opponents instead of all")
    parser.add_argument("--work", type=Path, help="folder that keeps the opponents' searches")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    quiet()
    if args.jobs < 1:
        parser.error(f"--jobs must be at least 1, but got {args.jobs}")
    try:
        tables, source = tables_of(args.data)
        who = names_of(args.against)
    except ConfigError as error:
        parser.error(str(error))
    print(f"{len(tables)} tables from {source}", flush=True)
    seeds, budget = (2, 20) if args.quick else (args.seeds, BUDGET)
    replays = [Replay(table) for table in (_chosen(tables) if args.quick else tables)]
    sweeps = [r for r in replays if is_sweep(r.table)]
    found = {**_gate(replays, args.quick), **_sweeps(sweeps), **_pace()}
    print(json.dumps(found), flush=True)
    with Contest.of(args.jobs, who, args.work) as contest:
        results = [compare(contest, replay, seeds, budget) for replay in replays if not is_sweep(replay.table)]
    found = {**headline(results), **found}
    found |= {"tables": [r.row() for r in results], "seeds": seeds, "budget": budget, "data": str(source)}
    if not searcher_smac.installed():
        print("SMAC3 is not installed here, so it was not run")
    print(json.dumps({k: v for k, v in found.items() if k != "tables"}, indent=1))
    if args.json:
        print(json.dumps(found))


def tables_of(folder: Path | None) -> tuple[list[Table], str]:
    """The tables to use, and where they are from."""
    if folder is not None or DATA.is_dir():
        place = folder or DATA
        return load_tables(place), str(place)
    return made_up_tables(), "made-up ones (no --data)"


def is_sweep(table: Table) -> bool:
    """A small grid: one of several models swept over the same few parameters."""
    return is_grid(table) and len(table.settings) <= _SWEEP


def compare(contest: Contest, replay: Replay, seeds: int, budget: int) -> Result:
    """Run all searchers on one table, on the same seeds."""
    result = Result(replay.table.name, contest.runs(replay, seeds, budget))
    for who in result.runs:
        print(f"{result.name[:40]:40s} {who:12s} {result._figures(who)}", flush=True)
    return result


def headline(results: Sequence[Result]) -> dict[str, object]:
    """The search's keys: medians over the tables."""
    if not results:
        return dict.fromkeys(("trials_to_target", "vs_gp", "vs_tpe", "vs_smac", "compute_vs_gp", "worse_than_gp"))
    solved = [t for r in results if math.isfinite(t := float(np.median(r.solved_after(OURS))))]
    ends = {
        r.name: [float(np.median(r.regrets(who)[:, -1])) for who in (OURS, "gp")] for r in results if "gp" in r.runs
    }
    return {
        "trials_to_target": float(np.median(solved)) if solved else None,
        "tables_solved": f"{len(solved)}/{len(results)}",
        "vs_gp": _over(results, "gp", compute=False),
        "vs_tpe": _over(results, "tpe", compute=False),
        "vs_smac": _over(results, "smac", compute=False),
        "compute_vs_gp": _over(results, "gp", compute=True),
        "worse_than_gp": [name for name, (ours, gp) in ends.items() if ours > gp + 0.01] if ends else None,
    }


def _over(results: Sequence[Result], other: str, compute: bool) -> float | None:
    if other not in results[0].runs:
        return None
    return round(float(np.median([np.median(r.ratio(other, compute)) for r in results])), 3)


def _chosen(tables: Sequence[Table]) -> list[Table]:
    """One table of each family, and all sweeps."""
    first = {t.family: t for t in reversed(tables) if not is_sweep(t)}
    return [*first.values(), *(t for t in tables if is_sweep(t))]


def _gate(replays: Sequence[Replay], quick: bool) -> dict[str, object]:
    failing = [r for r in replays if not is_sweep(r.table) and r.table.failed.mean() >= 0.02]
    if not failing:
        return dict.fromkeys(("failures_cut_20", "failures_cut_50", "top5_refused"))
    measured: dict[int, list[Refusals]] = {
        n: [refusals(replay, n, seed) for replay in failing for seed in range(2 if quick else 3)] for n in (20, 50)
    }
    worst = max(float(np.mean([r.top for r in found])) for found in measured.values())
    return {
        "failures_cut_20": round(float(np.median([r.failures for r in measured[20]])), 3),
        "failures_cut_50": round(float(np.median([r.failures for r in measured[50]])), 3),
        "top5_refused": round(worst, 3),
        "top5_refused_median": round(max(float(np.median([r.top for r in f])) for f in measured.values()), 3),
    }


def _sweeps(sweeps: Sequence[Replay]) -> dict[str, object]:
    if len(sweeps) < 2:
        return {"transfer_within_1pct": None, "gate_on_sweeps": None, "rule_on_sweeps": None}
    first = [transfer_first(replay, [r for r in sweeps if r is not replay]) for replay in sweeps]
    vetoes = [veto_on_sweep(replay, [r for r in sweeps if r is not replay]) for replay in sweeps]
    rules: list[SweepRule] = [best_rule(replay) for replay in sweeps]
    return {
        "transfer_within_1pct": round(float(np.mean([gap <= 0.01 for gap in first])), 3),
        "transfer_gap_median": round(float(np.median(first)), 4),
        "gate_on_sweeps": SweepRule.total(vetoes),
        "rule_on_sweeps": SweepRule.total(rules),
    }


def _pace() -> dict[str, object]:
    found = {f"ask_ms_{n}": round(milliseconds(n), 1) for n in (100, 1000)}
    return {**found, "judgement_ms_1000": round(judgement_ms(1000), 2)}


def _first(curve: np.ndarray, level: float) -> float:
    below = np.flatnonzero(curve <= level)
    return float(below[0] + 1) if len(below) else math.inf


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


if __name__ == "__main__":
    main()
