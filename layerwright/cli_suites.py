"""The commands that evaluate a model on suites of tasks and compare two; `cli` adds them to its own."""

from pathlib import Path
from typing import Annotated

import typer

from .comparison import compare
from .console import say
from .evaluation import EvaluationSettings, evaluate
from .options import File, Imports, import_modules
from .settings import read
from .tasks.protocols import PROTOCOLS
from .tasks.suites import SUITES

app = typer.Typer()

EPILOG = (
    "Settings, for --set and the TOML file: those of finetune, as numbers.epochs for all tasks and tasks.RTE.epochs for one, and "
    "on_bad_row (stop or skip). Example: --set numbers.precision=bf16 --set tasks.RTE.seeds=10"
)
Suite = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"{', '.join(SUITES)}, or names of tasks with commas between: CoLA,RTE,STS-B."),
]
Source = Annotated[
    str | None,
    typer.Option(metavar="DIR", help="The folder that holds the tasks' files, or hf: for each task's data set on the hub."),
]
Named = Annotated[
    str | None, typer.Option("--protocol", help=f"How tasks are learned: {', '.join(PROTOCOLS)}. [default: electra]")
]
Seeds = Annotated[int | None, typer.Option(help="Seeds of every task. [default: 5, and 1 for the large tasks]")]
Assign = Annotated[list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Set any setting. Repeatable.")]


@app.command("evaluate", epilog=EPILOG)
def evaluate_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, such as DIR/model of a pre-training.")],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="The folder to write. The same command again goes on from what it holds.")
    ],
    suite: Suite = None,
    source: Source = None,
    protocol: Named = None,
    seeds: Seeds = None,
    settings: File = None,
    assign: Assign = None,
    imports: Imports = None,
) -> None:
    """Fine-tune on every task of a suite with several seeds, and write tables, a page and submission files.

    Tasks whose files are not there are skipped, and named. Kill it when you like: finished seeds are not repeated.
    """
    import_modules(imports)
    chosen = read(EvaluationSettings, settings, assign or (), suite=suite, source=source, protocol=protocol, seeds=seeds)
    evaluate(model, out, chosen)
    say(f"scores  {out / 'results.json'}, {out / 'results.csv'}\ntable   {out / 'table.md'}\npage    {out / 'report.html'}")


@app.command("compare", epilog=EPILOG)
def compare_command(
    first: Annotated[Path, typer.Argument(metavar="MODEL_A", help="A model folder, or what evaluate left.")],
    second: Annotated[Path, typer.Argument(metavar="MODEL_B", help="Another.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write; models are evaluated under it.")],
    suite: Suite = None,
    source: Source = None,
    protocol: Named = None,
    seeds: Seeds = None,
    settings: File = None,
    assign: Assign = None,
    imports: Imports = None,
) -> None:
    """Tell whether a model is better than another, by paired tests over seeds and over rows.

    Of two folders that evaluate left nothing is learned anew. Two models are evaluated first: --suite and --source say on what.
    """
    import_modules(imports)
    given = {"suite": suite, "source": source, "protocol": protocol, "seeds": seeds}
    asked = settings or assign or any(value is not None for value in given.values())
    compare(first, second, out, read(EvaluationSettings, settings, assign or (), **given) if asked else None)
    say(f"table   {out / 'comparison.md'}\nnumbers {out / 'comparison.json'}")
