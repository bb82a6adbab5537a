"""Draw charts and architectures as inline SVG.

Places are percentages of a drawing and sizes are pixels, so the same drawing fits a phone and a wide screen with text
of one size.  Only curves, which SVG cannot place by percentages, are stretched, and their strokes are not.  What a
mark stands for is its class, and the page gives classes their colours.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import NamedTuple
from zlib import crc32

from . import presets
from .architecture import Architecture, Layer
from .page import UNITS, legend, missing

Point = tuple[float, float]

# Okabe and Ito's colours, which people with any of the common colour blindnesses tell apart, and a light grey.
_COLOURS = {
    "attn": "#0072b2",
    "ffn": "#bcc6d0",
    "conv": "#e69f00",
    "sdconv": "#cc79a7",
    "mixed": "#d55e00",
    "glu": "#56b4e9",
    "grouped": "#009e73",
    "formula": "#882255",
}
_MORE_COLOURS = ("#44aa99", "#999933", "#aa4499", "#117733", "#332288", "#ddcc77")  # from Paul Tol's muted scheme


def colour(kind: str) -> str:
    """Return the colour of a layer kind: the same on every page, whichever kinds are registered."""
    return _COLOURS.get(kind) or _MORE_COLOURS[crc32(kind.encode()) % len(_MORE_COLOURS)]


def strip(arch: Architecture, *, slots: int = 0, labels: bool = True) -> str:
    """Draw an architecture as a strip of coloured layers, in SVG that needs no style sheet.

    Under the name of a layer stand the options that differ from their defaults; its tooltip has all of them.
    slots: leave room for this many layers, so that strips below each other line up.
    """
    slots = max(slots, len(arch))
    gap = min(0.4, 20 / slots)
    step = (100 + gap) / slots
    blocks = []
    for place, layer in enumerate(arch.layers):
        fill = colour(layer.kind)
        text = _label(layer, arch.width, slots) if labels else ""
        # Where there is no room for a text, the bar still shows that a layer has options that are not the defaults.
        if layer.short(arch.width) != layer.kind:
            text += '<rect y="92%" width="100%" height="8%" opacity=".45"/>'
        block = f'<title>layer {place}: {escape(str(layer))}</title><rect width="100%" height="100%" rx="3" fill="{fill}"/>{text}'
        where = f'x="{place * step:.5g}%" width="{step - gap:.5g}%"'
        blocks.append(f'<svg {where} data-kind="{escape(layer.kind)}" fill="{_legible(fill)}">{block}</svg>')
    looks = 'width="100%" height="38" text-anchor="middle" dominant-baseline="central" font-family="sans-serif" font-size="12"'
    crowded = " crowded" * (slots > 8)
    return f'<svg class="strip{crowded}" role="img" aria-label="{escape(str(arch))}" {looks}>{"".join(blocks)}</svg>'


def read_architecture(text: str) -> Architecture | None:
    """Read an architecture; None where the text is none, or has kinds that are not registered."""
    try:
        return presets.architecture(text)
    except ValueError:
        return None


def short(text: str) -> str:
    """Return the short form of an architecture's text, or the text itself where it cannot be read."""
    arch = read_architecture(text)
    return str(arch) if arch else text


def strip_of(text: str, *, slots: int = 0, labels: bool = True) -> str:
    """Return the strip of an architecture's text, or a note that it cannot be drawn."""
    arch = read_architecture(text)
    return (
        strip(arch, slots=slots, labels=labels)
        if arch
        else missing("Not drawn: this is not one architecture of layers that are known here.")
    )


def kinds(texts: Iterable[str]) -> str:
    """Return the legend of the kinds of layers in these architectures."""
    known = [(arch.width, layer) for arch in map(read_architecture, texts) if arch for layer in arch.layers]
    unusual = any(layer.short(width) != layer.kind for width, layer in known)
    note = [("bar", "a bar at the foot: options that are not the defaults")] if unusual else []
    return legend([*((colour(kind), kind) for kind in sorted({layer.kind for _, layer in known})), *note]) if known else ""


def _label(layer: Layer, width: int, slots: int) -> str:
    """Return the texts of a block: its name and, where blocks are narrow, its first letter; a page may swap the two."""
    if slots > 40:
        return ""
    unusual = layer.short(width)[len(layer.kind) + 1 : -1]
    room = 110 // slots
    if len(unusual) > room:
        values = ",".join(part.partition("=")[2] for part in unusual.split(","))
        unusual = values if len(values) <= room else "…"
    y = "34%" if unusual else "50%"
    lines = [f'<text class="name" x="50%" y="{y}">{escape(layer.kind)}</text>'] if slots <= 20 else []
    if slots > 8:
        hidden = ' display="none"' if lines else ""
        lines.append(f'<text class="letter" x="50%" y="{y}"{hidden}>{escape(layer.kind[:1])}</text>')
    if unusual:
        lines.append(f'<text class="unusual" x="50%" y="72%" font-size="10">{escape(unusual)}</text>')
    return "".join(lines)


def _legible(background: str) -> str:
    """Return black or white, whichever contrasts more (WCAG 2, relative luminance)."""
    parts = (int(background[at : at + 2], 16) / 255 for at in (1, 3, 5))
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return "#111111" if 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.179 else "#ffffff"


@dataclass(frozen=True)
class Axis:
    """A scale: what it measures and the values at its ends.  whole: only whole numbers make sense on it."""

    label: str
    low: float
    high: float
    whole: bool = False

    @classmethod
    def over(cls, label: str, values: Iterable[float]) -> "Axis":
        """Return an axis that holds all values that are finite, with a small margin."""
        values = list(values)
        kept = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
        low, high = min(kept), max(kept)
        margin = 0.05 * (high - low) or 0.05 * abs(low) or 0.5
        least = low - margin if low < 0 else max(low - margin, 0.0)
        return cls(label, least, high + margin, all(isinstance(value, int) for value in values))

    def at(self, value: float) -> float:
        """Return the place of a value, in percent of the axis."""
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    def ticks(self, most: int = 6) -> list[float]:
        """Return at most `most` evenly spaced round numbers on the axis: steps are 1, 2 or 5 times a power of ten."""
        power = 10.0 ** math.floor(math.log10((self.high - self.low) / most))
        power = max(power, 1.0) if self.whole else power
        for step in (power * factor for factor in (1, 2, 5, 10, 20)):
            first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
            if last - first < most:
                return [count * step for count in range(first, last + 1)]
        return []

    def labels(self) -> list[tuple[float, str]]:
        """Return the place of each tick and its text; all have one unit and one number of decimals."""
        ticks = self.ticks()
        largest = max(map(abs, ticks), default=0.0)
        unit, suffix = next((pair for pair in UNITS if largest >= pair[0]), (1.0, ""))
        exact = (n for n in range(6) if all(math.isclose(round(tick / unit, n), tick / unit) for tick in ticks))
        decimals = next(exact, None)
        texts = [f"{tick / unit:g}" if decimals is None else f"{tick / unit:.{decimals}f}" for tick in ticks]
        return [(self.at(tick), text.replace("-", "−") + suffix * (tick != 0)) for tick, text in zip(ticks, texts, strict=True)]


@dataclass(frozen=True)
class Chart:
    """A pair of axes.  Its methods return marks, and `draw` puts marks on the axes."""

    x: Axis
    y: Axis

    def dot(self, point: Point, tip: str = "", css: str = "", **named: object) -> str:
        """Mark a point, unless it is not finite.  named: become attributes, data-NAME."""
        if not all(map(math.isfinite, point)):
            return ""
        x, y = self._place(point)
        extra = "".join(f' data-{name}="{escape(str(value))}"' for name, value in named.items())
        title = f"<title>{escape(tip)}</title>" if tip else ""
        return f'<circle class="{escape(css)}" cx="{x}%" cy="{y}%" r="4"{extra}>{title}</circle>'

    def curve(self, points: Iterable[Point], name: str = "", css: str = "", *, colour: str = "") -> str:
        """Draw a line through the points that are finite, in order; what lies outside the axes is cut off.

        colour: such as #0072b2, in place of the one that its class has.
        """
        places = " ".join("{:g},{:g}".format(*self._place(point)) for point in points if all(map(math.isfinite, point)))
        named = f' data-name="{escape(name)}"' if name else ""
        look = f' style="stroke:{escape(colour)}"' if colour else ""
        line = f'<polyline class="{escape(css)}"{look}{named} points="{places}"/>'
        return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{line}</svg>' if places else ""

    def steps(self, points: Sequence[Point], name: str = "", css: str = "") -> str:
        """Draw a staircase: each value holds until the next point."""
        finite = [point for point in points if all(map(math.isfinite, point))]
        corners = [corner for one, two in pairwise(finite) for corner in (one, (two[0], one[1]))]
        return self.curve([*corners, *finite[-1:]], name, css)

    def names(self, points: Iterable[tuple[Point, str, str]], *, width: int = 460, height: int = 300) -> str:
        """Write names beside points, the first ones first; a name that would cover another or a point is left out.

        points: the point, its name and its class; the name of a class other than "minor" may cover points.
        width, height: of the drawing in pixels, roughly.
        """
        placed = [(self._place(point), name, css) for point, name, css in points]
        dots = [(x / 100 * width - 5, y / 100 * height - 5, 10.0, 10.0) for (x, y), _, _ in placed]
        names: list[tuple[float, ...]] = []
        texts = []
        for (x, y), name, css in placed:
            long = 6.2 * len(name)
            sides = (("start", 8, 4, 8.0), ("end", -8, 4, -8 - long), ("middle", 0, -9, -long / 2), ("middle", 0, 17, -long / 2))
            boxes = [(x / 100 * width + left, y / 100 * height + dy - 10, long, 13.0) for _, _, dy, left in sides]
            inside = [place for place, box in enumerate(boxes) if box[0] > 0 and box[0] + long < width]
            free = [place for place in inside if not any(_overlap(boxes[place], other) for other in names)]
            clear = [place for place in free if not any(_overlap(boxes[place], other) for other in dots)]
            for place in (clear or (free if css != "minor" else []))[:1]:
                anchor, dx, dy, _ = sides[place]
                names.append(boxes[place])
                at = f'x="{x}%" y="{y}%" dx="{dx}" dy="{dy}" text-anchor="{anchor}"'
                texts.append(f'<text class="{escape(css)}" {at}>{escape(name)}</text>')
        return f'<g class="names">{"".join(texts)}</g>'

    def draw(self, marks: Iterable[str], summary: str) -> str:
        """Return the drawing: axes with their labels, and marks on top of each other in order.

        summary: what the picture shows, for those who cannot see it.
        """
        rows = ((round(100 - place, 2), text) for place, text in self.y.labels())
        grid = [
            *(
                f'<line x2="100%" y1="{y}%" y2="{y}%"/><text x="-8" y="{y}%" dy=".35em" text-anchor="end">{text}</text>'
                for y, text in rows
            ),
            *(
                f'<line x1="{x}%" x2="{x}%" y2="100%"/><text x="{x}%" y="100%" dy="1.5em" text-anchor="middle">{text}</text>'
                for x, text in self.x.labels()
            ),
        ]
        x, y = escape(self.x.label), escape(self.y.label)
        scales = f'data-x="{self.x.low} {self.x.high}" data-y="{self.y.low} {self.y.high}" data-x-label="{x}" data-y-label="{y}"'
        return (
            f'<div class="plot"><p class="axis">{y}</p><svg class="chart" role="img" aria-label="{escape(summary)}" {scales}>'
            f'<g class="grid">{"".join(grid)}</g>{"".join(marks)}</svg><p class="axis x">{x}</p></div>'
        )

    def _place(self, point: Point) -> Point:
        return self.x.at(point[0]), round(100 - self.y.at(point[1]), 2)


def spread(values: Sequence[float], axis: Axis, tip: str) -> str:
    """Draw a few values on a line from the least to the greatest, for a cell of a table."""
    places = [axis.at(value) for value in values if math.isfinite(value)]
    line = f'<line x1="{min(places)}%" x2="{max(places)}%" y1="50%" y2="50%"/>' if places else ""
    dots = "".join(f'<circle cx="{place}%" cy="50%" r="3.5"/>' for place in places)
    return f'<svg class="spread" role="img" aria-label="{escape(tip)}"><title>{escape(tip)}</title>{line}{dots}</svg>'


class Cell(NamedTuple):
    """A cell of a heat map: its value, the text that it shows where there is room, and what it says when pointed at."""

    value: float
    text: str
    tip: str


@dataclass(frozen=True)
class Heat:
    """A heat map: what stands at its sides and foot, and the values that are drawn palest and deepest."""

    y: str
    x: str
    rows: Sequence[str]
    columns: Sequence[str]
    pale: float
    deep: float

    def draw(self, cells: Mapping[tuple[int, int], Cell], summary: str, css: str = "") -> str:
        """Return the drawing; cells are placed by row and column, from the upper left.

        summary: what the picture shows, for those who cannot see it.
        """
        marks = "".join(self._cell(row, column, cell) for (row, column), cell in cells.items())
        high, wide = 100 / len(self.rows), 100 / len(self.columns)
        sides = [
            *(
                f'<text x="-8" y="{(at + 0.5) * high:.5g}%" dy=".35em" text-anchor="end">{escape(text)}</text>'
                for at, text in enumerate(self.rows)
                if not at % _apart(len(self.rows))
            ),
            *(
                f'<text x="{(at + 0.5) * wide:.5g}%" y="100%" dy="1.5em" text-anchor="middle">{escape(text)}</text>'
                for at, text in enumerate(self.columns)
                if not at % _apart(len(self.columns))
            ),
        ]
        css += " crowded" * (len(self.columns) > 8)
        drawn = f'<svg role="img" aria-label="{escape(summary)}">{marks}{"".join(sides)}</svg>'
        # A cell need not be larger than what is written in it.
        looks = f'class="heat {escape(css)}" style="max-width:{min(4 * len(self.columns), 30)}rem"'
        return f'<div {looks}><p class="axis">{escape(self.y)}</p>{drawn}<p class="axis x">{escape(self.x)}</p></div>'

    def scale(self, low: str, high: str, css: str = "") -> str:
        """Return the key of the colours: the texts of the palest and the deepest value."""
        return f'<p class="legend {escape(css)}"><span>{escape(low)}<span class="ramp"></span>{escape(high)}</span></p>'

    def _cell(self, row: int, column: int, cell: Cell) -> str:
        span, known = self.deep - self.pale, math.isfinite(cell.value)
        depth = min(max((cell.value - self.pale) / span, 0.0), 1.0) if span and known else 0.0
        high, wide = 100 / len(self.rows), 100 / len(self.columns)
        looks = f'fill-opacity="{0.08 + 0.92 * depth:.3g}"' if known else 'class="nothing"'
        deep = " deep" * (depth > 0.6)
        text = f'<text class="value{deep}" x="50%" y="50%" dy=".35em" text-anchor="middle">{escape(cell.text)}</text>'
        where = f'x="{column * wide:.5g}%" y="{row * high:.5g}%" width="{wide:.5g}%" height="{high:.5g}%"'
        inside = f'<title>{escape(cell.tip)}</title><rect width="100%" height="100%" {looks}/>'
        return f"<svg {where}>{inside}{text * (len(self.columns) <= 16)}</svg>"


def _apart(count: int) -> int:
    """Return how far apart labels stand, so that at most about 13 fit."""
    return -(-count // 13)


def _overlap(one: Sequence[float], two: Sequence[float]) -> bool:
    """Tell whether two boxes (left, top, width, height) share a point."""
    return all(one[at] < two[at] + two[at + 2] and two[at] < one[at] + one[at + 2] for at in (0, 1))
