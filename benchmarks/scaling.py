"""What 2 and 4 workers of one campaign bring: trials side by side that share a study.

    python -m benchmarks.scaling [--trials 8] [--seconds 15] [--quick] [--json]

The trainer of `benchmarks.loop` trains nothing and sleeps instead, as a trainer on a GPU of its own leaves the CPU
alone; everything else is real: a process for each worker, Prefect, Postgres, the search, drawing, measuring, analysis.
Speed is trials over the time from the first one's start to the last one's end. Twins are trials of one study with the
same settings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from benchmarks.loop import Night
from flows.runtime.prefect_environment import quiet_libraries
from flows.runtime.prefect_server import prefect_server

_EPOCHS = 2


def main() -> None:
    """Print the figures."""
    args = _arguments()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        quiet_libraries(folder / "prefect")
        from flows.runtime import wiring

        night = Night(folder, args.seconds)
        with wiring.session():
            services = wiring.open_home(str(folder / "home"))
            with prefect_server(folder / "prefect", services.prefect_url, revive=services.revive):
                _run(night, "warm", 1, 1)  # the first campaign loads the model and measures it
                found = {count: _run(night, f"workers-{count}", args.trials, count) for count in args.workers}
    alone = found[args.workers[0]][0]
    for count, (seconds, twins) in found.items():
        print(f"{count} workers: {args.trials} trials in {seconds:6.1f} s, {alone / seconds:.2f} times, {twins} twins")
    figures = {
        "workers": max(found),
        "speedup": round(alone / found[max(found)][0], 2),
        "twins": sum(twins for _, twins in found.values()),
        "speedups": {str(count): round(alone / seconds, 2) for count, (seconds, _) in found.items()},
    }
    if args.json:
        print(json.dumps(figures))


def _run(night: Night, name: str, trials: int, workers: int) -> tuple[float, int]:
    """Seconds that the trials of a campaign took altogether, and how many of its settings were tried before."""
    from flows.campaign import campaign
    from flows.runtime import progress, wiring

    progress.listener = progress.LineListener()
    file, home = night.campaign(name, trials, _EPOCHS, workers), str(night.folder / "home")
    campaign(str(file), home)
    runs = wiring.open_campaign(str(file), home).store.runs(name)
    ends = [run.finished_at for run in runs if run.finished_at is not None]
    if len(ends) != trials:
        raise SystemExit(f"{len(ends)} of {trials} trials ended with {workers} workers")
    settings = {json.dumps(run.all_parameters["learning_rate"]) for run in runs}
    return (max(ends) - min(run.started_at for run in runs)).total_seconds(), len(runs) - len(settings)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=8, help="of each campaign")
    parser.add_argument("--seconds", type=float, default=15.0, help="that an epoch takes")
    parser.add_argument("--quick", action="store_true", help="1 and 2 workers, 4 trials of 10 s")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    args.workers = (1, 2, 4)
    if args.quick:
        args.trials, args.seconds, args.workers = 4, 5.0, (1, 2)
    return args


if __name__ == "__main__":
    main()
