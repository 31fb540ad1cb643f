"""How well the surrogate tells what a setting brings, on measured runs it has not seen.

    python -m benchmarks.prediction [--quick] [--data DIR] [--json]

Within 15 % of the result says nothing where a constant guess passes as often, so that stands beside it.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from benchmarks.campaigns import measured_runs, surrogate_for
from benchmarks.replay import Replay
from benchmarks.search import is_sweep, tables_of
from optimizer.control.stopping import Forecast, Outlook
from schema.errors import ConfigError
from schema.runs import RunHistory

RUNS = (5, 20, 50)
_TESTED = 200
_TOLERANCE = 0.15
_SHARES = (0.3, 0.5)
_LEAST_CURVE = 10


@dataclass(frozen=True)
class Score:
    """Of predictions beside results.

    Attributes:
        within_15pct: share off by at most 15 % of the result.
        constant_within_15pct: the same of the median of the runs seen.
        error_over_iqr: median error over the quartile distance of the results; nan where that is 0.
        spearman_top_half: rank correlation among the better half.
        coverage_90: share inside the 90 % interval.
    """

    within_15pct: float
    constant_within_15pct: float
    error_over_iqr: float
    spearman_top_half: float
    coverage_90: float


def score(told: Sequence[Forecast], guess: float, came: Sequence[float]) -> Score:
    """Compare predictions (`sd` being half a 90 % interval) and a constant guess with what came."""
    expected, half = (np.array([getattr(f, name) for f in told]) for name in ("quality", "sd"))
    results = np.array(came)
    spread = float(np.subtract(*np.quantile(results, [0.75, 0.25])))
    better = results >= np.median(results)
    ranked = better.sum() > 2 and np.ptp(expected[better]) > 0 and np.ptp(results[better]) > 0
    return Score(
        within_15pct=float(np.mean(np.abs(expected - results) <= _TOLERANCE * results)),
        constant_within_15pct=float(np.mean(np.abs(guess - results) <= _TOLERANCE * results)),
        error_over_iqr=float(np.median(np.abs(expected - results))) / spread if spread > 0 else float("nan"),
        spearman_top_half=float(spearmanr(expected[better], results[better])[0]) if ranked else float("nan"),
        coverage_90=float(np.mean(np.abs(expected - results) <= half + 1e-9)),
    )


def predict_unseen(replay: Replay, n: int, seed: int) -> Score:
    """Learn n random runs of a table, then tell others that did not fail."""
    seen, unseen = _split(replay, n, seed)
    surrogate = surrogate_for(replay, seen)
    told = []
    for run in unseen:
        prediction = surrogate.predict(run.run.all_parameters)
        half = max(prediction.high - prediction.quality, prediction.quality - prediction.low)
        told.append(Forecast(prediction.quality, half, prediction.n))
    return score(told, _median(seen), [run.run.quality or 0.0 for run in unseen])


def forecast_curves(replay: Replay, n: int, seed: int, share: float) -> Score:
    """As `predict_unseen`, with the first epochs of each run known, from the finished runs' curves."""
    seen, unseen = _split(replay, n, seed)
    total = replay.table.curves.shape[1]
    outlook, surrogate = Outlook(seen, total), surrogate_for(replay, seen)
    known = max(int(share * total), 1)
    told = []
    for run in unseen:
        found = outlook.forecast(run.curve[:known], surrogate.predict(run.run.all_parameters))
        if found is not None:
            told.append(Forecast(found.quality, 1.645 * found.sd, found.runs))
    return score(told, _median(seen), [run.run.quality or 0.0 for run in unseen])


def _split(replay: Replay, n: int, seed: int) -> tuple[list[RunHistory], list[RunHistory]]:
    table = replay.table
    order = [int(i) for i in np.random.default_rng([seed, n]).permutation(len(table.settings))]
    fine = [i for i in order[n:] if not table.failed[i]][:_TESTED]
    return measured_runs(replay, order[:n]), measured_runs(replay, fine)


def _median(seen: Sequence[RunHistory]) -> float:
    return float(np.median([h.run.quality for h in seen if h.run.quality is not None] or [50.0]))


def _mean(scores: Sequence[Score]) -> dict[str, float]:
    names = asdict(scores[0])
    return {name: round(float(np.nanmean([getattr(s, name) for s in scores])), 3) for name in names}


def _over_tables(rows: Sequence[dict[str, float]]) -> dict[str, float | None]:
    return {name: round(float(np.nanmedian([row[name] for row in rows])), 3) for name in rows[0]}


def main() -> None:
    """Command line of the benchmark."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="two seeds")
    parser.add_argument("--data", type=Path, help="folder of tables")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    try:
        tables, source = tables_of(args.data)
    except ConfigError as error:
        parser.error(str(error))
    seeds = range(2 if args.quick else 10)
    rows: dict[str, dict[str, dict[str, float]]] = {}
    for replay in (Replay(t) for t in tables if not is_sweep(t)):
        row = {f"{n} runs": _mean([predict_unseen(replay, n, seed) for seed in seeds]) for n in RUNS}
        if replay.table.curves.shape[1] >= _LEAST_CURVE:
            for share in _SHARES:
                found = [forecast_curves(replay, RUNS[-1], seed, share) for seed in seeds]
                row[f"{RUNS[-1]} runs and {share:.0%} of the epochs"] = _mean(found)
        rows[replay.table.name] = row
        for name, told in row.items():
            print(f"{replay.table.name[:40]:40s} {name:32s} {told}", flush=True)
    kinds = dict.fromkeys(name for row in rows.values() for name in row)
    overall = {kind: _over_tables([row[kind] for row in rows.values() if kind in row]) for kind in kinds}
    figures = {**overall[f"{RUNS[-1]} runs"], "by_runs": overall, "data": str(source)}
    print(json.dumps(figures, indent=1))
    if args.json:
        print(json.dumps({**figures, "tables": rows}))


if __name__ == "__main__":
    main()
