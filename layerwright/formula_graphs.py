"""Draw a formula as a graph: inputs on top, the result at the foot, and each step once, however often it is used.

Rows are the depths of steps.  A line that passes a row keeps a lane free in it; boxes and lanes stand as near as can be to
below the middle of what enters them, without overlap.
"""

from collections.abc import Iterator
from html import escape
from itertools import pairwise
from typing import NamedTuple

from .formulas import Formula
from .operations import Shape

# Of values; light, under black text.
COLOURS = {Shape.TOKEN: "#d6e6f4", Shape.TURNED: "#d5ecdf", Shape.PAIR: "#f7ddb5"}
_WIDE, _HIGH, _LANE, _ACROSS, _DOWN = 88, 26, 6, 18, 26  # a box, a lane, and what is between them, in pixels


class Spot(NamedTuple):
    """A place in a row: of the box of a step, or of a lane of lines that begin at it."""

    step: int
    row: int
    lane: bool = False


def graph(formula: Formula) -> str:
    """Return the graph in SVG that needs no style sheet; a box's tooltip says what it computes, its colour the shape."""
    rows = _rows(formula)
    middles = _middles(formula, rows)
    left = min(middle - _half(spot) for spot, middle in middles.items()) - 1
    middles = {spot: middle - left for spot, middle in middles.items()}
    width = max(middle + _half(spot) for spot, middle in middles.items()) + 1
    height = len(rows) * (_HIGH + _DOWN) - _DOWN + 2
    texts = _texts(formula)
    spots = {spot.step: spot for spot in middles if not spot.lane}
    lines = [
        _line(formula, spots, middles, (place, at)) for place in spots for at, _ in enumerate(formula.steps[place].arguments)
    ]
    boxes = [_box(formula, spot, middles[spot], texts[place]) for place, spot in spots.items()]
    looks = f'viewBox="0 0 {width:g} {height}" width="{width:g}" height="{height}" font-family="sans-serif" font-size="12"'
    return (
        f'<svg class="formula" role="img" aria-label="{escape(formula.plain())}" style="max-width:100%;height:auto" {looks}>'
        f'<g fill="none" stroke="#66707a" stroke-width="1.3">{"".join(lines)}</g>'
        f'<g text-anchor="middle" dominant-baseline="central">{"".join(boxes)}</g></svg>'
    )


def _rows(formula: Formula) -> list[list[Spot]]:
    """Return the boxes of each depth, and a lane in each row that lines from one above pass."""
    depths: list[int] = []
    for step in formula.steps:
        depths.append(1 + max((depths[place] for place in step.arguments), default=-1))
    last = {argument: depths[place] for place, step in enumerate(formula.steps) for argument in step.arguments}
    for place, step in enumerate(formula.steps):
        last |= {argument: max(last[argument], depths[place]) for argument in step.arguments}
    rows: list[list[Spot]] = [[] for _ in range(depths[-1] + 1)]
    for place, depth in enumerate(depths):
        rows[depth].append(Spot(place, depth))
        for row in range(depth + 1, last.get(place, 0)):
            rows[row].append(Spot(place, row, lane=True))
    return rows


def _middles(formula: Formula, rows: list[list[Spot]]) -> dict[Spot, float]:
    """Return the middle of each spot: below what enters it, moved aside as little as its neighbours need."""
    middles: dict[Spot, float] = {}
    for row in rows:
        wanted = {}
        for at, spot in enumerate(row):
            above = [middles[one] for one in _above(formula, spot, middles)]
            wanted[spot] = sum(above) / len(above) if above else at * (_WIDE + _ACROSS)
        row.sort(key=wanted.__getitem__)
        placed: list[float] = []
        for at, spot in enumerate(row):
            room = placed[-1] + _half(row[at - 1]) + _ACROSS + _half(spot) if placed else wanted[spot]
            placed.append(max(room, wanted[spot]))
        shift = sum(middle - wanted[spot] for spot, middle in zip(row, placed, strict=True)) / len(row)
        middles |= {spot: middle - shift for spot, middle in zip(row, placed, strict=True)}
    return middles


def _above(formula: Formula, spot: Spot, known: dict[Spot, float]) -> Iterator[Spot]:
    """Yield the spots in the row above from which lines come."""
    for source in (spot.step,) if spot.lane else formula.steps[spot.step].arguments:
        yield next(one for lane in (False, True) if (one := Spot(source, spot.row - 1, lane)) in known)


def _half(spot: Spot) -> float:
    return (_LANE if spot.lane else _WIDE) / 2


def _texts(formula: Formula) -> list[str]:
    texts: list[str] = []
    for name, arguments, _ in formula.steps:
        texts.append(f"{name}({', '.join(texts[place] for place in arguments)})" if arguments else name)
    return texts


def _line(formula: Formula, spots: dict[int, Spot], middles: dict[Spot, float], end: tuple[int, int]) -> str:
    """Return the line to a step from one of its arguments, which enter side by side, in order."""
    place, argument = end
    arguments = formula.steps[place].arguments
    source, target = spots[arguments[argument]], spots[place]
    xs = [middles[source], *(middles[Spot(source.step, row, True)] for row in range(source.row + 1, target.row))]
    xs.append(middles[target] - _WIDE / 2 + _WIDE * (argument + 1) / (len(arguments) + 1))
    path = f"M{xs[0]:g} {_top(source.row) + _HIGH}"
    for row, (x, to) in enumerate(pairwise(xs), source.row):
        low, top = _top(row) + _HIGH, _top(row + 1)
        path += f"V{low}C{x:g} {low + _DOWN / 2:g} {to:g} {top - _DOWN / 2:g} {to:g} {top}"
    return f'<path d="{path}"/>'


def _box(formula: Formula, spot: Spot, middle: float, text: str) -> str:
    step, top = formula.steps[spot.step], _top(spot.row)
    edge = ' stroke="#222" stroke-width="1.6"' if spot.step == len(formula.steps) - 1 else ""
    return (
        f"<g><title>{escape(text)}: {step.shape.value}</title>"
        f'<rect x="{middle - _WIDE / 2:g}" y="{top}" width="{_WIDE}" height="{_HIGH}" rx="5" fill="{COLOURS[step.shape]}"{edge}/>'
        f'<text x="{middle:g}" y="{top + _HIGH / 2:g}" fill="#111">{escape(step.name)}</text></g>'
    )


def _top(row: int) -> int:
    return 1 + row * (_HIGH + _DOWN)
