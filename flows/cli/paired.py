"""The command that tests a hunch by pairs of runs."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.home import alone_at_work, opened_campaign, opened_home, served_home
from flows.cli.options import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption, YesOption
from schema.states import HypothesisState

if TYPE_CHECKING:
    from optimizer.experiments.paired import Change, Pair, Verdict
    from schema.parameters import Parameters

out, err = Console(), Console(stderr=True)


@dataclass(frozen=True)
class _State:
    """What is known of a change, and what would be run next."""

    pairs: Sequence[Pair]
    verdict: Verdict
    worth: float
    planned: Sequence[Parameters]
    hours: float | None
    file: str
    likely_pairs: int | None


def paired_test(
    change: Annotated[str, typer.Argument(help="One change: 'keep_tokens 1 -> 3'.", show_default=False)],
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be run, and run nothing.")] = False,
    worth: Annotated[
        float | None,
        typer.Option(
            help="Gain in quality points that refutes the change by its absence; 3 times the noise if left out.",
            min=0.1,
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
    yes: YesOption = False,
) -> None:
    """Test a hunch: run pairs that differ in one parameter alone, until they confirm or refute it.

    The parameter may be one that the campaign searches or one that it has fixed. Past runs count as halves.
    Interrupted, the same command goes on.

    Example: [bold]pixelloop test "keep_tokens 1 -> 3" --home demo-run[/]
    """
    from flows.runtime.campaign_files import path_to_start
    from optimizer.experiments.paired import Change

    wanted = Change.parse(change)
    state = _state(wanted, home, campaign, worth)
    if not plan and state.verdict.state is HypothesisState.RUNNING:
        with opened_home(home) as services:
            path_to_start(services, campaign, yes)
        _run(wanted, state.file, worth, home, campaign, err if as_json else out)
        state = _state(wanted, home, campaign, worth)
    if as_json:
        print(json.dumps(_as_json(state), indent=2, default=str))
    else:
        _show(wanted, state)


def _state(change: Change, home: HomeOption, campaign: str | None, worth: float | None) -> _State:
    from optimizer.diagnosis.slowness import expected_hours
    from optimizer.experiments.paired import LEAST_PAIRS, missing, pairs_needed, pairs_of, verdict, worth_of
    from optimizer.experiments.queue import noise
    from tasks.training.dataset import num_images

    with opened_campaign(home, campaign) as context:
        history, space = context.related(), context.space
        spread = noise(history, space)
        asked = worth if worth is not None else worth_of(spread)
        pairs = pairs_of(change, history, space)
        told = verdict([pair.difference for pair in pairs], asked)
        ahead = (
            missing(change, history, space, max(LEAST_PAIRS - told.pairs, 1))
            if told.state == HypothesisState.RUNNING
            else []
        )
        pictures = num_images(context.file.dataset_dir)
        hours = [expected_hours(half, history, pictures) for half in ahead]
        total = None if None in hours else sum(h or 0.0 for h in hours)
        return _State(pairs, told, asked, ahead, total, str(context.path), pairs_needed(asked, spread))


def _run(
    change: Change, file: str, worth: float | None, home: HomeOption, campaign: str | None, console: Console
) -> None:
    from tasks.home import Home

    name = ("--campaign", campaign) if campaign else ()
    asked = () if worth is None else ("--worth", worth)
    with alone_at_work(home), served_home(home, console, ("test", change, "--home", home, *name, *asked)):
        from flows.experiment import experiment
        from flows.runtime.retry import patiently

        patiently(lambda: experiment(file, str(Home.at(home).root), str(change), worth))


def _as_json(state: _State) -> dict[str, object]:
    verdict = asdict(state.verdict).items()
    told = {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in verdict}
    return {"verdict": told, "worth": state.worth, "pairs": [asdict(p) for p in state.pairs], "planned": state.planned}


def _show(change: Change, state: _State) -> None:
    from tasks.reports.wording import count, duration

    for pair in state.pairs:
        out.print(f"{pair.after} against {pair.before}: {pair.difference:+.1f}", highlight=False)
    told = state.verdict
    interval = f" ({told.low:+.1f} to {told.high:+.1f})" if math.isfinite(told.low) else ""
    effect = f", effect {told.effect:+.1f}{interval}" if state.pairs else ""
    out.print(
        f"[bold]{change}[/]: {told.state} after {count(told.pairs, 'pair')}{effect}; refuted where a gain of "
        f"{state.worth:.1f} points is excluded", highlight=False, soft_wrap=True,
    )  # fmt: skip
    if told.state == HypothesisState.RUNNING:
        time = "" if state.hours is None else f", about {duration(state.hours * 3600)} of training"
        most = f"; {state.likely_pairs} pairs are likely to decide it" if state.likely_pairs else ""
        out.print(f"next: {count(len(state.planned), 'run')}{time}{most}", highlight=False, soft_wrap=True)
