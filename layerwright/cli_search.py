"""The command that searches a space; `cli` names it."""

from typing import Annotated

import typer

from . import report, search
from .console import say, table
from .forecast import outlook
from .options import Assign, DryRun, File, Imports, Made, Out, given, import_modules, setting_option, settings_help
from .search import SearchSettings
from .settings import read

app = typer.Typer()


@app.command("search", epilog=settings_help(SearchSettings, "--set supernet.minutes=30 --set retrain.minutes=10 --set seeds=3"))
def search_command(
    out: Out,
    space: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="A space, such as '256 embed=128: 24x{conv|attn|ffn}'. Needed, here or in --settings."),
    ] = None,
    corpus: Made = None,
    strategy: Annotated[
        str | None,
        setting_option(
            "evolution, aging, operation-priority, random, or optuna:SAMPLER, such as optuna:TPESampler.",
            SearchSettings,
            "strategy.name",
        ),
    ] = None,
    trials: Annotated[int | None, setting_option("Candidates to score with the supernet.", SearchSettings, "trials")] = None,
    top: Annotated[int | None, setting_option("Best candidates to train from scratch.", SearchSettings, "top")] = None,
    parameters: Annotated[int | None, typer.Option(help="Limit on parameters, embeddings included.")] = None,
    flops: Annotated[
        int | None, typer.Option(help="Limit on FLOPs of a forward pass of one sequence; layerwright show tells them.")
    ] = None,
    seed: Annotated[int | None, setting_option("Seed of everything.", SearchSettings, "seed")] = None,
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
    limits = given(parameters=parameters, flops=flops)
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
        table("A dry run: nothing is written", ["what", "how much"], outlook(chosen))
        return
    search.search(chosen, out)
    say(f"run     {out}\nreport  {report.write(out)}\nmodel   {out / 'model'}")
