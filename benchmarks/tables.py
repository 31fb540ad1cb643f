"""Tables of measured training results: read from a folder, or made when none is given.

A table is a folder with `table.json` (parameters with ranges or choices, best and median of the finished
runs), `configs.csv` (config, one column a parameter, failed 0/1) and `curves.csv.gz` (config, one column a
checkpoint, empty from where the run broke). Lower is better.
"""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from optimizer.search.space import PLAIN, Space
from schema.errors import ConfigError
from schema.parameters import Parameters, ParameterValue

Array = NDArray[np.float64]

_GRID = 64
"""A table with at most this many settings is a grid, whatever its parameters say."""


@dataclass(frozen=True)
class Table:
    """Measured runs of one task.

    Attributes:
        name: of the folder.
        space: the parameters as a search space.
        settings: n settings.
        curves: loss at each checkpoint, shape (n, checkpoints); nan from where a run broke.
        failed: shape (n,).
    """

    name: str
    space: Space
    settings: list[Parameters]
    curves: Array
    failed: NDArray[np.bool_]

    @property
    def losses(self) -> Array:
        """Best loss of each run that did not fail, shape (n,); nan of the others."""
        found = np.full(len(self.curves), np.nan)
        found[~self.failed] = np.nanmin(self.curves[~self.failed], axis=1)
        return found

    @property
    def family(self) -> str:
        """Tables whose names begin alike are tasks of one kind."""
        return self.name.split("-", 1)[0]


def load_tables(folder: Path) -> list[Table]:
    """All tables of a folder.

    Raises:
        ConfigError: there is none, or one cannot be read.
    """
    places = sorted(p.parent for p in folder.glob("*/table.json"))
    if not places:
        raise ConfigError(f"{folder} holds no tables: each is a folder with table.json, configs.csv and curves.csv.gz")
    return [load_table(place) for place in places]


def load_table(folder: Path) -> Table:
    """One table.

    Raises:
        ConfigError: a file is missing or has another form.
    """
    try:
        about = json.loads((folder / "table.json").read_text(encoding="utf-8"))
        with (folder / "configs.csv").open(encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        with gzip.open(folder / "curves.csv.gz", "rt", encoding="utf-8") as file:
            lines = {row[0]: row[1:] for row in list(csv.reader(file))[1:]}
        specs = [s for s in about["parameters"] if len({row[s["name"]] for row in rows}) > 1]
        values = [{s["name"]: _value(s, row[s["name"]]) for s in specs} for row in rows]
        if not specs:
            raise ValueError("no parameter varies")
        curves = np.array([[float(v) if v else np.nan for v in lines[row["config"]]] for row in rows])
        failed = np.array([row["failed"] in ("1", "True", "true") for row in rows])
        space = space_of({s["name"]: _distribution(s, [v[s["name"]] for v in values]) for s in specs})
    except (OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(f"table {folder} cannot be read ({type(error).__name__}: {error}): see its layout") from None
    broken = np.isnan(curves[:, -1])
    return Table(folder.name, space, values, curves, failed | broken)


def space_of(distributions: Mapping[str, BaseDistribution]) -> Space:
    """A search space of parameters that nothing else is known of; only runs that broke count as failed."""
    return Space(dict(distributions), {}, (), 0.0, PLAIN)


def _value(spec: Mapping[str, Any], text: str) -> ParameterValue:
    if "choices" in spec:
        found: ParameterValue = next(c for c in spec["choices"] if str(c) == text or _same_number(c, text))
        return found if spec.get("ordered") else str(found)
    return round(float(text)) if spec.get("integer") else float(text)


def _same_number(choice: object, text: str) -> bool:
    try:
        return isinstance(choice, int | float) and float(text) == float(choice)
    except ValueError:
        return False


def _distribution(spec: Mapping[str, Any], values: Sequence[ParameterValue]) -> BaseDistribution:
    if "choices" in spec:
        present = [c for c in spec["choices"] if c in values]
        return CategoricalDistribution(present if spec.get("ordered") else [str(c) for c in present])
    numbers = sorted({float(v) for v in values if isinstance(v, int | float)})
    if len(values) <= _GRID:
        return CategoricalDistribution(numbers)
    if spec.get("integer"):
        return IntDistribution(int(spec["low"]), int(spec["high"]), log=bool(spec.get("log")))
    return FloatDistribution(float(spec["low"]), float(spec["high"]), log=bool(spec.get("log")))
