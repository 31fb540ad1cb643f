"""Commands of the queue: experiments that the campaign runs before it asks for new ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli_analysis import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption
from flows.cli_home import opened_campaign
from schema.errors import NotFoundError
from schema.parameters import parse_setting

if TYPE_CHECKING:
    from flows.wiring import Context
    from optimizer.analysis.paired import Change
    from schema.findings import Hypothesis
    from schema.parameters import Parameters

PlaceArgument = Annotated[int, typer.Argument(help="Place in the queue, from 1.", show_default=False)]

queue = typer.Typer(
    no_args_is_help=True,
    help="Experiments that a campaign runs first.\n\nExample: [bold]pixelloop queue add 1[/], then "
    "[bold]pixelloop queue list[/]",
)
out = Console()


@queue.command("list")
def list_(home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None, as_json: JsonOption = False) -> None:
    """Show what waits.

    Example: [bold]pixelloop queue list --home demo-run[/]
    """
    from optimizer.analysis.lifecycle import queue_of

    with opened_campaign(home, campaign) as context:
        _show(queue_of(context.store.hypotheses(context.name)), as_json)


@queue.command()
def add(
    experiment: Annotated[
        list[str],
        typer.Argument(help="Number of a proposal of 'pixelloop next', or name=value ...", show_default=False),
    ],
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a proposal, or the best run with parameters changed, at the end of the queue.

    Example: [bold]pixelloop queue add network_dim=8 --home demo-run[/]
    """
    from optimizer.analysis.lifecycle import queue_of, with_queue

    with opened_campaign(home, campaign) as context:
        known = context.store.hypotheses(context.name)
        wanted = _proposal(known, experiment[0]) if experiment[0].isdigit() else _by_hand(context, experiment)
        waiting = [*(h for h in queue_of(known) if h.uid != wanted.uid), wanted]
        _keep(context, with_queue(known, waiting), as_json)


@queue.command()
def drop(
    place: PlaceArgument, home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None, as_json: JsonOption = False
) -> None:
    """Take an experiment out of the queue.

    Example: [bold]pixelloop queue drop 1 --home demo-run[/]
    """
    from optimizer.analysis.lifecycle import queue_of, reordered, with_queue

    with opened_campaign(home, campaign) as context:
        known = context.store.hypotheses(context.name)
        waiting = reordered(queue_of(known), place, place)
        _keep(context, with_queue(known, [h for i, h in enumerate(waiting) if i != place - 1]), as_json)


@queue.command()
def reorder(
    place: PlaceArgument,
    to: Annotated[int, typer.Argument(help="Its new place.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Move an experiment to another place.

    Example: [bold]pixelloop queue reorder 3 1 --home demo-run[/]
    """
    from optimizer.analysis.lifecycle import queue_of, reordered, with_queue

    with opened_campaign(home, campaign) as context:
        known = context.store.hypotheses(context.name)
        _keep(context, with_queue(known, reordered(queue_of(known), place, to)), as_json)


def paired_test(
    change: Annotated[str, typer.Argument(help="One change: 'keep_tokens 1 -> 3'.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    plan: Annotated[bool, typer.Option(help="Put the missing runs of the next pairs into the queue.")] = True,
    as_json: JsonOption = False,
) -> None:
    """Test a hunch by pairs of runs that differ in one parameter alone; queues the runs that are missing.

    Call it again when they are done: it says confirmed, refuted or inconclusive, with effect and interval.

    Example: [bold]pixelloop test "keep_tokens 1 -> 3" --home demo-run[/]
    """
    from optimizer.analysis.paired import Change, pairs_of, verdict

    wanted = Change.parse(change)
    with opened_campaign(home, campaign) as context:
        pairs = pairs_of(wanted, context.related(), context.space)
        told = verdict([pair.difference for pair in pairs])
        added = _plan(context, wanted, len(pairs)) if plan and told.state == "running" else 0
    if as_json:
        data = {"verdict": asdict(told), "pairs": [asdict(pair) for pair in pairs], "queued": added}
        print(json.dumps(data, indent=2, default=str))
        return
    for pair in pairs:
        out.print(f"{pair.after} against {pair.before}: {pair.difference:+.1f}", highlight=False)
    effect = f", effect {told.effect:+.1f} ({told.low:+.1f} to {told.high:+.1f})" if pairs else ""
    out.print(f"[bold]{change}[/]: {told.state} after {told.pairs} pairs{effect}", highlight=False, soft_wrap=True)
    if added:
        out.print(f"{added} runs are queued: run the campaign on, then ask again", highlight=False)


def _plan(context: Context, change: Change, done: int) -> int:
    """Queue the runs that bring the pairs to the fewest that can decide, or one more; how many they are."""
    from optimizer.analysis.lifecycle import queue_of, with_queue
    from optimizer.analysis.paired import LEAST_PAIRS, missing

    known = context.store.hypotheses(context.name)
    settings = missing(change, context.related(), context.space, max(LEAST_PAIRS - done, 1))
    asked = [_asked(context, setting) for setting in settings]
    waiting = queue_of(known)
    fresh = [h for h in asked if h.uid not in {w.uid for w in waiting}]
    if fresh:
        context.store.save_hypotheses(with_queue([h for h in known if h not in fresh], [*waiting, *fresh]))
    return len(fresh)


def _proposal(known: Sequence[Hypothesis], number: str) -> Hypothesis:
    for one in known:
        if one.state == "proposed" and str(one.priority) == number:
            return one
    there = ", ".join(str(h.priority) for h in known if h.state == "proposed") or "none yet"
    raise NotFoundError(f"no proposal {number}: there is {there}; see 'pixelloop next'")


def _by_hand(context: Context, settings: Sequence[str]) -> Hypothesis:
    return _asked(context, dict(parse_setting(text) for text in settings))


def _asked(context: Context, change: Parameters) -> Hypothesis:
    from flows.data import audited
    from optimizer.analysis.hypotheses import costed
    from optimizer.analysis.lifecycle import by_hand, setting_of
    from optimizer.history import best_run
    from tasks.training.dataset import num_images

    history = context.store.history(context.name)
    full, _ = setting_of(change, history, context.space)
    expected = context.surrogate(context.store.history()).predict(full)
    made = by_hand(change, history, context.space, expected, context.name, datetime.now(UTC))
    best = best_run(history)
    before = best.run.all_parameters if best is not None else context.space.likely()
    return costed(made, before, history, num_images(context.file.dataset_dir), audited(context))


def _keep(context: Context, hypotheses: Sequence[Hypothesis], as_json: bool) -> None:
    from optimizer.analysis.lifecycle import queue_of

    context.store.save_hypotheses(hypotheses)
    _show(queue_of(hypotheses), as_json)


def _show(waiting: Sequence[Hypothesis], as_json: bool) -> None:
    if as_json:
        print(json.dumps([h.model_dump(mode="json") for h in waiting], indent=2))
        return
    for one in waiting:
        change = " ".join(f"{name}={value}" for name, value in one.change.items())
        out.print(f"{one.priority}. {change}: {one.rationale}", highlight=False, soft_wrap=True)
    if not waiting:
        out.print("nothing waits: add a proposal of 'pixelloop next' with 'pixelloop queue add 1'")
