"""Commands of the principles: rules that the history of several campaigns suggests, for the user to take or leave."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from flows.cli.home import opened_home
from flows.cli.options import DEFAULT_HOME, CampaignOption, HomeOption, JsonOption
from flows.runtime.campaign_files import campaign_path
from schema.errors import ConfigError, NotFoundError
from schema.states import PrincipleState

if TYPE_CHECKING:
    from flows.runtime.wiring import Services
    from schema.campaign import CampaignFile
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
    if (command := context.invoked_subcommand) is not None:
        for option in ("home", "campaign"):
            source = context.get_parameter_source(option)
            if source is not None and source.name == "COMMANDLINE":
                raise ConfigError(f"write --{option} behind {command}: pixelloop principles {command} 1 --{option} ...")
        return
    with _scoped(home, campaign) as scope:
        found, runs = scope.principles, scope.runs
    if as_json:
        print(json.dumps([p.model_dump(mode="json") for p in found], indent=2))
    else:
        _show(found, runs)


@principles.command()
def accept(number: NumberArgument, home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None) -> None:
    """Make a principle a hard limit of all later campaigns on the same model and data.

    Example: [bold]pixelloop principles accept 1 --home demo-run[/]
    """

    from optimizer.search.space import Space

    def accepted(principle: Principle, file: CampaignFile) -> Principle:
        if principle.state == PrincipleState.WITHDRAWN:
            against = ", ".join(principle.details.against) or "paired runs"
            raise ConfigError(f"'{principle.rule}' was contradicted by {against}: it cannot become a hard limit")
        Space.of(file, (principle.rule,))  # what is fixed now must keep it
        return principle.changed(state=PrincipleState.ACCEPTED)

    changed = _change(number, home, campaign, accepted)
    out.print(f"'{changed.rule}' is a hard limit from the next start of a campaign on", highlight=False)


@principles.command()
def drop(number: NumberArgument, home: HomeOption = DEFAULT_HOME, campaign: CampaignOption = None) -> None:
    """Take a principle's limit back, or say that a proposed one is not wanted.

    Example: [bold]pixelloop principles drop 1 --home demo-run[/]
    """
    changed = _change(number, home, campaign, lambda principle, _: principle.changed(state=PrincipleState.DROPPED))
    out.print(f"'{changed.rule}' limits nothing and is not proposed again", highlight=False)


@dataclass(frozen=True)
class _Scope:
    """A campaign's model and data; no search space is needed, as a principle may stand against it."""

    services: Services
    file: CampaignFile
    dataset: str

    @property
    def principles(self) -> list[Principle]:
        from optimizer.effects.principles import scope_of, within

        return within(self.services.store.principles(), scope_of(self.file.base_model, self.dataset))

    @property
    def runs(self) -> int:
        from optimizer.history import related

        return len(related(self.services.store.history(), self.file.base_model, self.dataset))


@contextlib.contextmanager
def _scoped(home: HomeOption, campaign: CampaignOption, writes: bool = False) -> Iterator[_Scope]:
    from schema.campaign import load_campaign
    from tasks.training.dataset import dataset_fingerprint

    with opened_home(home, writes) as services:
        file = load_campaign(campaign_path(services, campaign))
        yield _Scope(services, file, dataset_fingerprint(file.dataset_dir))


def _change(
    number: int, home: HomeOption, campaign: CampaignOption, change: Callable[[Principle, CampaignFile], Principle]
) -> Principle:
    with _scoped(home, campaign, writes=True) as scope, scope.services.alone_with_principles():
        found = scope.principles
        if not 1 <= number <= len(found):
            raise NotFoundError(f"no principle {number}: there are {len(found)}; see 'pixelloop principles'")
        changed = change(found[number - 1], scope.file)
        scope.services.store.save_principle(changed)
        return changed


def _show(found: Sequence[Principle], runs: int) -> None:
    if not found:
        from optimizer.effects.principles import LEAST_RUNS

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
    if any(one.state == PrincipleState.PROPOSED for one in found):
        out.print("make one a hard limit of later campaigns: 'pixelloop principles accept 1'", highlight=False)
