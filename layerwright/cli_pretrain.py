"""The command that pre-trains an encoder or a supernet; `cli` names it."""

from typing import Annotated

import typer

from . import report
from .console import say, table
from .options import Assign, DryRun, File, Imports, Made, Out, given, import_modules, setting_option, settings_help
from .pretrain import PretrainSettings, outlook, pretrain
from .settings import read

app = typer.Typer()


@app.command("pretrain", epilog=settings_help(PretrainSettings, "--set plan.warmup=500 --set generator=1/3"))
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
        str | None,
        setting_option("rtd (replaced-token detection) or mlm (masked language modelling).", PretrainSettings, "objective"),
    ] = None,
    steps: Annotated[int | None, typer.Option(help="How long, in steps; this, --tokens or --minutes is needed.")] = None,
    tokens: Annotated[int | None, typer.Option(help="How long, in tokens.")] = None,
    minutes: Annotated[float | None, typer.Option(help="How long, in minutes on this machine.")] = None,
    batch: Annotated[int | None, setting_option("Rows a step, over all processes.", PretrainSettings, "batch")] = None,
    length: Annotated[int | None, setting_option("Tokens a row.", PretrainSettings, "length")] = None,
    rate: Annotated[float | None, setting_option("Peak learning rate.", PretrainSettings, "plan.rate")] = None,
    precision: Annotated[str | None, setting_option("float32 or bf16.", PretrainSettings, "plan.precision")] = None,
    seed: Annotated[int | None, setting_option("Seed of weights, order and chance.", PretrainSettings, "seed")] = None,
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
    plan = given(steps=steps, tokens=tokens, minutes=minutes, rate=rate, precision=precision)
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
