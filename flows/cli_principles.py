"""Commands of the principles: rules that the history of several campaigns suggests, for the user to take or leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli_analysis import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption
from flows.cli_home import opened_campaign
from schema.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from schema.findings import Principle

NumberArgument = Annotated[int, typer.Argument(help="Its number in the list.", show_default=False)]

principles = typer.Typer(
    help="Rules that good runs keep: a user accepts one, and later campaigns obey it.\n\n"
    "Example: [bold]pixelloop principles[/], then [bold]pixelloop principles accept 1[/]",
)
out = Console()


@principles.callback(invoke_without_command=True)
def list_(
    context: typer.Context,
    home: HomeOption = DEFAULT_HOME,
    campaign: CampaignOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rules that good runs keep: a user accepts one, and later campaigns on the same model and data obey it.

    Example: [bold]pixelloop principles --home demo-run[/], then [bold]pixelloop principles accept 1[/]
    """
    if context.invoked_subcommand is not None:
        return
    from flows.analysis import principles_now

    with opened_campaign(home, campaign) as opened:
        found, runs = principles_now(opened), len(opened.related())
    if as_json:
        print(json.dumps([p.model_dump(mode="json") for p in found], indent=2))
    else:
        _show(found, runs)


@principles.command()
def accept(number: NumberArgument, home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None) -> None:
    """Make a principle a hard limit of all later campaigns on the same model and data.

    Example: [bold]pixelloop principles accept 1 --home demo-run[/]
    """

    def accepted(principle: Principle) -> Principle:
        if principle.state == "withdrawn":
            against = ", ".join(principle.details.against) or "paired runs"
            raise ConfigError(f"'{principle.rule}' was contradicted by {against}: it cannot become a hard limit")
        return principle.changed(state="accepted")

    changed = _change(number, home, campaign, accepted)
    out.print(f"'{changed.rule}' is a hard limit from the next start of a campaign on", highlight=False)


@principles.command()
def drop(number: NumberArgument, home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None) -> None:
    """Take a principle's limit back, or say that a proposed one is not wanted.

    Example: [bold]pixelloop principles drop 1 --home demo-run[/]
    """
    changed = _change(number, home, campaign, lambda principle: principle.changed(state="dropped"))
    out.print(f"'{changed.rule}' limits nothing and is not proposed again", highlight=False)


def _change(
    number: int, home: HomeOption, campaign: CampaignOption, change: Callable[[Principle], Principle]
) -> Principle:
    from flows.analysis import principles_now

    with opened_campaign(home, campaign) as context:
        found = principles_now(context)
        if not 1 <= number <= len(found):
            raise NotFoundError(f"no principle {number}: there are {len(found)}; see 'pixelloop principles'")
        changed = change(found[number - 1])
        context.store.save_principle(changed)
        return changed


def _show(found: Sequence[Principle], runs: int) -> None:
    if not found:
        from optimizer.analysis.principles import LEAST_RUNS

        out.print(
            f"no principle yet: of {runs} runs on this model and data (at least {LEAST_RUNS} are needed, good and bad "
            "ones) none shows a rule that chance would not show as well",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
    for number, one in enumerate(found, 1):
        pairs = f", {one.details.pairs} pairs" if one.details.pairs else ""
        told = f"{one.state}, {one.evidence}{pairs}, p {one.details.p_value:.3f}"
        out.print(f"{number}. {one.sentence} [dim]({told})[/]", highlight=False, soft_wrap=True)
        if one.details.against:
            out.print(f"   good all the same: {', '.join(one.details.against)}", highlight=False, soft_wrap=True)
    if any(one.state == "proposed" for one in found):
        out.print("make one a hard limit of later campaigns: 'pixelloop principles accept 1'", highlight=False)
