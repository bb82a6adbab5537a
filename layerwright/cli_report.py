"""The command that draws the page of a run again; `cli` names it."""

from pathlib import Path
from typing import Annotated

import typer

from . import report
from .console import say

app = typer.Typer()


@app.command("report")
def report_command(run: Annotated[Path, typer.Argument(help="The folder of a pre-training or a search.")]) -> None:
    """Draw the page of a run again, as report.html in its folder."""
    say(str(report.write(run)))
