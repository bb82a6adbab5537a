"""The command that shows an architecture or a space; `cli` names it."""

from pathlib import Path
from typing import Annotated

import typer

from . import cost, presets
from .architecture import Architecture
from .console import about, say, table
from .formula_page import formulas_of, render
from .grammar import fold
from .options import Imports, import_modules
from .settings import write_atomically
from .space import Space

app = typer.Typer()


@app.command("show")
def show(
    text: Annotated[str, typer.Argument(help="An architecture, a space, or the name of a preset.")],
    length: Annotated[
        int, typer.Option(min=1, help="Tokens of the sequence that FLOPs are counted for, at most the positions.")
    ] = 128,
    draw: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw one architecture, and the formulas in it, as a page of HTML.")
    ] = None,
    imports: Imports = None,
) -> None:
    """Print layers, parameters and FLOPs, or the size of a space.

    Such as: layerwright show '256 embed=128: 12x(attn ffn)'. Quote the text: a shell has its own use for brackets.
    """
    import_modules(imports)
    space = presets.space(text)
    length = min(length, space.largest.positions)
    if draw is not None and space.size > 1:
        raise ValueError("a space leaves choices open, and --draw draws one architecture")
    if space.size > 1:
        _show_space(space, length)
        return
    _show_architecture(space.largest, length)
    if draw is not None:
        write_atomically(draw, render(space.largest, text.strip() if text.strip() in presets.PRESETS else str(space.largest)))
        say(str(draw))


def _show_architecture(arch: Architecture, length: int) -> None:
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
    if formulas := formulas_of(arch):
        written = [[", ".join(map(str, places)), formula.plain(), len(formula)] for formula, places in formulas.items()]
        table("Formulas, in each head", ["layers", "formula", "operations"], written)


def _show_space(space: Space, length: int) -> None:
    say(f"{space}\n\n{space.explicit()}\n")
    smallest, largest = cost.smallest(space, cost.parameters), cost.largest(space, cost.parameters)
    rows = [
        [name, str(arch), cost.parameters(arch), _giga(cost.flops(arch, length))]
        for name, arch in (("smallest", smallest), ("largest", largest))
    ]
    size = about(space.size) if space.values_open else f"{space.size:,}"
    table(f"A space of {size} architectures", ["", "architecture", "parameters", f"GFLOPs at {length}"], rows)
    alternatives = [
        [i, len(slot), "  |  ".join(fold([str(layer) for layer in run]) or "nothing" for run in slot)]
        for i, slot in enumerate(space.slots)
    ]
    table("Its slots", ["slot", "alternatives", "which"], alternatives)


def _giga(flops: int) -> float:
    return round(flops / 1e9, 4)
