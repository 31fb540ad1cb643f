"""Many searches of replayed tables, several at a time in processes of their own, each on its own seed."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import optuna

from benchmarks import searcher_smac
from benchmarks.campaigns import CampaignOnTable
from benchmarks.replay import Replay
from benchmarks.searchers import OPPONENTS, Done, Searcher
from schema.errors import ConfigError

OURS = "ours"


def _ours(replay: Replay, seed: int, budget: int) -> list[Done]:
    return CampaignOnTable(replay, seed).run(budget)


def searchers() -> dict[str, Searcher]:
    """All who can search here, ours first."""
    return {OURS: _ours} | OPPONENTS | ({"smac": searcher_smac.search} if searcher_smac.installed() else {})


def names_of(against: Sequence[str]) -> list[str]:
    """Ours and these opponents, or all.

    Raises:
        ConfigError: one is unknown or not installed.
    """
    opponents = [name for name in searchers() if name != OURS]
    if unknown := sorted(set(against) - set(opponents)):
        raise ConfigError(f"--against must be of {', '.join(opponents)}, but got {', '.join(unknown)}")
    return [OURS, *(against or opponents)]


@dataclass(frozen=True)
class Contest:
    """Where searches run.

    Attributes:
        pool: processes to search in.
        who: names of the searchers.
        kept: folder where the opponents' searches are kept, so as not to be run again; None to keep nothing.
    """

    pool: ProcessPoolExecutor
    who: Sequence[str]
    kept: Path | None = None

    @classmethod
    @contextmanager
    def of(cls, jobs: int, who: Sequence[str], kept: Path | None = None) -> Iterator[Contest]:
        """A contest of these searchers, so many searches at a time."""
        if kept is not None:
            kept.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # a core each
        os.environ["PYTHONHASHSEED"] = "0"  # SMAC3 searches in an order that hangs on it
        with ProcessPoolExecutor(jobs, get_context("spawn"), initializer=quiet) as pool:
            yield cls(pool, who, kept)

    def runs(self, replay: Replay, seeds: int, budget: int) -> dict[str, list[list[Done]]]:
        """For each searcher the trials of each seed."""
        wanted = [(who, replay, seed, budget, self.kept) for who in self.who for seed in range(seeds)]
        done = self.pool.map(_searched, *zip(*wanted, strict=True))
        return {who: [next(done) for _ in range(seeds)] for who in self.who}


def quiet() -> None:
    """No line for each trial, and no warning of a forest that knows one kind of run only."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", module="sklearn")


def _searched(who: str, replay: Replay, seed: int, budget: int, kept: Path | None) -> list[Done]:
    if kept is None or who == OURS:
        return searchers()[who](replay, seed, budget)
    file = kept / f"{replay.table.name}-{who}-{seed}-{budget}.json"
    if not file.exists():
        part = file.with_suffix(".part")  # whole or not at all, whenever it is ended
        part.write_text(json.dumps([asdict(done) for done in searchers()[who](replay, seed, budget)]))
        part.rename(file)
    return [Done(**done) for done in json.loads(file.read_text())]
