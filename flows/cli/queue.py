"""Commands of the queue: experiments that the campaign runs before it asks for new ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.home import opened_campaign
from flows.cli.options import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption
from schema.errors import NotFoundError
from schema.parameters import parse_setting
from schema.states import HypothesisState

if TYPE_CHECKING:
    from flows.runtime.wiring import Context
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
    from optimizer.experiments.queue import queue_of

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
    from optimizer.experiments.queue import queue_of, with_queue

    with opened_campaign(home, campaign, writes=True) as context:
        number = experiment[0] if experiment[0].isdigit() else None
        by_hand = _by_hand(context, experiment) if number is None else None  # takes seconds: not while others wait
        with context.study.alone():
            known = context.store.hypotheses(context.name)
            wanted = by_hand or _proposal(known, str(number))
            waiting = [*(h for h in queue_of(known) if h.uid != wanted.uid), wanted]
            kept = _keep(context, with_queue(known, waiting))
    _show(kept, as_json)


@queue.command()
def drop(
    place: PlaceArgument, home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None, as_json: JsonOption = False
) -> None:
    """Take an experiment out of the queue.

    Example: [bold]pixelloop queue drop 1 --home demo-run[/]
    """
    from optimizer.experiments.queue import queue_of, reordered, with_queue

    with opened_campaign(home, campaign, writes=True) as context, context.study.alone():
        known = context.store.hypotheses(context.name)
        waiting = reordered(queue_of(known), place, place)
        kept = _keep(context, with_queue(known, [h for i, h in enumerate(waiting) if i != place - 1]))
    _show(kept, as_json)


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
    from optimizer.experiments.queue import queue_of, reordered, with_queue

    with opened_campaign(home, campaign, writes=True) as context, context.study.alone():
        known = context.store.hypotheses(context.name)
        kept = _keep(context, with_queue(known, reordered(queue_of(known), place, to)))
    _show(kept, as_json)


def _proposal(known: Sequence[Hypothesis], number: str) -> Hypothesis:
    for one in known:
        if one.state == HypothesisState.PROPOSED and str(one.priority) == number:
            return one
    there = ", ".join(str(h.priority) for h in known if h.state == HypothesisState.PROPOSED) or "none yet"
    raise NotFoundError(f"no proposal {number}: there is {there}; see 'pixelloop next'")


def _by_hand(context: Context, settings: Sequence[str]) -> Hypothesis:
    return _asked(context, dict(parse_setting(text) for text in settings))


def _asked(context: Context, change: Parameters) -> Hypothesis:
    from flows.data_audit import audited
    from optimizer.experiments.proposals import best_own, costed
    from optimizer.experiments.queue import by_hand, setting_of
    from tasks.training.dataset import num_images

    history = context.store.history(context.name)
    full, _ = setting_of(change, history, context.space)
    expected = context.surrogate(context.store.history()).predict(full)
    made = by_hand(change, history, context.space, expected, context.name, datetime.now(UTC))
    best = best_own(history, context.space)
    before = best.run.all_parameters if best is not None else context.space.likely()
    return costed(made, before, history, num_images(context.file.dataset_dir), audited(context))


def _keep(context: Context, hypotheses: Sequence[Hypothesis]) -> list[Hypothesis]:
    """Keep what was read a moment ago, with no analysis in between; the queue that it makes."""
    from optimizer.experiments.queue import queue_of

    context.store.save_hypotheses(hypotheses)
    return queue_of(hypotheses)


def _show(waiting: Sequence[Hypothesis], as_json: bool) -> None:
    if as_json:
        print(json.dumps([h.model_dump(mode="json") for h in waiting], indent=2))
        return
    for one in waiting:
        change = " ".join(f"{name}={value}" for name, value in one.change.items())
        out.print(f"{one.priority}. {change}: {one.rationale}", highlight=False, soft_wrap=True)
    if not waiting:
        out.print("nothing waits: add a proposal of 'pixelloop next' with 'pixelloop queue add 1'")
