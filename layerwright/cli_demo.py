"""The command that does the main job in minutes; `cli` names it."""

from pathlib import Path
from typing import Annotated

import typer

from . import demo

app = typer.Typer()


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")] = Path("runs/demo"),
) -> None:
    """Go from text to a searched, fine-tuned encoder in minutes.

    The text is the documentation that Python carries, so nothing is downloaded.
    """
    demo.demo(out)
