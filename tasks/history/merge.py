"""Merge what was read into runs: decide which files belong to one run, and which value wins where they differ."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from schema.parameters import PARAMETERS
from schema.runs import (
    EpochResult,
    HumanRating,
    Outcome,
    RunHistory,
    RunStatus,
    TrainingRun,
    epoch_uid,
    imported_uid,
    rating_uid,
)
from tasks.history.facts import FIELDS, EpochFound, Fact, Found, Source
from tasks.store.base import Store

CAMPAIGN = "imported"
"""Campaign of imported runs."""

_TIME_SLACK = timedelta(minutes=2)  # around start and end, for slow starts and coarse clocks. Chosen by hand
_NEWEST_WINS = (Source.OPTION, Source.STATED)
"""Sources in which a person may correct an earlier statement."""

_NEVER_CONFLICT = ("finished_at", "started_at", "checkpoint_size_mb", "notes")
"""Fields that differ between the files of one run without being wrong."""


@dataclass(frozen=True)
class Conflict:
    """Hold two sources that differ, and which of them wins."""

    run: str
    name: str
    taken: Fact
    other: Fact

    @property
    def sentence(self) -> str:
        """Return the conflict as a message."""
        return (
            f"{self.run}: {self.name} is {self.taken.value} ({self.taken.origin}), "
            f"but {self.other.value} ({self.other.origin}); the first counts"
        )


@dataclass(frozen=True)
class Imported:
    """Hold a run that is ready to be saved; `before` is the run as stored earlier."""

    run: TrainingRun
    epochs: tuple[EpochResult, ...]
    ratings: tuple[HumanRating, ...]
    conflicts: tuple[Conflict, ...]
    before: RunHistory | None

    def keep(self, store: Store) -> str:
        """Save what differs from the store; return ``new``, ``changed`` or ``unchanged``."""
        old = {e.uid: e for e in self.before.epochs} if self.before else {}
        epochs = [e for e in self.epochs if old.get(e.uid) != e]
        stored_ratings = {r.uid: r for r in store.ratings(self.run.uid)} if self.before else {}
        ratings = [r for r in self.ratings if stored_ratings.get(r.uid) != r]
        same = self.before is not None and self.before.run == self.run
        if not same:
            store.save_run(self.run)
        for epoch in epochs:
            store.save_epoch(epoch)
        for rating in ratings:
            store.save_rating(rating)
        if self.before is None:
            return "new"
        return "unchanged" if same and not epochs and not ratings else "changed"


@dataclass
class _Group:
    name: str
    session: str | None
    found: list[Found]
    known: RunHistory | None = None


def assemble(
    found: Sequence[Found], known: Sequence[RunHistory], options: Sequence[Fact], now: datetime
) -> tuple[list[Imported], list[str]]:
    """Merge everything that was read into runs.

    Args:
        found: what was read.
        known: all stored runs.
        options: facts that hold for every run.
        now: start time for runs without one.

    Returns:
        The runs, and a message for each item that belongs to no run or can only be used in part.
    """
    notes = [note for f in found for note in f.notes]
    groups = _grouped([f for f in found if f.run], known, notes)
    _by_time([f for f in found if not f.run], groups, notes)
    numbers = {h.run.number for h in known if h.run.campaign == CAMPAIGN}
    names = {h.run.run_name for h in known}
    done = []
    for group in groups:
        if group.known is not None and group.known.run.campaign != CAMPAIGN:
            done.append(_with_ratings(group, group.known))
            continue
        number = group.known.run.number if group.known else next(n for n in range(10**9) if n not in numbers)
        name = group.known.run.run_name if group.known else _free(group, names)
        try:
            run = _imported(group, name, number, options, now)
        except (ValueError, TypeError, OverflowError) as error:
            reason = " ".join(str(error).split())
            notes.append(
                f"{', '.join(f.place for f in group.found)}: run {name} cannot be kept: {reason:.200}; left out"
            )
            continue
        numbers.add(number)
        names.add(name)
        done.append(run)
    return done, notes


def _grouped(found: Iterable[Found], known: Sequence[RunHistory], notes: list[str]) -> list[_Group]:
    groups: list[_Group] = []
    for f in sorted(found, key=lambda f: f.session is None):  # files with a session first
        same = [g for g in groups if g.name == f.run and (f.session is None or f.session == g.session)]
        if f.session is None and len(same) > 1:
            notes.append(
                f"{f.place}: several runs are named {f.run}, and it does not say which of them it is; left out"
            )
        elif same:
            same[0].found.append(f)
        else:
            groups.append(_Group(f.run, f.session, [f], _known(f, known)))
    return groups


def _known(found: Found, known: Sequence[RunHistory]) -> RunHistory | None:
    """Return the stored run with the same identity, else one with the same name if the file has no session."""
    uids = {_identity(found.run, found.session), _identity(found.run, None)}
    by_uid = [h for h in known if h.run.uid in uids]
    by_name = [h for h in known if h.run.run_name == found.run and found.session is None]
    return next(iter(by_uid + by_name), None)


def _identity(name: str, session: str | None) -> Any:
    return imported_uid(f"{session}/{name}" if session else name)


def _free(group: _Group, names: set[str]) -> str:
    if group.name not in names:
        return group.name
    return f"{group.name}-{str(_identity(group.name, group.session))[:8]}"


def _by_time(found: Iterable[Found], groups: Sequence[_Group], notes: list[str]) -> None:
    """Assign event files, which name no run, to the only run that was trained at their time."""
    for f in found:
        fitting = [g for g in groups if f.at is not None and _trained_at(g, f.at)]
        if len(fitting) == 1:
            fitting[0].found.append(f)
        else:
            why = "no run" if not fitting else "more than one run"
            notes.append(
                f"{f.place}: {why} among the files was trained at its time; give it together with its LoRA files"
            )


def _trained_at(group: _Group, at: datetime) -> bool:
    times = {name: [_time(f.value) for found in group.found for f in found.facts if f.name == name]
             for name in ("started_at", "finished_at")}  # fmt: skip
    if not times["started_at"] or not times["finished_at"]:
        return False
    return min(times["started_at"]) - _TIME_SLACK <= at <= max(times["finished_at"]) + _TIME_SLACK


def _with_ratings(group: _Group, known: RunHistory) -> Imported:
    """Return a run of our own campaign with a person's ratings added; nothing measured is changed."""
    ratings = _ratings(_epochs(group.found), known.run)
    return Imported(known.run, (), ratings, (), known)


def _imported(group: _Group, name: str, number: int, options: Sequence[Fact], now: datetime) -> Imported:
    before = group.known
    stored = _stored_facts(before.run) if before else []
    facts = [*options, *(fact for f in group.found for fact in f.facts)]
    facts += [Fact("started_at", f.at.isoformat(), Source.INFERRED, f"time of {f.place}") for f in group.found if f.at]
    chosen, conflicts = _choose(name, stored, facts)
    epochs = _epochs(group.found)
    uid = before.run.uid if before else _identity(group.name, group.session)
    started = (
        _time(chosen["started_at"].value) if "started_at" in chosen else (before.run.started_at if before else now)
    )
    finished = _time(chosen["finished_at"].value) if "finished_at" in chosen else started
    run = TrainingRun(
        uid=uid, campaign=CAMPAIGN, number=number, run_name=name, status=RunStatus.FINISHED,
        base_model=_value(chosen, "base_model", "unknown"), model_type=_value(chosen, "model_type", "unknown"),
        dataset=_value(chosen, "dataset", "unknown"), num_images=_value(chosen, "num_images", None),
        all_parameters={n: f.value for n, f in sorted(chosen.items()) if n in PARAMETERS},
        notes=_value(chosen, "notes", None), sources={n: f.origin for n, f in sorted(chosen.items())},
        started_at=started, finished_at=finished,
    )  # fmt: skip
    old = {e.epoch_number: e for e in before.epochs} if before else {}
    results = tuple(_result(run, found, old.get(n)) for n, found in sorted(epochs.items()))
    run = _with_outcome(
        run, {**old, **{e.epoch_number: e for e in results}}, chosen, any(f.broken for f in group.found)
    )
    return Imported(run, results, _ratings(epochs, run), tuple(conflicts), before)


def _stored_facts(run: TrainingRun) -> list[Fact]:
    values = {**run.all_parameters, **{name: getattr(run, name) for name in FIELDS}}
    facts = [
        Fact.from_store(name, _plain(values[name]), origin) for name, origin in run.sources.items() if name in values
    ]
    # Inferred results are computed again from all epochs, so the old ones must not win.
    return [f for f in facts if not (f.name in ("quality", "best_epoch") and f.source is Source.INFERRED)]


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value


def _choose(run: str, stored: Sequence[Fact], new: Sequence[Fact]) -> tuple[dict[str, Fact], list[Conflict]]:
    """Return the winning fact for each name, and the conflicts with other facts."""
    # What a person states anew replaces the old statement; what was read from a file stays as it was first read.
    ranked = [(f.source, f.source in _NEWEST_WINS, f) for f in stored]
    ranked += [(f.source, f.source not in _NEWEST_WINS, f) for f in new]
    ranked.sort(key=lambda ranks: ranks[:2])
    chosen: dict[str, Fact] = {}
    conflicts: dict[tuple[str, str], Conflict] = {}
    for _, _, fact in ranked:
        taken = chosen.setdefault(fact.name, fact)
        if fact.name == "finished_at" and _time(fact.value) > _time(taken.value):
            chosen[fact.name] = fact
        elif fact.name not in _NEVER_CONFLICT and not _same(taken.value, fact.value):
            conflicts.setdefault((fact.name, str(fact.value)), Conflict(run, fact.name, taken, fact))
    return chosen, list(conflicts.values())


def _same(a: Any, b: Any) -> bool:
    # Relative, because learning rates are tiny and text forms round.
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(float(a) - float(b)) <= 1e-6 * max(abs(a), abs(b))
    return bool(a == b)


def _epochs(found: Iterable[Found]) -> dict[int, EpochFound]:
    """Merge what all files say about each epoch; later values replace earlier ones."""
    epochs: dict[int, EpochFound] = {}
    for epoch in (epoch for f in found for epoch in f.epochs):
        given = {k: v for k, v in vars(epoch).items() if v is not None}
        epochs[epoch.number] = replace(epochs.get(epoch.number, EpochFound(epoch.number)), **given)
    return epochs


def _result(run: TrainingRun, found: EpochFound, old: EpochResult | None) -> EpochResult:
    uid = epoch_uid(run.uid, found.number)
    result = old or EpochResult(
        uid=uid, run_uid=run.uid, epoch_number=found.number, created_at=found.at or run.started_at
    )
    measured = result.quantitative_metrics.mean is not None
    quality = found.quality if found.quality is not None else _rating(found, run).quality
    return result.changed(
        quality=result.quality if measured or quality is None else quality,
        train_loss=found.loss if found.loss is not None else result.train_loss,
        checkpoint=found.checkpoint or result.checkpoint,
    )


def _with_outcome(
    run: TrainingRun, epochs: dict[int, EpochResult], chosen: dict[str, Fact], broken: bool
) -> TrainingRun:
    """Return the run with its quality and outcome, each with the reason in `sources`."""
    rated = {n: e.quality for n, e in epochs.items() if e.quality is not None}
    best = max(rated, key=lambda n: (rated[n], -n), default=None)
    quality, sources = _value(chosen, "quality", None), dict(run.sources)
    if quality is None and best is not None:
        quality = rated[best]
        sources["quality"] = f"inferred: epoch {best}, the best that was judged"
    best = _value(chosen, "best_epoch", best)
    outcome, why = _outcome(run, epochs, quality, broken)
    if outcome is not None:
        sources["outcome"] = f"inferred: {why}"
    at_best = epochs.get(int(best)) if best is not None else None
    return run.changed(
        quality=quality, best_epoch=best, best_checkpoint=at_best and at_best.checkpoint, outcome=outcome,
        failure=why if outcome is Outcome.DIVERGED else None,
        epochs_done=max(epochs, default=0), sources=dict(sorted(sources.items())),
    )  # fmt: skip


def _outcome(
    run: TrainingRun, epochs: dict[int, EpochResult], quality: float | None, broken: bool
) -> tuple[Outcome | None, str]:
    if broken:
        return Outcome.DIVERGED, "weights in its files are no numbers"
    planned, files = run.all_parameters.get("max_train_epochs"), [n for n, e in epochs.items() if e.checkpoint]
    if files and isinstance(planned, int | float) and max(files) >= planned:
        return Outcome.OK, "there is a file of its last epoch"
    if files and planned:
        return Outcome.STOPPED_EARLY, f"its last file is of epoch {max(files)} of {planned}"
    return (Outcome.OK, "it was judged") if quality is not None else (None, "")


def _ratings(epochs: dict[int, EpochFound], run: TrainingRun) -> tuple[HumanRating, ...]:
    every = (_rating(found, run) for _, found in sorted(epochs.items()))
    return tuple(rating for rating in every if rating.quality is not None or rating.words)


def _rating(found: EpochFound, run: TrainingRun) -> HumanRating:
    return HumanRating(
        uid=rating_uid(run.uid, found.number), run_uid=run.uid, epoch_number=found.number, visual=found.visual,
        style=found.style, prompt=found.prompt, words=found.words, created_at=run.finished_at or run.started_at,
    )  # fmt: skip


def _value(chosen: dict[str, Fact], name: str, otherwise: Any) -> Any:
    return chosen[name].value if name in chosen else otherwise


def _time(text: Any) -> datetime:
    at = datetime.fromisoformat(str(text))
    return at if at.tzinfo else at.replace(tzinfo=UTC)
