"""The command that sets two checkpoints against each other on the same prompts and seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.home import named_run, opened_campaign
from flows.cli.options import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption
from schema.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from flows.runtime.wiring import Context
    from optimizer.experiments.checkpoint_comparison import Checkpoint, PairedMeasure, VoteCount
    from schema.runs import EpochResult, PictureMetrics, PictureVote, RunHistory
    from tasks.dashboard.blind import PicturePair

out = Console()
CheckpointArgument = Annotated[
    str, typer.Argument(help="A run, and an epoch if not its best one: 3, demo-003, 3:2.", show_default=False)
]


@dataclass(frozen=True)
class _Side:
    run: RunHistory
    epoch: EpochResult

    @property
    def checkpoint(self) -> Checkpoint:
        return self.run.run.uid, self.epoch.epoch_number

    @property
    def name(self) -> str:
        return f"{self.run.run.run_name} epoch {self.epoch.epoch_number}"


def ab(
    a: CheckpointArgument,
    b: CheckpointArgument,
    vote: Annotated[bool, typer.Option("--vote", help="Judge yourself, blind, on a page with two pictures.")] = False,
    port: Annotated[int, typer.Option(help="Port of that page on 127.0.0.1; 0: any.", min=0, max=65535)] = 0,
    seed: Annotated[int, typer.Option(help="Of the hidden order.", min=0)] = 0,
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say which of two checkpoints is better on the same prompts and seeds: by measures, or by your own blind votes.

    Example: [bold]pixelloop ab 1 6:3 --vote --home demo-run[/]
    """
    from optimizer.experiments.checkpoint_comparison import compare_measures, count_votes

    with opened_campaign(home, campaign, writes=vote) as context:
        first, second = (_side(context, name) for name in (a, b))
        if first.checkpoint == second.checkpoint:
            raise ConfigError(f"{first.name} is given twice: compare two checkpoints")
        if vote:
            _ask(context, first, second, seed, port)
        measured = _measures(first, second)
        votes = _votes(context, first, second)
    measures, counted = compare_measures(*measured), count_votes(votes)
    if as_json:
        data = {"a": first.name, "b": second.name, "measures": [asdict(m) | {"better": m.better} for m in measures]}
        print(json.dumps(data | {"votes": asdict(counted) | {"better": counted.better}}, indent=2))
        return
    _show(first.name, second.name, measures, counted if votes else None)


def _side(context: Context, text: str) -> _Side:
    """A checkpoint by run and epoch.

    Raises:
        NotFoundError: no such run, or an epoch that was not measured.
    """
    name, _, number = text.partition(":")
    run = named_run(context.services, name, context.name)
    epochs = {e.epoch_number: e for e in context.store.epochs(run.run.uid)}
    wanted = number or str(run.run.best_epoch or max(epochs, default=0))
    if wanted.isdecimal() and int(wanted) in epochs:
        return _Side(run, epochs[int(wanted)])
    there = ", ".join(map(str, epochs)) or "none"
    raise NotFoundError(f"epoch {wanted} of {run.run.run_name} was not measured: there is {there}")


def _measures(first: _Side, second: _Side) -> tuple[list[PictureMetrics], list[PictureMetrics]]:
    one, two = (list(side.epoch.quantitative_metrics.pictures) for side in (first, second))
    if len(one) != len(two):
        raise ConfigError(
            f"{first.name} has {len(one)} measured pictures, {second.name} has {len(two)}: they were not drawn from "
            "the same prompts and seeds; draw both with 'pixelloop retest'"
        )
    return one, two


def _ask(context: Context, first: _Side, second: _Side, seed: int, port: int) -> None:
    from schema.runs import PictureVote, vote_uid
    from tasks.dashboard.blind import serve_blind

    def save(picture: str, choice: str) -> None:
        one, two = first.checkpoint, second.checkpoint
        vote = PictureVote.model_validate(
            {
                "uid": vote_uid(*one, *two, picture), "run_uid": one[0], "epoch_number": one[1],
                "other_run_uid": two[0], "other_epoch_number": two[1], "picture": picture, "choice": choice,
                "created_at": datetime.now(UTC),
            }
        )  # fmt: skip
        context.store.save_vote(vote)

    def ready(url: str) -> None:
        out.print(f"judge the pictures on {url} (Ctrl-C ends it; what was judged is kept)", highlight=False)

    serve_blind(_pairs(context, first, second), save, ready, seed, port)


def _pairs(context: Context, first: _Side, second: _Side) -> list[PicturePair]:
    """The pictures of both by prompt and seed.

    Raises:
        NotFoundError: there are none of the same name.
    """
    from tasks.dashboard.blind import PicturePair
    from tasks.sampling.pictures import picture_names

    folders = [context.folder(s.run.run.number).samples(s.epoch.epoch_number) for s in (first, second)]
    captions = [prompt.text for prompt in context.suite.prompts for _ in context.suite.seeds]
    names = dict(zip(picture_names(context.suite), captions, strict=True))
    there = {name: text for name, text in names.items() if all((folder / name).exists() for folder in folders)}
    if not there:
        raise NotFoundError(f"no picture of the same prompt and seed in {folders[0]} and {folders[1]}")
    return [
        PicturePair(name.removesuffix(".png"), text, folders[0] / name, folders[1] / name)
        for name, text in there.items()
    ]


def _votes(context: Context, first: _Side, second: _Side) -> list[PictureVote]:
    from optimizer.experiments.checkpoint_comparison import votes_between

    kept = {vote.uid: vote for side in (first, second) for vote in context.store.votes(side.run.run.uid)}
    return votes_between(list(kept.values()), first.checkpoint, second.checkpoint)


def _show(first: str, second: str, measures: Sequence[PairedMeasure], votes: VoteCount | None) -> None:
    from rich.table import Table

    names = {"first": first, "second": second}
    table = Table("pictures", "better : worse", "difference", "95 % interval", "p", "measure", box=None)
    for m in measures:
        interval = "too few" if math.isinf(m.low) else f"{m.low:+.1f} to {m.high:+.1f}"
        figures = (str(m.n), f"{m.wins} : {m.losses}", f"{m.effect:+.1f}", interval, f"{m.p_value:.3f}")
        table.add_row(*figures, m.measure)
    out.print(f"{second} against {first}, picture by picture", highlight=False)
    out.print(table)
    if measures:
        better = measures[0].better
        told = f"{names[better]} is better" if better else "no difference that chance would not make"
        out.print(f"[bold]by measures[/]: {told}", highlight=False)
    if votes is not None:
        told = f"{names[votes.better]} is preferred" if votes.better else "no preference that chance would not make"
        share = (
            f", {votes.share:.0%} of the decided for {second} ({votes.low:.0%} to {votes.high:.0%}, "
            f"p {votes.p_value:.3f})" if votes.first + votes.second else ""
        )  # fmt: skip
        out.print(
            f"[bold]by votes[/]: {told}: {votes.first} for {first}, {votes.second} for {second}, {votes.ties} ties"
            f"{share}", highlight=False, soft_wrap=True,
        )  # fmt: skip
