"""The command that turns text into a corpus; `cli` names it."""

from pathlib import Path
from typing import Annotated

import typer

from .console import table
from .corpus import CorpusSettings, build
from .options import Assign, File, setting_option, settings_help
from .settings import read

app = typer.Typer(help="Turn text into a packed corpus with its tokenizer.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


@app.command("build", epilog=settings_help(CorpusSettings, "--set validation=0.05 --set lowercase=false"))
def corpus_build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...",
            help="Text: .txt, .jsonl (a field text), both also .gz, .parquet (a column text), folders and globs of these, "
            "hf:NAME[:CONFIG] for a Hugging Face data set, or the word python for the documentation that Python carries.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write, whole or not at all.")],
    vocab: Annotated[int | None, setting_option("Word pieces of the tokenizer to train.", CorpusSettings, "vocab")] = None,
    model: Annotated[str | None, setting_option("Tokenizer to train: wordpiece or bpe.", CorpusSettings, "model")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help="Use this vocab.txt or tokenizer.json instead of training one.")] = None,
    settings: File = None,
    assign: Assign = None,
) -> None:
    """Train a tokenizer on text, or take one, and pack the text.

    A .txt file has a paragraph a line and a blank line between documents. The same call again does nothing; one with changed
    text or settings is refused.
    """
    chosen = read(CorpusSettings, settings, assign or (), vocab=vocab, model=model, tokenizer=tokenizer)
    built = build(sources, out, chosen)
    rows = [[split, len(built.starts(split)) - 1, len(built.tokens(split))] for split in ("train", "validation")]
    table(f"{out}: {built.vocab:,} word pieces", ["split", "documents", "tokens"], rows)
