"""The command that fine-tunes a model folder on a task; `cli` names it."""

from pathlib import Path
from typing import Annotated

import typer

from .console import say
from .options import Assign, File, Imports, Out, import_modules, setting_option, settings_help
from .settings import read
from .tasks.declarations import TASKS
from .tasks.finetune import FinetuneSettings, finetune
from .tasks.protocols import PROTOCOLS

app = typer.Typer()


@app.command("finetune", epilog=settings_help(FinetuneSettings, "--set seeds=10 --set score=macro_f1"))
def finetune_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, such as DIR/model of a pre-training.")],
    out: Out,
    train: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Rows to learn from: a .tsv with a header or a .jsonl with sentence1, sentence2 for pairs, and label, or with "
            "choice1, choice2, ...; a .json in the form of SQuAD; a .conll of words and tags. With --valid, or else --task.",
        ),
    ] = None,
    valid: Annotated[Path | None, typer.Option(metavar="FILE", help="Rows to score on, of the same form.")] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help=f"A known task: {', '.join(TASKS)}. With --source.")] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A folder with the files of the task, or hf: or hf:NAME for a Hugging Face data set."),
    ] = None,
    protocol: Annotated[
        str | None,
        setting_option(f"Where numbers come from that are not given: {', '.join(PROTOCOLS)}.", FinetuneSettings, "protocol"),
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Begin with this model folder, fine-tuned on another task, such as MNLI."),
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="How many seeds; by the protocol, 5 or for large tasks 1.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the training rows; by the protocol, for most tasks 3.")] = None,
    rate: Annotated[float | None, typer.Option(help="Peak learning rate; by the protocol.")] = None,
    on_bad_row: Annotated[
        str | None,
        setting_option("What to do with rows that cannot be used: stop, or skip and name them.", FinetuneSettings, "on_bad_row"),
    ] = None,
    settings: File = None,
    assign: Assign = None,
    imports: Imports = None,
) -> None:
    """Fine-tune on a labelled task: classes or numbers for texts or pairs, choices, answers to questions, tags of words.

    Learns with several seeds and tells the median and spread of the metrics; the median seed ends as DIR/model. Such as:
    layerwright finetune run/model --task RTE --source glue --out rte.
    """
    import_modules(imports)
    chosen = read(
        FinetuneSettings,
        settings,
        assign or (),
        train=train,
        valid=valid,
        task=task,
        source=source,
        protocol=protocol,
        start=start,
        seeds=seeds,
        epochs=epochs,
        rate=rate,
        on_bad_row=on_bad_row,
    )
    finetune(model, out, chosen)
    say(f"run     {out}\nmodel   {out / 'model'}")
