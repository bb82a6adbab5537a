"""Draw an architecture and the formulas in it: for `layerwright show --draw`, and for the pages of runs."""

from collections.abc import Mapping, Sequence
from html import escape

from . import drawings, page
from .architecture import Architecture
from .formula_graphs import COLOURS, graph
from .formulas import Formula
from .space import Space

EXPLAINED = "Q, K and V are linear maps of what enters a layer, in each head; E is the size of a head. Another map follows."


def formulas_of(arch: Architecture) -> dict[Formula, list[int]]:
    """Return the formulas of an architecture, each with the layers that compute it."""
    found: dict[Formula, list[int]] = {}
    for place, layer in enumerate(arch.layers):
        if layer.kind == "formula":
            found.setdefault(Formula.parse(str(dict(layer.options)["text"])), []).append(place)
    return found


def holds_formulas(space: Space) -> bool:
    """Return whether an architecture of the space can hold a formula."""
    return any(layer.kind == "formula" for slot in space.slots for run in slot for layer in run)


def places_of(places: Sequence[int]) -> str:
    """Write where a formula stands: layers 0, 2."""
    return f"layer{'s' * (len(places) > 1)} {', '.join(map(str, places))}"


def figures(formulas: Mapping[Formula, str]) -> str:
    """Return a figure for each formula: where it stands, its graph, and it in plain text and LaTeX to copy."""
    shown = []
    for formula, where in formulas.items():
        notes = f"{len(formula)} operations, {formula.work():.2f} times the work of plain attention"
        written = page.copyable(str(formula)) + page.copyable(formula.latex())
        shown.append(page.figure(f"{where}: {formula.plain()}", graph(formula), written, read=notes))
    colours = page.legend((fill, shape.value) for shape, fill in COLOURS.items())
    return colours + "".join(page.pair(*shown[at : at + 2]) for at in range(0, len(shown), 2))


def render(arch: Architecture, title: str) -> str:
    """Return a page: the strip of layers, the text, and the formulas."""
    texts = [str(arch)]
    strip = drawings.strip(arch) + drawings.kinds(texts)
    parts = [page.section("Layers", strip, page.copyable(str(arch)), page.copyable(arch.explicit()))]
    if formulas := formulas_of(arch):
        parts.append(
            page.section("Formulas", f"<p>{escape(EXPLAINED)}</p>", figures({one: places_of(at) for one, at in formulas.items()}))
        )
    facts = [f"{len(arch)} layers", f"width {arch.width}"]
    return page.page("architecture", title, facts, *parts)
