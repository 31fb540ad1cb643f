"""Copies and restores of a home at random moments: what is lost, doubled, or written to the wrong database."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from tasks.home import Home
from tasks.store.embedded import EmbeddedPostgres

_EPOCHS = """
select r.run_name, e.epoch_number from public.epoch_results e join public.training_runs r on e.training_run_id = r.id
"""
_PATIENCE = 60.0  # seconds for a database that was just killed to be back

Epochs = Counter[tuple[str, int]]


@dataclass
class Copies:
    """Copies of one home, and what was found in them."""

    home: Home
    copies: int = 0
    restores: int = 0
    unreadable: int = field(default=0)
    rows_lost: int = 0
    rows_doubled: int = 0
    rows_wrong_database: int = 0

    def restore(self) -> None:
        """Back the home up while it is in use, restore it elsewhere, and write there."""
        self.restores += 1
        before = self._epochs(self.home)
        file, place = self._place("backup"), Home.at(self._place("restored"))
        self._pixelloop("backup", str(file), "--files", "none", "--home", str(self.home.root))
        self._pixelloop("restore", str(file), "--home", str(place.root))
        self._compare(before, place)
        self._write_to(place)
        self._remove(place)
        file.unlink()

    def copy(self, stopped: bool = False) -> None:
        """Copy the home's files, and write to the copy. A copy of changing files may be unreadable, never the original.

        Args:
            stopped: nothing runs in the home, so that the copy must be whole.
        """
        self.copies += 1
        place = Home.at(self._place("copy"))
        subprocess.run(["cp", "-a", str(self.home.root), str(place.root)], capture_output=True, check=False)
        if self._write_to(place, must=stopped):
            if stopped:
                self._compare(self._epochs(self.home), place)
        else:
            self.unreadable += 1
        self._remove(place)

    def _compare(self, before: Epochs, place: Home) -> None:
        found = self._epochs(place)
        self.rows_lost += len(set(before) - set(found))
        self.rows_doubled += sum(n - 1 for n in found.values())

    def _write_to(self, place: Home, must: bool = True) -> bool:
        """Write a row to a copy, and look for it in the original; whether the copy could be opened."""
        run, epoch = min(self._epochs(self.home))
        written = self._pixelloop("log", str(epoch), "9", "9", "9", place.root.name, "--run", run, "--home",
                                  str(place.root), must=must)  # fmt: skip
        self.rows_wrong_database += self._ratings(self.home)
        if written:
            self.rows_wrong_database += self._ratings(place) != 1
        return written

    def _ratings(self, home: Home) -> int:
        return len(_ask(home, "select 1 from public.human_ratings"))

    def _epochs(self, home: Home) -> Epochs:
        return Counter((str(run), int(str(epoch))) for run, epoch in _ask(home, _EPOCHS))

    def _place(self, kind: str) -> Path:
        return self.home.root.with_name(f"{kind}-{self.copies}-{self.restores}")

    def _pixelloop(self, *words: str, must: bool = True) -> bool:
        done = subprocess.run(
            [sys.executable, "-m", "flows.cli", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}, check=False,
        )  # fmt: skip
        if must and done.returncode:
            raise SystemExit(f"pixelloop {' '.join(words)} failed: {done.stderr.strip()}")
        return done.returncode == 0

    def _remove(self, place: Home) -> None:
        EmbeddedPostgres(place.postgres).stop()
        shutil.rmtree(place.root, ignore_errors=True)


def _ask(home: Home, query: str) -> list[tuple[object, ...]]:
    """Ask a home's database, which somebody may have just killed."""
    server, deadline = EmbeddedPostgres(home.postgres), time.monotonic() + _PATIENCE
    while True:
        try:
            with psycopg.connect(server.start()) as connection:
                return connection.execute(query.encode()).fetchall()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        finally:
            server.stop_if_idle()
