"""The command line: each command reads settings, calls one function, and prints what it left.

Mistakes end in one message and an exit code (`layerwright.errors`), never in a traceback; a traceback is a bug of ours.
"""

import os
import sys
import traceback
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import transformers
import typer
from pydantic import BaseModel

from . import cli_models, cli_predict, cli_scores, cli_suites, cost, demo, presets, report, search
from .console import say, table, warn
from .corpus import CorpusSettings, build
from .errors import IntegrityError, Interrupted, RunInUse, exit_code
from .grammar import fold
from .options import File, Imports, import_modules
from .pretrain import PretrainSettings, outlook, pretrain
from .search import SearchSettings
from .settings import read
from .space import Space
from .tasks.declarations import TASKS
from .tasks.finetune import FinetuneSettings, finetune
from .tasks.protocols import PROTOCOLS


def _names(kind: type[BaseModel], prefix: str = "") -> list[str]:
    """List the settings that a command reads, those of its groups as group.name."""
    found: list[str] = []
    for name, field in kind.model_fields.items():
        group = field.annotation
        inner = isinstance(group, type) and issubclass(group, BaseModel)
        found += _names(group, f"{prefix}{name}.") if inner else [prefix + name]  # type: ignore[arg-type]
    return found


def _names_of(kind: type[BaseModel], example: str) -> str:
    """Return the end of a command's help: what --set can set."""
    return f"Settings, for --set and the TOML file: {', '.join(_names(kind))}. Example: {example}"


def _option(told: str, kind: type[BaseModel], name: str) -> Any:
    """Return an option that sets a setting, its help ending with the default."""
    group, _, inner = name.partition(".")
    default = kind.model_fields[group].default
    return typer.Option(help=f"{told} [default: {getattr(default, inner) if inner else default}]")


app = typer.Typer(
    name="layerwright",
    help="Design, search, pre-train and fine-tune text encoders whose backbone is any sequence of typed layers. "
    "Text becomes a corpus (corpus build), a corpus an encoder (pretrain, or search among many), an encoder a classifier "
    "(finetune).",
    epilog="Begin with: layerwright demo, which does all of it in a few minutes, or layerwright show bert-base.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
corpus_app = typer.Typer(help="Turn text into a packed corpus with its tokenizer.", no_args_is_help=True)
app.add_typer(corpus_app, name="corpus")
app.add_typer(cli_models.app)
app.add_typer(cli_scores.app)
app.add_typer(cli_predict.app)
app.add_typer(cli_suites.app)

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


def main() -> None:
    """Run the command line and end the process with the exit code of what went wrong, if anything did."""
    transformers.utils.logging.disable_progress_bar()  # it draws bars for folders of one file
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


@app.command()
def show(
    text: Annotated[str, typer.Argument(help="An architecture, a space, or the name of a preset.")],
    length: Annotated[
        int, typer.Option(min=1, help="Tokens of the sequence that FLOPs are counted for, at most the positions.")
    ] = 128,
    imports: Imports = None,
) -> None:
    """Print layers, parameters and FLOPs, or the size of a space.

    Such as: layerwright show '256 embed=128: 12x(attn ffn)'. Quote the text: a shell has its own use for brackets.
    """
    import_modules(imports)
    space = presets.space(text)
    length = min(length, space.largest.positions)
    if space.size > 1:
        _show_space(space, length)
        return
    arch = space.largest
    say(f"{arch}\n\n{arch.explicit()}\n")
    rows: list[list[object]] = []
    whole, flops = cost.parameters(arch), cost.flops(arch, length)
    layers = [(layer, cost.layer_parameters(arch, i), cost.layer_flops(arch, i, length)) for i, layer in enumerate(arch.layers)]
    within, spent = sum(one[1] for one in layers), sum(one[2] for one in layers)
    rows.append(["", "embeddings" + (" and last norm" if arch.norm == "pre" else ""), whole - within, _giga(flops - spent)])
    rows += [[i, str(layer), size, _giga(flop)] for i, (layer, size, flop) in enumerate(layers)]
    rows.append(["", "total", whole, _giga(flops)])
    table(f"{len(arch)} layers, {whole / 1e6:.2f} M parameters", ["layer", "what", "parameters", f"GFLOPs at {length}"], rows)
    kinds: dict[str, list[int]] = {}
    for layer, size, _ in layers:
        kinds.setdefault(layer.kind, []).append(size)
    shares = [[kind, len(sizes), sum(sizes), f"{sum(sizes) / whole:.1%}"] for kind, sizes in kinds.items()]
    shares.append(["embeddings", None, whole - within, f"{(whole - within) / whole:.1%}"])
    table("Where the parameters are", ["kind", "layers", "parameters", "share"], shares)


def _show_space(space: Space, length: int) -> None:
    say(f"{space}\n\n{space.explicit()}\n")
    smallest, largest = cost.smallest(space, cost.parameters), cost.largest(space, cost.parameters)
    rows = [
        [name, str(arch), cost.parameters(arch), _giga(cost.flops(arch, length))]
        for name, arch in (("smallest", smallest), ("largest", largest))
    ]
    table(f"A space of {space.size:,} architectures", ["", "architecture", "parameters", f"GFLOPs at {length}"], rows)
    alternatives = [
        [i, len(slot), "  |  ".join(fold([str(layer) for layer in run]) or "nothing" for run in slot)]
        for i, slot in enumerate(space.slots)
    ]
    table("Its slots", ["slot", "alternatives", "which"], alternatives)


@corpus_app.command("build", epilog=_names_of(CorpusSettings, "--set validation=0.05 --set lowercase=false"))
def corpus_build(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="PATHS...",
            help="Text: .txt, .jsonl (a field text), both also .gz, .parquet (a column text), folders and globs of these, "
            "hf:NAME[:CONFIG] for a Hugging Face data set, or the word python for the documentation that Python carries.",
        ),
    ],
    out: Out,
    vocab: Annotated[int | None, _option("Word pieces of the tokenizer to train.", CorpusSettings, "vocab")] = None,
    model: Annotated[str | None, _option("Tokenizer to train: wordpiece or bpe.", CorpusSettings, "model")] = None,
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


@app.command("pretrain", epilog=_names_of(PretrainSettings, "--set plan.warmup=500 --set generator=1/3"))
def pretrain_command(
    out: Out,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="An architecture, such as '256 embed=128: 12x(attn ffn)', or a preset; a space trains its supernet. "
            "Needed, here or in --settings.",
        ),
    ] = None,
    corpus: Made = None,
    objective: Annotated[
        str | None, _option("rtd (replaced-token detection) or mlm (masked language modelling).", PretrainSettings, "objective")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How long, in steps; this, --tokens or --minutes is needed.")] = None,
    tokens: Annotated[int | None, typer.Option(help="How long, in tokens.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long, in minutes on this machine.")] = None,
    batch: Annotated[int | None, _option("Rows a step, over all processes.", PretrainSettings, "batch")] = None,
    length: Annotated[int | None, _option("Tokens a row.", PretrainSettings, "length")] = None,
    rate: Annotated[float | None, _option("Peak learning rate.", PretrainSettings, "plan.rate")] = None,
    precision: Annotated[str | None, _option("float32 or bf16.", PretrainSettings, "plan.precision")] = None,
    seed: Annotated[int | None, _option("Seed of weights, order and chance.", PretrainSettings, "seed")] = None,
    settings: File = None,
    assign: Assign = None,
    dry_run: DryRun = False,
    imports: Imports = None,
) -> None:
    """Pre-train an encoder, or the supernet of a space.

    An encoder ends as DIR/model, which transformers loads. Stop it or kill it when you like: the same command goes on where it
    was. For several processes: torchrun --nproc-per-node 2 -m layerwright pretrain ...
    """
    import_modules(imports)
    plan = _given(steps=steps, tokens=tokens, minutes=minutes, rate=rate, precision=precision)
    chosen = read(
        PretrainSettings,
        settings,
        assign or (),
        arch=arch,
        corpus=corpus,
        objective=objective,
        batch=batch,
        length=length,
        seed=seed,
        plan=plan or None,
    )
    if dry_run:
        table("A dry run: nothing is written", ["what", "how much"], outlook(chosen))
        return
    pretrain(chosen, out)
    page = report.write(out)
    say(f"run     {out}\nreport  {page}" + (f"\nmodel   {out / 'model'}" if (out / "model").exists() else ""))


@app.command("search", epilog=_names_of(SearchSettings, "--set supernet.minutes=30 --set retrain.minutes=10 --set seeds=3"))
def search_command(
    out: Out,
    space: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A space, such as '256 embed=128: 24x{conv|attn|ffn}'. Needed, here or in --settings."),
    ] = None,
    corpus: Made = None,
    strategy: Annotated[
        str | None,
        _option("evolution, aging, random, or optuna:SAMPLER, such as optuna:TPESampler.", SearchSettings, "strategy.name"),
    ] = None,
    trials: Annotated[int | None, _option("Candidates to score with the supernet.", SearchSettings, "trials")] = None,
    top: Annotated[int | None, _option("Best candidates to train from scratch.", SearchSettings, "top")] = None,
    parameters: Annotated[int | None, typer.Option(help="Limit on parameters, embeddings included.")] = None,
    flops: Annotated[
        int | None, typer.Option(help="Limit on FLOPs of a forward pass of one sequence; layerwright show tells them.")
    ] = None,
    seed: Annotated[int | None, _option("Seed of everything.", SearchSettings, "seed")] = None,
    settings: File = None,
    assign: Assign = None,
    dry_run: DryRun = False,
    imports: Imports = None,
) -> None:
    """Find a better sequence of layers for a text.

    Trains a supernet, scores candidates with it, and trains the best and the baselines from scratch with one budget. The winner
    ends as DIR/model, the page as DIR/report.html. --dry-run tells how long all of it takes here.
    """
    import_modules(imports)
    limits = _given(parameters=parameters, flops=flops)
    chosen = read(
        SearchSettings,
        settings,
        assign or (),
        space=space,
        corpus=corpus,
        strategy={"name": strategy} if strategy else None,
        trials=trials,
        top=top,
        limits=limits or None,
        seed=seed,
    )
    if dry_run:
        table("A dry run: nothing is written", ["what", "how much"], search.outlook(chosen))
        return
    search.search(chosen, out)
    say(f"run     {out}\nreport  {report.write(out)}\nmodel   {out / 'model'}")


@app.command("finetune", epilog=_names_of(FinetuneSettings, "--set seeds=10 --set score=macro_f1"))
def finetune_command(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder that pretrain or search left: DIR/model.")],
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
        _option(f"Where numbers come from that are not given: {', '.join(PROTOCOLS)}.", FinetuneSettings, "protocol"),
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
        _option("What to do with rows that cannot be used: stop, or skip and name them.", FinetuneSettings, "on_bad_row"),
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


@app.command("report")
def report_command(run: Annotated[Path, typer.Argument(help="The folder of a pre-training or a search.")]) -> None:
    """Draw the page of a run again, as report.html in its folder."""
    say(str(report.write(run)))


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write.")] = Path("runs/demo"),
) -> None:
    """Go from text to a searched, fine-tuned encoder in minutes.

    The text is the documentation that Python carries, so nothing is downloaded.
    """
    demo.demo(out)


def _given(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _giga(flops: int) -> float:
    return round(flops / 1e9, 4)
