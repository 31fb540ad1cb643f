"""Read what a person wrote down as CSV, JSON or YAML, with one row an epoch or a run."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from schema.errors import ConfigError, shown
from tasks.history.facts import MOST, EpochFound, Fact, Found, Source, check_size, typed, whole_number

# Columns of each kind, in order of preference.
_RUN = ("run_name", "run", "output_name", "name")
_EPOCH = ("epoch_number", "epoch")
_SCORES = {
    "visual": ("visual_quality_score", "visual"), "style": ("style_match_score", "style"),
    "prompt": ("prompt_adherence_score", "prompt"),
}  # fmt: skip
_WORDS = ("observations", "words", "notes", "verdict", "overall_verdict")
_TEXTS, _NUMBERS = ("base_model", "dataset", "model_type"), ("num_images", "best_epoch")
_FIELDS = (*_TEXTS, *_NUMBERS)


def read_document(path: Path) -> Any:
    """Read a JSON or YAML file as plain data.

    Raises:
        ConfigError: the file is neither, or is too large or too deeply nested.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows write a byte order mark
        document = json.loads(text) if path.suffix.lower() == ".json" else yaml.safe_load(text)
        check_size(document)
    except RecursionError:
        raise ConfigError(f"{path} cannot be read: it is nested too deep") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {(str(error) or type(error).__name__).splitlines()[0]}") from None
    return document


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a CSV file, by the names in its first line.

    Raises:
        ConfigError: the file cannot be read as CSV.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:  # Excel writes a byte order mark
            return [{k.strip(): v for k, v in row.items() if k} for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path} cannot be read as CSV: {error}") from None


def rows_of(document: Any, path: Path) -> list[dict[str, Any]]:
    """Return the rows of a document: the document itself, or the only list in it, such as ``observations``.

    Raises:
        ConfigError: there is no such list, or it holds anything but rows.
    """
    if isinstance(document, Mapping):
        lists = [value for value in document.values() if isinstance(value, list)]
        document = lists[0] if len(lists) == 1 else document
    if not isinstance(document, list) or not all(isinstance(row, Mapping) for row in document):
        raise ConfigError(f"{path}: write a list of rows, each with run_name and what is known of it")
    return [dict(row) for row in document]


def read_rows(rows: Sequence[Mapping[str, Any]], place: str) -> list[Found]:
    """Read all rows.

    Raises:
        ConfigError: as `read_row`; the message names the row.
    """
    return [read_row(row, f"{place} row {number}") for number, row in enumerate(rows, 1)]


def read_row(row: Mapping[str, Any], place: str) -> Found:
    """Read what one row says about a run or an epoch. Scores and quality_score are 0-10, quality is 0-100.

    Raises:
        ConfigError: the row names no run, or a score is not a number in its range.
    """
    run, notes = _first(row, _RUN), list[str]()
    if not run:
        raise ConfigError(f"{place}: it names no run: give a column run_name")
    if isinstance(run, bool) or not isinstance(run, str | int | float):
        raise ConfigError(f"{place}: the name of a run must be a text, but is {shown(run)}")
    epoch, quality = _first(row, _EPOCH), _quality(row, place)
    words = "; ".join(str(row[name]) for name in _WORDS if row.get(name)) or None
    scores = {name: _score(row, columns, place, 10) for name, columns in _SCORES.items()}
    parameters = {k: v for k, v in row.items() if k not in ("prompt", "style", "visual", *_FIELDS)}
    facts = [*typed(parameters, Source.STATED, place, notes)]
    facts += [
        Fact(name, _field(name, row[name], place), Source.STATED, place)
        for name in _FIELDS
        if row.get(name) not in (None, "")
    ]
    if epoch is None:
        if words:
            facts.append(Fact("notes", words, Source.STATED, place))
        if quality is not None:
            facts.append(Fact("quality", quality, Source.STATED, place))
        return Found(place, str(run), tuple(facts), notes=tuple(notes))
    number = whole_number(epoch)
    if number is None:
        raise ConfigError(f"{place}: epoch must be a number from 0 to {MOST}, but is {shown(epoch)}")
    found = EpochFound(
        number, visual=scores["visual"], style=scores["style"], prompt=scores["prompt"], quality=quality, words=words
    )
    return Found(place, str(run), tuple(facts), epochs=(found,), notes=tuple(notes))


def _quality(row: Mapping[str, Any], place: str) -> float | None:
    score = _score(row, ("quality_score",), place, 10)
    return 10 * score if score is not None else _score(row, ("quality",), place, 100)


def _score(row: Mapping[str, Any], columns: Sequence[str], place: str, most: float) -> float | None:
    text = _first(row, columns)
    if text is None:
        return None
    try:
        value = float(text)
    except (TypeError, ValueError, OverflowError):
        value = -1
    if not 0 <= value <= most:
        raise ConfigError(f"{place}: {columns[0]} must lie in 0-{most:g}, but is {shown(text)}")
    return value


def _field(name: str, value: Any, place: str) -> str | int:
    """Return a field of a run in its own type.

    Raises:
        ConfigError: the value has another type.
    """
    if name in _TEXTS:
        if isinstance(value, str):
            return value
        raise ConfigError(f"{place}: {name} must be a text, but is {shown(value)}")
    number = whole_number(value)
    if number is None:
        raise ConfigError(f"{place}: {name} must be a number from 0 to {MOST}, but is {shown(value)}")
    return number


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) not in (None, "")), None)
