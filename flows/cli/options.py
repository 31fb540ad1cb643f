"""Options and arguments that many commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

HomeOption = Annotated[
    Path, typer.Option("--home", "-C", envvar="PIXELLOOP_HOME", help="Folder of database, runs and reports.")
]
CampaignOption = Annotated[
    str | None, typer.Option("--campaign", "-c", help="Name of the campaign; the newest if left out.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
AllOption = Annotated[bool, typer.Option("--all", help="Print all runs, not the 30 best alone.")]
YesOption = Annotated[
    bool, typer.Option("--yes", help="Let a campaign that was not started here before start the programs it names.")
]
RunArgument = Annotated[str, typer.Argument(help="Name or number of a run: demo-003 or 3.", show_default=False)]
DEFAULT_HOME = Path("pixelloop-home")
