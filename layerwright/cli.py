"""The command line: each command reads settings, calls one function, and prints what it left.

A command is imported when it is called, so that `layerwright --help` needs no torch.  Mistakes end in one message and an exit
code (`layerwright.errors`), never in a traceback; a traceback is a bug of ours.
"""

import os
import sys
import traceback
from importlib import import_module, metadata
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from .console import say, warn
from .errors import IntegrityError, Interrupted, RunInUse, exit_code


class Entry(NamedTuple):
    """Where a command is, and the first line of its help."""

    file: str
    line: str


COMMANDS = {
    "corpus": Entry("cli_corpus", "Turn text into a packed corpus with its tokenizer."),
    "show": Entry("cli_show", "Print layers, parameters and FLOPs, or the size of a space."),
    "pretrain": Entry("cli_pretrain", "Pre-train an encoder, or the supernet of a space."),
    "search": Entry("cli_search", "Find a better sequence of layers for a text."),
    "finetune": Entry(
        "cli_finetune",
        "Fine-tune on a labelled task: classes or numbers for texts or pairs, choices, answers to questions, tags of words.",
    ),
    "report": Entry("cli_report", "Draw the page of a run again, as report.html in its folder."),
    "demo": Entry("cli_demo", "Go from text to a searched, fine-tuned encoder in minutes."),
    "export": Entry("cli_models", "Export a model to ONNX, checked against PyTorch, and time both."),
    "convert": Entry("cli_models", "Convert a model of transformers to a model folder of ours, or one of ours to transformers."),
    "edit": Entry("cli_edit", "Edit a trained encoder: leave layers out, copy, move and add them."),
    "inspect": Entry(
        "cli_inspect", "Look inside a model: what removing and duplicating its layers changes, and what its hidden states hold."
    ),
    "score": Entry("cli_scores", "Score a model on what it learned without labels: one of --pairs, --text and --similarity."),
    "predict": Entry("cli_predict", "Predict a class, a number, a choice, tags or an answer for each row, in order."),
    "evaluate": Entry(
        "cli_suites", "Fine-tune on every task of a suite with several seeds, and write tables, a page and submission files."
    ),
    "compare": Entry("cli_suites", "Tell whether a model is better than another, by paired tests over seeds and over rows."),
}


class Commands(TyperGroup):
    """Know every command by its name and first line; import the one that is called."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.commands.update({name: TyperCommand(name, help=entry.line) for name, entry in COMMANDS.items()})

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the name of the command that is called, the command itself, and its arguments."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(name) if name else None, rest


def load(name: str) -> Any:
    """Import a command."""
    app: typer.Typer = import_module(f".{COMMANDS[name].file}", __package__).app
    group = typer.main.get_group(app)
    if app.registered_callback is None:
        return group.commands[name]
    group.name = name
    return group


app = typer.Typer(
    name="layerwright",
    cls=Commands,
    help="Design, search, pre-train and fine-tune text encoders whose backbone is any sequence of typed layers. "
    "Text becomes a corpus (corpus build), a corpus an encoder (pretrain, or search among many), an encoder a classifier "
    "(finetune).",
    epilog="Begin with: layerwright demo, which does all of it in a few minutes, or layerwright show bert-base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def main() -> None:
    """Run the command line and end the process with the exit code of what went wrong, if anything did."""
    # Transformers, which reads it when it is imported, draws bars for folders of one file.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        sys.exit(typer.main.get_command(app)(standalone_mode=False))
    except typer.TyperException as error:
        warn(f"error: {error.format_message()}")
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        warn("interrupted")
        sys.exit(130)
    except (ValueError, OSError, FloatingPointError, IntegrityError, Interrupted, RunInUse) as error:
        if os.environ.get("LAYERWRIGHT_TRACEBACK"):
            traceback.print_exc()
        warn(str(error) if isinstance(error, Interrupted) else f"error: {error}", everywhere=True)
        sys.exit(exit_code(error))


def _tell(version: bool) -> None:
    if version:
        say(metadata.version("layerwright"))
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.", callback=_tell, is_eager=True)] = False,
) -> None:
    pass
