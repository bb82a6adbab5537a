"""The command `layerwright edit`: edits in the order in which they stand on the command line, a table, and a model folder."""

import re
import shlex
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from . import surgery
from .architecture import Architecture, Layer
from .console import say, table, warn
from .editing import TARGETS, Operation, refuse_existing
from .options import DryRun, Imports, import_modules
from .originals import Original, open_original
from .parity import spelled
from .rewriting import write
from .surgery import UNITS, Edit, Unit, pick

app = typer.Typer()

Step = tuple[str, Any]  # the name of an option, and the word behind it or the two
PAIRS = ("insert", "replace", "splice")  # options of two words
LARGEST_SEED = 2**62  # torch takes numbers below 2**63, and new layers get this plus their place


class Ordered(TyperCommand):
    """A command whose repeatable options keep the order among them in which they are given, in `meta["steps"]`."""

    def __init__(self, *arguments: Any, **more: Any):
        super().__init__(*arguments, **more)
        for parameter in self.params:
            if parameter.name in PAIRS:
                parameter.nargs = 2  # a list of pairs is no type that typer knows

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read the arguments, once more for the order."""
        values, _, order = self.make_parser(ctx).parse_args(list(args))
        taken = {name: iter(values[name]) for name in EDITS if name in values}
        ctx.meta["steps"] = [(one.name, next(taken[one.name])) for one in order if one.name in taken]
        return super().parse_args(ctx, args)


Spans = list[str] | None
Pairs = list[Any] | None


Keep = Annotated[Spans, typer.Option("--keep", metavar="RANGES", help="Keep these and no others, in this order.")]
Remove = Annotated[Spans, typer.Option("--remove", metavar="RANGES", help="Leave these out.")]
Duplicate = Annotated[
    Spans, typer.Option("--duplicate", metavar="RANGES[xN]", help="Put N copies of these, else one, behind the last of them.")
]
Repeat = Annotated[
    Spans, typer.Option("--repeat", metavar="RANGES[xN]", help="Put N copies of each of these, else one, behind itself.")
]
Reorder = Annotated[Spans, typer.Option("--reorder", metavar="RANGES", help="Bring all into this order.")]
Insert = Annotated[
    Pairs,
    typer.Option("--insert", metavar="AT LAYERS", help="Put new layers before this place: --insert 4 'conv[kernel=9]'."),
]
Replace = Annotated[Pairs, typer.Option("--replace", metavar="RANGES LAYERS", help="Put new layers in place of these.")]
Splice = Annotated[
    Pairs,
    typer.Option(
        "--splice",
        metavar="OTHER RANGES[@AT]",
        help="Put layers of another model of this width and vocabulary before a place, or at the end.",
    ),
]
Grow = Annotated[Spans, typer.Option("--grow", metavar="DEPTH", help="Reach this depth by copies spread evenly.")]


@app.command("edit", cls=Ordered)
def edit_command(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A model folder of transformers or of ours, or the name of a model on the Hub.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="The folder to write, which must not exist. Needed.")
    ] = None,
    keep: Keep = None,
    remove: Remove = None,
    duplicate: Duplicate = None,
    repeat: Repeat = None,
    reorder: Reorder = None,
    insert: Insert = None,
    replace: Replace = None,
    splice: Splice = None,
    grow: Grow = None,
    unit: Annotated[
        str, typer.Option(help=f"What ranges count: {' or '.join(UNITS)}; a block ends with each feed-forward layer.")
    ] = "layer",
    tie: Annotated[bool, typer.Option("--tie", help="Let copies share their weights, which are kept on disk once.")] = False,
    near: Annotated[bool, typer.Option("--near", help="Let new layers begin as near to doing nothing as they can.")] = False,
    to: Annotated[
        str | None,
        typer.Option(
            "--to", metavar="FAMILY", help=f"What the result must be: {', '.join(TARGETS)}; else MODEL's own, if it can be."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="Seed of the weights of new layers.")] = 0,
    dry_run: DryRun = False,
    imports: Imports = None,
) -> None:
    """Edit a trained encoder: leave layers out, copy, move and add them.

    Edits are done in the order given, each on what the one before left. Ranges are those of Python, with commas between: 6:10,
    -2:, ::2, 0,3,-1. The table of the result comes first. Such as: layerwright edit bert-base-uncased --unit block
    --duplicate 6:10 --remove -1 --out bert-15.
    """
    import_modules(imports)
    if out is None and not dry_run:
        raise ValueError("--out is needed, except with --dry-run")
    if out is not None:
        refuse_existing(out)
    if unit not in UNITS:
        raise ValueError(f"no unit '{unit}': {' or '.join(UNITS)}")
    if not context.meta["steps"]:
        raise ValueError(f"no edit is given: {', '.join(f'--{name}' for name in EDITS)}")
    operation = plan(model, context.meta["steps"], unit=unit, tie=tie, near=near, seed=seed, to=to)  # type: ignore[arg-type]
    _show(operation)
    if dry_run or out is None:
        return
    done = write(operation, out)
    say(f"model       {done.folder}\nclass       {done.result}")
    if done.difference is not None:
        of = f", of {operation.original.given.name}" if operation.target.family is None else ""
        say(f"difference  {spelled(done.difference, f'between transformers and ours{of}')}")


def plan(model: str, steps: list[Step], *, unit: Unit = "layer", **manner: Any) -> Operation:
    """Open the models that edits name, and return the edits as one.

    Raises:
        ValueError: an edit that cannot be done, by the option that asks for it.
    """
    original = open_original(model)
    others = {said[0]: open_original(said[0]) for name, said in steps if name == "splice"}

    def follow(done: Edit, step: Step) -> Edit:
        name, said = step
        try:
            return done.then(EDITS[name](done.result, said, unit, others))
        except ValueError as error:
            words = shlex.join([said] if isinstance(said, str) else said)
            raise ValueError(f"--{name} {words}: {error}") from None

    whole = pick(original.arch, *range(len(original.arch)))
    return Operation(original, reduce(follow, steps, whole), others, **manner)


def _show(operation: Operation) -> None:
    """Print the table of the result, what it costs, and what it is written as."""
    original, target, length = operation.original, operation.target, operation.length
    rows = [[*row[:5], round(row.flops / 1e9, 4)] for row in operation.rows()]
    columns = ["layer", "what", "from", "weights", "parameters", f"GFLOPs at {length}"]
    table(f"{original.given.name}: {original.arch}", columns, rows)
    totals = [[name, layers, size, round(spent / 1e9, 4)] for name, layers, size, spent in operation.totals()]
    table("Without the head", ["", "layers", "parameters", f"GFLOPs at {length}"], totals)
    say(f"{operation.edit.result}\n{target.named}")
    if target.reasons:
        more = ", and more" if target.reasons[1:] else ""
        warn(f"note        {original.named} cannot hold it: {target.reasons[0]}{more}")
    for line in target.notes:
        warn(f"note        {line}")
    for line in operation.left_out:
        warn(f"left out    {line}")
    for one in (original, *operation.grafts.values()):
        if one.given.tokenizer() is None:
            more = ": whether its vocabulary is the same is not known" if operation.grafts else ""
            warn(f"note        {one.given.name} has no tokenizer{more}")


def _spans(change: Callable[..., Edit]) -> Callable[..., Edit]:
    return lambda arch, said, unit, others: change(arch, said, unit)


def _copies(change: Callable[..., Edit]) -> Callable[..., Edit]:
    def follow(arch: Architecture, said: str, unit: Unit, others: Any) -> Edit:
        span, _, times = said.partition("x")
        return change(arch, span, _number(times, "a number of copies") if times or "x" in said else 1, unit)

    return follow


def _insert(arch: Architecture, said: tuple[str, str], unit: Unit, others: Any) -> Edit:
    return surgery.insert(arch, _number(said[0], "a place"), *_layers(arch, said[1]), unit=unit)


def _replace(arch: Architecture, said: tuple[str, str], unit: Unit, others: Any) -> Edit:
    return surgery.replace(arch, said[0], *_layers(arch, said[1]), unit=unit)


def _splice(arch: Architecture, said: tuple[str, str], unit: Unit, others: dict[str, Original]) -> Edit:
    span, mark, at = said[1].partition("@")
    place = _number(at, "a place") if mark else None
    return surgery.splice(arch, others[said[0]].arch, span, model=said[0], at=place, unit=unit)


def _grow(arch: Architecture, said: str, unit: Unit, others: Any) -> Edit:
    return surgery.grow(arch, _number(said, "a depth"), unit)


EDITS: dict[str, Callable[..., Edit]] = {
    "keep": _spans(surgery.keep),
    "remove": _spans(surgery.remove),
    "duplicate": _copies(surgery.duplicate),
    "repeat": _copies(surgery.repeat),
    "reorder": _spans(surgery.reorder),
    "insert": _insert,
    "replace": _replace,
    "splice": _splice,
    "grow": _grow,
}


def _number(word: str, what: str) -> int:
    if not re.fullmatch(r"-?\d{1,9}", word):
        raise ValueError(f"{word!r} is not {what}")
    return int(word)


def _layers(arch: Architecture, text: str) -> tuple[Layer, ...]:
    """Read layers as they stand behind the colon of an architecture."""
    return Architecture.parse(f"{arch.width}: {text}").layers
