"""The command that predicts with a model folder; `cli` adds it to its own."""

import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TextIO, cast

import typer

from .console import warn
from .inference import BATCH, Precision, check_choice, open_model
from .options import BadRow, Batch, Imports, Precise, import_modules
from .prediction import FORMS, KINDS, Prediction, Predictor, as_cells, as_json, columns, predict_file
from .tasks.examples import OnBadRow

WRITTEN = ("tsv", "jsonl")

app = typer.Typer()


@app.command("predict")
def predict_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder that finetune left: DIR/model.")],
    source: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Rows to predict for; without a file, those of standard input.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="FORM",
            help=f"Form of the rows: {', '.join(FORMS)}. [default: what the name of the file tells, else lines]",
        ),
    ] = None,
    to: Annotated[str, typer.Option("--to", metavar="FORM", help=f"Form of the predictions: {' or '.join(WRITTEN)}.")] = "tsv",
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write them here, not to standard output.")] = None,
    length: Annotated[int | None, typer.Option(help="Most tokens of a row. [default: as in its fine-tuning]")] = None,
    batch: Batch = BATCH,
    precision: Precise = "float32",
    on_bad_row: BadRow = "stop",
    imports: Imports = None,
) -> None:
    """Predict a class, a number, a choice, tags or an answer for each row, in order.

    Rows are lines, with a tab between texts, or a .tsv or .jsonl file as for finetune, without need of labels. Any number
    of rows takes the same memory.
    """
    import_modules(imports)
    check_choice("form", to, WRITTEN)
    opened = open_model(model, tuple(KINDS), precision=cast(Precision, precision))
    predictor = Predictor(opened, length=length, batch=batch)
    write_predictions(predictor, predict_file(predictor, source, form=form, on_bad_row=cast(OnBadRow, on_bad_row)), to, out)
    if predictor.cut:
        warn(f"texts that were cut, because a row has no room for all their tokens: {predictor.cut:,}")


def write_predictions(predictor: Predictor, predictions: Iterable[Prediction], to: str, out: Path | None) -> None:
    """Write predictions as they come, to a file or standard output."""
    with _written(out) as stream:
        if to == "tsv":
            stream.write("\t".join(columns(predictor)) + "\n")
        for one in predictions:
            stream.write((as_json(one) if to == "jsonl" else "\t".join(as_cells(one))) + "\n")
        stream.flush()


@contextmanager
def _written(out: Path | None) -> Iterator[TextIO]:
    """Yield where predictions go: standard output, or a file that has its name once it is whole."""
    if out is None:
        try:
            yield sys.stdout
        except BrokenPipeError:
            # Whoever reads has enough, as `head` has; what Python still holds must go somewhere when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return
    unfinished = out.with_name(f".{out.name}.tmp")
    try:
        with open(unfinished, "w", encoding="utf-8", newline="\n") as stream:
            yield stream
        os.replace(unfinished, out)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
