"""What a report page is made of: sections, figures, tables and numbers, and the frame that holds them.

Every function returns HTML.  Arguments that are words are escaped here; those that are HTML already are called
`inside` or `parts`.  The frame, page.html, forbids the page to load anything.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from importlib.resources import files
from typing import Any

UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def page(sort: str, title: str, facts: Iterable[str], *parts: str) -> str:
    """Return a whole page: what sort of report it is, its title, a line of facts, and its sections."""
    frame = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    head, rest = frame.split("<!--title-->")
    middle, tail = rest.split("<!--body-->")
    line = escape(" · ".join(fact for fact in facts if fact))
    header = (
        f'<header><p class="eyebrow">Layerwright {escape(sort)}</p><h1>{escape(title)}</h1><p class="soft">{line}</p></header>'
    )
    return "".join((head, escape(title), middle, header, "<main>", *parts, "</main>", tail))


def section(heading: str, *parts: str) -> str:
    """Return a section under a heading."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def pair(*parts: str) -> str:
    """Return parts side by side on a wide screen, below each other on a phone."""
    return f'<div class="pair">{"".join(parts)}</div>'


def figure(heading: str, *parts: str, read: str = "") -> str:
    """Return a figure; `read` tells in a sentence how to read it."""
    caption = f"<figcaption>{escape(read)}</figcaption>" if read else ""
    return f"<figure><h3>{escape(heading)}</h3>{''.join(parts)}{caption}</figure>"


def missing(text: str) -> str:
    """Return a note that says what is not there."""
    return f'<p class="missing">{escape(text)}</p>'


def copyable(text: str) -> str:
    """Return a box of text with a button that copies it."""
    return f'<div class="copy"><pre>{escape(text)}</pre><button type="button">Copy</button></div>'


def toggle(name: str, panes: Mapping[str, str]) -> str:
    """Return panes of which one is seen at a time, at most two, chosen by their names."""
    heads, bodies = [], []
    for place, (label, inside) in zip(("first", "second"), panes.items(), strict=False):
        checked = " checked" if place == "first" else ""
        chosen = f'<input class="{place}" type="radio" name="{name}" id="{name}-{place}"{checked}>'
        heads.append(f'{chosen}<label for="{name}-{place}">{escape(label)}</label>')
        bodies.append(f'<div class="pane {place}">{inside}</div>')
    return f'<div class="toggle">{"".join(heads + bodies)}</div>'


def tiles(entries: Iterable[tuple[str, str, str]]) -> str:
    """Return key numbers: for each, what it is, the number, and a note."""
    cells = (
        f"<div><dt>{escape(what)}</dt><dd>{escape(value)}</dd><dd>{escape(note)}</dd></div>" for what, value, note in entries
    )
    return f'<dl class="tiles">{"".join(cells)}</dl>'


def legend(entries: Iterable[tuple[str, str]]) -> str:
    """Return a legend: for each entry a class of marks or a colour (#0072b2), and what it stands for."""
    keys = []
    for mark, text in entries:
        look = f'style="background:{escape(mark)}"' if mark.startswith("#") else f'class="{escape(mark)}"'
        keys.append(f'<span class="key"><i {look}></i>{escape(text)}</span>')
    return f'<p class="legend">{"".join(keys)}</p>'


def details(heading: str, table: Mapping[str, Any]) -> str:
    """Return a nested table, folded away: a row a value, named like group.name."""
    if not table:
        return missing(f"{heading}: none recorded.")
    rows = "".join(f"<tr><td>{escape(name)}</td><td><code>{escape(value)}</code></td></tr>" for name, value in _flat(table))
    return f'<details><summary>{escape(heading)}</summary><div class="scroll"><table>{rows}</table></div></details>'


def compact(value: float, digits: int = 3) -> str:
    """Write a number with at most this many significant digits and a unit, 12.3M; a dash for what is not finite."""
    if not math.isfinite(value):
        return "–"
    unit, suffix = next((pair for pair in UNITS if abs(value) >= pair[0] * (1 - 0.5 * 10**-digits)), (1, ""))
    text = f"{value / unit:#.{digits}g}".rstrip(".") if suffix else f"{value:.{digits}g}"
    return text.replace("-", "−") + suffix


def score(value: float, *, signed: bool = False) -> str:
    """Write a score with four decimals, a dash for what is not finite."""
    return f"{value:{'+' if signed else ''}.4f}".replace("-", "−") if math.isfinite(value) else "–"


def duration(seconds: float) -> str:
    """Write a time as people say it: 1 h 05 min, 3 min 20 s, 12 s."""
    if not math.isfinite(seconds):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    )


def _flat(table: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
