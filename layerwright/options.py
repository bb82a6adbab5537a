"""What commands of several files share: options, and the settings that they stand for."""

import importlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import BaseModel

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
Assign = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Set any of the settings listed at the end of this help. Repeatable."),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="The folder to write. The same command again goes on from what it holds.")
]
Made = Annotated[
    Path | None, typer.Option("--corpus", metavar="DIR", help="A folder that corpus build wrote. Needed, here or in --settings.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would be done, and stop.")]


def import_modules(modules: list[str] | None) -> None:
    """Import the modules that `--import` names, from the current folder too.

    Raises:
        ValueError: one cannot be found.
    """
    sys.path.insert(0, os.getcwd())
    if modules:
        # They may count on what `import layerwright` does where it is no command.
        importlib.import_module("layerwright.models")
    for module in modules or ():
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            raise ValueError(f"cannot import {module}: {error}") from None


def setting_names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """List the settings that a command reads, those of its groups as group.name."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        group = field.annotation
        inner = isinstance(group, type) and issubclass(group, BaseModel)
        found += setting_names(group, f"{prefix}{name}.") if inner else [prefix + name]  # type: ignore[arg-type]
    return found


def settings_help(kind: type[BaseModel], example: str) -> str:
    """Return the end of a command's help: what --set can set."""
    return f"Settings, for --set and the TOML file: {', '.join(setting_names(kind))}. Example: {example}"


def setting_option(told: str, kind: type[BaseModel], name: str) -> Any:
    """Return an option that sets a setting, its help ending with the default."""
    group, _, inner = name.partition(".")
    default = kind.model_fields[group].default
    return typer.Option(help=f"{told} [default: {getattr(default, inner) if inner else default}]")


def given(**values: Any) -> dict[str, Any]:
    """Return the options that have a value."""
    return {name: value for name, value in values.items() if value is not None}
