"""The command `layerwright inspect`: what removing and duplicating layers changes, and what hidden states hold."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from .console import say, table, warn
from .convert import converted, family_of, find
from .editing import refuse_existing
from .errors import DataError
from .inference import Opened, open_model
from .inspection import Inspection, inspect
from .inspection import InspectionSettings as Settings
from .inspection_files import write
from .inspection_page import PAST, SHOWN, measures, ranked_by, written
from .models import FACES
from .options import Imports, import_modules
from .settings import read
from .surgery import UNITS

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}

app = typer.Typer()


@app.command("inspect")
def inspect_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder of ours or of transformers, or the name of a model on the Hub.")
    ],
    text: Annotated[Path, typer.Option(metavar="FILE", help="A text, a paragraph a line, to draw rows from.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write, which must not exist.")],
    suggest: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EDIT=N",
            help="Rank the ranges of N units, and print the command for the first: duplicate=3 or remove=1. Repeatable.",
        ),
    ] = None,
    edited: Annotated[
        list[str] | None,
        typer.Option(
            metavar="EDIT=RANGE",
            help="Read the hidden states of this edited model too, such as duplicate=3:9. Repeatable. [default: the middle half "
            "duplicated]",
        ),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help=f"What ranges count: {' or '.join(UNITS)}. [default: block where layers pair up, else layer]"),
    ] = None,
    rows: Annotated[int, typer.Option(help="Lines of the text to draw.")] = DEFAULTS["rows"],
    length: Annotated[int, typer.Option(help="Most tokens of a row; the rest of a line is left out.")] = DEFAULTS["length"],
    batch: Annotated[int, typer.Option(help="Rows that the model reads at a time.")] = DEFAULTS["batch"],
    seed: Annotated[int, typer.Option(help="Decides which lines are drawn and which tokens are masked.")] = DEFAULTS["seed"],
    imports: Imports = None,
) -> None:
    """Look inside a model: what removing and duplicating its layers changes, and what its hidden states hold.

    Writes inspection.json, tables as CSV, and report.html. What is predicted needs a model of masked tokens; of any other
    the states alone are compared.
    """
    import_modules(imports)
    refuse_existing(out)
    with opened(model) as one:
        most = min(length, one.positions)
        settings = read(Settings, unit=unit, rows=rows, length=most, batch=batch, seed=seed, suggest=suggest, edited=edited)
        found = inspect(one, text, settings, name=model, imports=imports or ())
    write(found, out)
    show(found)
    say(f"report  {out / 'report.html'}")


@contextmanager
def opened(model: str) -> Iterator[Opened]:
    """Open a model of ours, or one of transformers by way of a folder that is gone after the block.

    Raises:
        ValueError: it is neither.
        DataError: its tokenizer is missing or cannot be used.
    """
    source = find(model)
    if (family := family_of(source)) is None:
        yield open_model(source.folder, list(FACES))
        return
    if source.tokenizer() is None:
        raise DataError(f"there is no tokenizer in {model}")
    with converted(source, family) as own:
        try:
            one = open_model(own, list(FACES))
        except DataError as error:
            # Whoever reads it knows the model by the name they gave, not by a folder that is gone by then.
            raise DataError(str(error).replace(str(own), model)) from None
        yield one


def show(found: Inspection) -> None:
    """Print what single units do, what hidden states hold, and what is suggested."""
    shown = measures(found)
    heads = [one.name for one in shown]
    singles = [one for one in found.changes if one.stop - one.start == 1]
    rows = [[f"{PAST[one.change]} {one.start}", *(written(each, one) for each in shown)] for one in singles]
    base = ["as it is", *(written(each, found.unedited) for each in shown)]
    table(f"One {found.unit} of {len(found.units)} removed or duplicated", ["", *heads], [base, *rows])
    if found.unedited.recovered is not None:
        for lens in found.lenses:
            read = [[place, *(written(each, state) for each in shown)] for place, state in enumerate(lens.states)]
            named = f"after {lens.edit}" if lens.edit else "the model as it is"
            table(f"The output layer reading hidden states: {named}", [f"{found.unit}s run", *heads], read)
    for line in found.left_out:
        warn(f"note    {line}")
    for one in found.suggestions:
        best = [[f"{each.start}:{each.stop}", *(written(measure, each) for measure in shown)] for each in one.ranked[:SHOWN]]
        more = f", {SHOWN} of {len(one.ranked)}" if len(one.ranked) > SHOWN else ""
        table(f"Ranges of {one.size} to {one.change}, best first{more}", [f"{found.unit}s", *heads], best)
        say(f"{ranked_by(one)}\n{one.command}")
