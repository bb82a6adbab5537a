"""The commands that take a model folder elsewhere; `cli` adds them to its own."""

from pathlib import Path
from typing import Annotated

import typer

from . import parity
from .console import say, table, warn
from .convert import Conversion, convert
from .errors import nearest
from .export import TOLERANCE, Export, export
from .families import FAMILIES
from .options import Imports, import_modules

TARGETS = ("onnx",)

app = typer.Typer()


@app.command("export")
def export_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, such as DIR/model of a pre-training.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write; an older export there is replaced.")],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help=f"What to export to: {', '.join(TARGETS)}.")] = "onnx",
    int8: Annotated[bool, typer.Option("--int8", help="Also write a graph with 8-bit integers for weights.")] = False,
    text: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Lines of text to measure on what int8 changes; without it, tokens are drawn."),
    ] = None,
    imports: Imports = None,
) -> None:
    """Export a model to ONNX, checked against PyTorch, and time both.

    Batch and length stay free, up to the positions of the model. Nothing is left behind if the check fails. Needs the
    extra named onnx.
    """
    if to not in TARGETS:
        raise ValueError(f"cannot export to '{to}'{nearest(to, TARGETS)}")
    import_modules(imports)
    _print(export(model, out, int8=int8, text=text))


@app.command("convert")
def convert_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A model folder, or the name of a model on the Hub.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write; an older model there is replaced.")],
    to: Annotated[
        str | None,
        typer.Option(
            "--to",
            metavar="FAMILY",
            help=f"For a model folder of ours, the family to write: {', '.join(FAMILIES)}; without it, the one that fits best.",
        ),
    ] = None,
    imports: Imports = None,
) -> None:
    """Convert a model of transformers to a model folder of ours, or one of ours to transformers.

    BERT, RoBERTa, DistilBERT, ELECTRA and ConvBERT, with heads and tokenizer. Both models run on random tokens before anything
    is written, and nothing is if they differ.
    """
    import_modules(imports)
    _print_conversion(convert(source, out, to))


def _print_conversion(done: Conversion) -> None:
    say(
        f"{done.source} -> {done.result}\n{done.arch}\n\nmodel       {done.folder}\n"
        f"difference  {parity.spelled(done.difference, 'in hidden states and logits')}"
    )
    for line in done.dropped:
        warn(f"left out    {line}")
    for line in done.notes:
        warn(f"note        {line}")


def _print(done: Export) -> None:
    say(
        f"export      {done.folder}\ninputs      {', '.join(done.inputs)}\noutputs     {', '.join(done.outputs)}\n"
        f"difference  {done.difference:.1e} from PyTorch at most ({TOLERANCE:.0e} allowed)"
    )
    if done.drift:
        rows = [[one.output, one.scale, one.mean, one.largest, _share(one.agreement)] for one in done.drift]
        columns = ["output", "root mean square", "mean difference", "largest", "same decisions"]
        table("What int8 changes", columns, rows)
    runners = list(done.latencies[0].times)
    rows = [[" x ".join(map(str, one.shape)), *(_span(*one.times[name]) for name in runners)] for one in done.latencies]
    table("Milliseconds a batch: median (quartiles)", ["shape", *runners], rows)


def _share(agreement: float | None) -> str | None:
    return None if agreement is None else f"{agreement:.1%}"


def _span(median: float, low: float, high: float) -> str:
    return f"{median:,.2f} ({low:,.2f} to {high:,.2f})"
