"""The command that draws the page of a run again; `cli` names it."""

from pathlib import Path
from typing import Annotated

import typer

from . import report
from .console import say
from .options import Imports, import_modules

app = typer.Typer()


@app.command("report")
def report_command(
    run: Annotated[Path, typer.Argument(help="The folder of a pre-training or a search.")], imports: Imports = None
) -> None:
    """Draw the page of a run again, as report.html in its folder."""
    import_modules(imports)
    say(str(report.write(run)))
