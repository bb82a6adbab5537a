"""Options that commands of several files share."""

import importlib
import os
import sys
from typing import Annotated

import typer

Imports = Annotated[
    list[str] | None,
    typer.Option("--import", metavar="MODULE", help="Import a module that declares layer kinds first. Repeatable."),
]


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
