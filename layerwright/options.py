"""Options that commands of several files share."""

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import a module that declares layer kinds first. Repeatable."),
]
File = Annotated[
    Path | None,
    typer.Option("--settings", metavar="FILE", help="Read settings from a TOML file; --set wins over it, and options over both."),
]
Batch = Annotated[int, typer.Option("--batch", min=1, help="Rows that the model reads at a time.")]
Precise = Annotated[str, typer.Option("--precision", help="Of matrix products: float32 or bf16.")]
BadRow = Annotated[str, typer.Option("--on-bad-row", help="What to do at a row that cannot be used: stop, or skip and name it.")]


def import_modules(modules: list[str] | None) -> None:
    """Import the modules that `--import` names, from the current folder too.

    Raises:
        ValueError: one cannot be found.
    """
    sys.path.insert(0, os.getcwd())
    for module in modules or ():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"cannot import {module}: {error}") from None
