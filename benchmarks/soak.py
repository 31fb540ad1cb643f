"""Kill -9 at random moments, again and again: what is lost, doubled, trained twice or left running.

    python -m benchmarks.soak [--kills 50] [--copies 0] [--workers 2] [--seed 0] [--quick] [--json]

A campaign of short trials on the demo's model runs as `pixelloop run` does, every part real. At moments drawn from the
seed one of its processes is killed: a trainer, the process that trainers are forked from, the campaign's own, one that
works beside it, Postgres, or the Prefect server. Where the campaign itself is gone, `pixelloop resume` is run, as a
supervisor would; from everything else it has to recover by itself. After each kill the benchmark waits until another
epoch is in the database. With `--copies` the home is backed up and restored, or copied, between kills: a row written
to the copy must not be in the original. At the end the rows are counted against what the trainers wrote down in
events.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import psycopg

from benchmarks.soak_copies import Copies
from demo.workspace import lay_out
from schema.errors import StoreError
from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres
from tasks.training.events import EpochEvent, read_events

_PICTURES, _EPOCHS = 12, 4
_LONGEST = 20.0  # seconds from one recovery to the next kill
_PATIENCE = 300.0  # seconds until a campaign that does not recover is given up
_GRACE = 60.0  # seconds for processes to end after the campaign
_WEIGHTS = {"trainer": 6, "forkserver": 3, "campaign": 4, "postgres": 3, "prefect": 3, "worker": 3}
_MODULES = {
    "tasks.training": "trainer", "flows.runtime.prefect_app": "prefect", "flows.worker": "worker",
    "flows.cli": "campaign",
}  # fmt: skip
_CAMPAIGN = """
[campaign]
name = "soak"
base_model = "{demo}/base"
dataset = "{demo}/portraits"
prompts = "{demo}/prompts.toml"
sampler = "random"
parallel = {workers}
[budget]
trials = 10000
[search]
learning_rate = {{ low = 1e-4, high = 1e-3, log = true }}
[fixed]
max_train_epochs = {epochs}
num_repeats = 6
train_batch_size = 4
[gate]
enabled = false
[stopping]
enabled = false
"""


@dataclass
class Blow:
    """One kill and how long nothing came of it."""

    victim: str
    seconds: float
    resumed: bool = field(default=False)


class Soak:
    """A campaign in a folder, and whoever is killed in it."""

    def __init__(self, folder: Path, workers: int) -> None:
        demo = folder / "demo"
        lay_out(demo)
        for extra in sorted((demo / "portraits").iterdir())[2 * _PICTURES :]:
            extra.unlink()
        prompts = (demo / "prompts.toml").read_text()
        second = prompts.index("[[prompts]]", prompts.index("[[prompts]]") + 1)
        (demo / "prompts.toml").write_text(prompts[:second].replace("steps = 15", "steps = 2"))
        self.file, self.home = folder / "campaign.toml", Home.at(folder / "home")
        self.file.write_text(_CAMPAIGN.format(demo=demo, workers=workers, epochs=_EPOCHS))
        self._log = folder / "campaign.log"
        self.postgres = EmbeddedPostgres(self.home.postgres)
        self.process: subprocess.Popen[bytes] | None = None
        self.seen: dict[tuple[int, float], psutil.Process] = {}

    def pixelloop(self, *words: str) -> None:
        """Start a command of the program."""
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.cli", *words, "--home", str(self.home.root)], stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
                env={k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def family(self) -> dict[str, list[int]]:
        """Process ids by what they do."""
        assert self.process is not None
        found: dict[str, list[int]] = {kind: [] for kind in _WEIGHTS}
        with contextlib.suppress(psutil.NoSuchProcess):
            campaign = psutil.Process(self.process.pid)
            for process in (campaign, *campaign.children(recursive=True)):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self.seen[process.pid, process.create_time()] = process
                    kind = _kind(process)
                    if kind is not None:
                        found[kind].append(process.pid)
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            state = json.loads((self.home.postgres / "state.json").read_text())
            pid_file = self.home.postgres / state["data"] / "postmaster.pid"
            pid = int(pid_file.read_text().split()[0])
            if psutil.pid_exists(pid):
                found["postgres"].append(pid)
        return found

    def rows(self) -> int:
        """Epochs in the database, -1 where it does not answer."""
        try:
            with psycopg.connect(self.postgres.url(), connect_timeout=2) as connection:
                row = connection.execute("select count(*) from public.epoch_results").fetchone()
        except (psycopg.Error, StoreError, OSError):  # nor does it before there is one
            return -1
        return int(row[0]) if row else -1

    def recover(self, rows: int, victim: str, before: list[int]) -> bool:
        """Wait for another epoch and for the victim's successor; resume the campaign if it ends meanwhile.

        Args:
            rows: epochs that are in the database now.
            before: processes of the victim's kind up to now.

        Returns:
            Whether the campaign had to be resumed.
        """
        resumed, deadline = False, time.monotonic() + _PATIENCE
        while self.rows() <= rows or not set(self.family()[victim]) - set(before):
            assert self.process is not None
            if self.process.poll() is not None:
                resumed = True
                self.pixelloop("resume")
            if time.monotonic() > deadline:
                raise SystemExit(f"nothing happened for {_PATIENCE:g} s: see {self._log}")
            time.sleep(0.3)
        return resumed

    def blow(self, rng: random.Random) -> Blow:
        """Kill somebody at a random moment, and wait until the campaign is as before."""
        until = time.monotonic() + rng.uniform(0.0, _LONGEST)
        victims, weights = zip(*_WEIGHTS.items(), strict=True)
        victim, pids = rng.choices(victims, weights)[0], list[int]()
        while time.monotonic() < until or not pids:
            time.sleep(0.1)
            pids = self.family()[victim]
            if time.monotonic() > until + _LONGEST and not pids:
                victim = rng.choices(victims, weights)[0]
        before = max(self.rows(), 0)
        struck = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(rng.choice(pids), signal.SIGKILL)
        resumed = self.recover(before, victim, pids)
        return Blow(victim, time.monotonic() - struck, resumed)

    def finish(self) -> int:
        """Stop the campaign, end it in good order, and count the processes that outlive it."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        self.process.wait(_PATIENCE)
        self.pixelloop("run", str(self.file), "--trials", "1")
        while self.process.poll() is None:
            self.family()
            time.sleep(0.3)
        if self.process.returncode != 0:
            raise SystemExit(f"the campaign did not end well (code {self.process.returncode}): see {self._log}")
        deadline = time.monotonic() + _GRACE
        while (left := self._left()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return len(left)

    def _left(self) -> list[psutil.Process]:
        mine = [p for p in self.seen.values() if p.is_running() and _status(p) != psutil.STATUS_ZOMBIE]
        return mine + [psutil.Process(pid) for pid in self.family()["postgres"]]


def _status(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess):
        return str(process.status())
    return psutil.STATUS_ZOMBIE


def _kind(process: psutil.Process) -> str | None:
    words = process.cmdline()
    parent = process.parent()
    if "tasks.training.forkserver" in words:
        forked = parent is not None and "tasks.training.forkserver" in parent.cmdline()
        return "trainer" if forked else "forkserver"
    modules = {
        "tasks.training": "trainer",
        "flows.runtime.prefect_app": "prefect",
        "flows.worker": "worker",
        "flows.cli": "campaign",
    }
    return next((kind for module, kind in modules.items() if module in words), None)


def _truth(home: Home) -> dict[int, list[int]]:
    """Epochs that the trainers told of, by trial, as often as they told it."""
    return {
        int(folder.name): [e.epoch for e, _ in read_events(folder / "events.jsonl") if isinstance(e, EpochEvent)]
        for folder in sorted((home.root / "runs" / "soak").iterdir())
        if folder.name.isdigit()
    }


def _count(soak: Soak, orphans: int) -> dict[str, int]:
    """Rows against the truth; the database is started once more for it."""
    truth = _truth(soak.home)
    soak.postgres.start()
    try:
        with psycopg.connect(soak.postgres.url()) as connection:
            runs = [n for (n,) in connection.execute("select number from training_runs").fetchall()]
            outcomes = Counter(o for (o,) in connection.execute("select outcome from training_runs").fetchall())
            rows = connection.execute(
                "select number, epoch_number from epoch_results e join training_runs r on e.training_run_id = r.id"
            ).fetchall()
            optuna = connection.execute("select number, state::text from optuna.trials").fetchall()
            told = connection.execute(
                "select t.number, v.step from optuna.trial_intermediate_values v join optuna.trials t using (trial_id)"
            ).fetchall()
    finally:
        soak.postgres.stop_if_idle()
    expected = {(number, epoch) for number, epochs in truth.items() for epoch in epochs}
    for name, found in (("the database", set(rows)), ("Optuna", set(told))):
        if missing := sorted(expected - found):
            print(f"not in {name}: {missing}", file=sys.stderr)
    return {
        "trials": len(truth),
        "trials_not_ok": sum(outcomes.values()) - outcomes["ok"],
        "epochs": len(expected),
        "rows_lost": len(expected - set(rows)) + len(expected - set(told)) + len(set(truth) - set(runs)),
        "rows_doubled": len(rows) - len(set(rows)) + len(runs) - len(set(runs)),
        "epochs_repeated": sum(len(epochs) - len(set(epochs)) for epochs in truth.values()),
        "zombie_trials": sum(state in ("RUNNING", "WAITING") for _, state in optuna),
        "orphans": orphans,
    }


def _table(blows: list[Blow]) -> Iterator[str]:
    yield f"{'killed':12s} {'kills':>6s} {'by itself':>10s} {'by resume':>10s} {'s, median':>10s} {'s, longest':>11s}"
    for victim in _WEIGHTS:
        mine = [b for b in blows if b.victim == victim]
        if mine:
            seconds, resumed = [b.seconds for b in mine], sum(b.resumed for b in mine)
            yield (
                f"{victim:12s} {len(mine):6d} {len(mine) - resumed:10d} {resumed:10d} "
                f"{statistics.median(seconds):10.1f} {max(seconds):11.1f}"
            )


def main() -> None:
    """Print the table and the figures."""
    args = _arguments()
    rng, blows = random.Random(args.seed), list[Blow]()
    with tempfile.TemporaryDirectory() as temporary:
        soak = Soak(args.keep or Path(temporary), args.workers)
        soak.pixelloop("run", str(soak.file))
        soak.recover(0, "campaign", [])
        copies = Copies(soak.home)
        when = sorted(rng.choices(range(max(args.kills, 1)), k=args.copies))
        for number in range(args.kills):
            for _ in range(when.count(number)):
                copies.restore() if copies.restores <= copies.copies else copies.copy()
                print(f"    restored {copies.restores}, copied {copies.copies}", file=sys.stderr, flush=True)
            blows.append(soak.blow(rng))
            latest = blows[-1]
            how = "resumed" if latest.resumed else "by itself"
            print(f"{number + 1:3d} {latest.victim:12s} {latest.seconds:6.1f} s {how}", file=sys.stderr, flush=True)
        figures = {"kills": len(blows), **_count(soak, soak.finish())}
        if args.copies:
            copies.copy(stopped=True)
        figures["rows_lost"] += copies.rows_lost
        figures["rows_doubled"] += copies.rows_doubled
        figures |= {name: getattr(copies, name) for name in ("copies", "restores", "rows_wrong_database")}
        figures["copies_unreadable"] = copies.unreadable
    print(*_table(blows), sep="\n")
    for name, value in figures.items():
        print(f"{name:20s} {value}")
    if args.json:
        print(json.dumps(figures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--copies", type=int, default=0, help="restores and copies between the kills, in turn")
    parser.add_argument("--workers", type=int, default=2, help="trials side by side")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the campaign, to look at afterwards")
    parser.add_argument("--quick", action="store_true", help="6 kills")
    parser.add_argument("--json", action="store_true", help="a JSON object as the last line")
    args = parser.parse_args()
    if args.quick:
        args.kills = 6
    return args


if __name__ == "__main__":
    main()
