"""Draw how a model learned: curves of training, and the page of a pre-training run.

A loss falls steeply at first and slowly for long, and the slow part is what one wants to read; so the axes are made
for that part and the first fall is cut off.
"""

import json
import math
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from . import cost
from .drawings import Axis, Chart, Point, kinds, read_architecture, strip_of
from .findings import number
from .page import compact, copyable, details, duration, figure, legend, missing, page, pair, section, tiles

_MOST_POINTS = 200
_HEADINGS = {
    "masked": "Generator loss on masked tokens",
    "replaced": "Discriminator loss on replaced tokens",
    "rate": "Learning rate",
    "norm": "Gradient norm before clipping",
}
_READ = {
    "loss": "Steps jump, so the strong line is their mean; where held-out loss turns up again, the model learns by heart.",
    "rate": "It rises while warming up and then falls to zero.",
    "norm": "Spikes that grow towards the end announce a run that will diverge.",
}


def pretraining_page(run: Path) -> str:
    """Return the page of a pre-training run: what was trained, every number it logged, and its settings."""
    settings, (rows, torn) = _settings(run / "settings.toml"), _metrics(run / "metrics.jsonl")
    text = str(settings.get("arch") or "")
    drawn = strip_of(text) + kinds([text]) + copyable(text) if text else missing("settings.toml names no architecture.")
    across = "tokens" if rows and all("tokens" in row for row in rows) else "step"
    names = dict.fromkeys(name.removeprefix("held_out_") for row in rows for name in row)
    figures = []
    for name in (name for name in names if name not in ("step", "tokens", "seconds", "skipped")):
        series = [[(row[across], row[key]) for row in rows if key in row and across in row] for key in (name, f"held_out_{name}")]
        heading = _HEADINGS.get(name, name.replace("_", " ").capitalize())
        figures.append(learning(heading, across, name, *series, read=_READ.get(name, "")))
    return page(
        "pre-training report",
        run.resolve().name,
        [f"corpus {settings['corpus']}" if "corpus" in settings else ""],
        section("What was trained", drawn, tiles(_key_numbers(text, rows))),
        section(
            "How it learned",
            missing(f"Lines of metrics.jsonl that cannot be read and are left out: {torn:,}.") if torn else "",
            pair(*figures) if figures else missing("metrics.jsonl holds no numbers."),
        ),
        section("Settings", details("Every setting", settings)),
    )


def learning(heading: str, x: str, y: str, training: Sequence[Point], held: Sequence[Point] = (), *, read: str = "") -> str:
    """Return the figure of a curve of training, many points of it pale under their mean, and of held-out values."""
    chart = training_chart(x, y, [training, held], cut="loss" in heading.lower())
    many = _is_rough(training)
    marks = [chart.curve(thinned(training), "" if many else "training", "faint" if many else "search")]
    marks.append(chart.curve(_smoothed(training), "training, mean", "search") if many else "")
    marks.append(chart.curve(thinned(held), "held-out", "held"))
    marks.extend(chart.dot(held[-1], f"held-out, at the end: {compact(held[-1][1], 4)}", "held") for _ in held[-1:])
    lines = [
        (css, said) for css, said, points in (("search line", "training", training), ("held line", "held-out", held)) if points
    ]
    return figure(heading, chart.draw(marks, f"{heading} over {x}"), legend(lines) if held else "", read=read)


def training_chart(x: str, y: str, curves: Sequence[Sequence[Point]], *, cut: bool) -> Chart:
    """Return axes for curves of training.  cut: the heights within the first tenth do not count."""
    places = [point[0] for points in curves for point in points]
    start = min(places) + 0.1 * (max(places) - min(places)) if places else 0.0
    heights = [value for points in curves for place, value in points if not cut or place >= start or len(points) < 10]
    return Chart(Axis.over(x, places), Axis.over(y, heights))


def thinned(points: Sequence[Point]) -> list[Point]:
    """Return at most about 200 points of a curve: its ends, and the least and the greatest of each piece between."""
    size = math.ceil(2 * len(points) / _MOST_POINTS)
    if size < 3:
        return list(points)
    kept = {0, len(points) - 1}
    for start in range(0, len(points), size):
        piece = range(start, min(start + size, len(points)))
        kept |= {min(piece, key=lambda place: points[place][1]), max(piece, key=lambda place: points[place][1])}
    return [points[place] for place in sorted(kept)]


def _is_rough(points: Sequence[Point]) -> bool:
    """Return whether a curve goes up and down so much that its mean over neighbours says more."""
    heights = [value for _, value in points]
    way = sum(abs(later - value) for value, later in pairwise(heights))
    return len(points) > _MOST_POINTS // 2 and way > 4 * (max(heights) - min(heights))


def _smoothed(points: Sequence[Point], pieces: int = 50) -> list[Point]:
    """Return the mean of each of so many pieces of a curve."""
    size = math.ceil(len(points) / pieces)
    cut = [points[at : at + size] for at in range(0, len(points), size)]
    return [(fmean(x for x, _ in piece), fmean(y for _, y in piece)) for piece in cut]


def _key_numbers(text: str, rows: Sequence[dict[str, float]]) -> list[tuple[str, str, str]]:
    last = {name: value for row in rows for name, value in row.items()}
    arch = read_architecture(text)
    numbers = [
        (name.replace("_", "-", 1).replace("_", " "), f"{last[name]:.4f}", "last")
        for name in ("loss", "held_out_loss")
        if name in last
    ]
    numbers += [(f"{name}s".replace("ss", "s"), f"{last[name]:,.0f}", "") for name in ("step", "tokens") if name in last]
    if skipped := sum("skipped" in row for row in rows):
        numbers.append(("steps skipped", f"{skipped:,}", "not finite: they changed nothing"))
    if last.get("seconds"):
        numbers.append(
            ("time", duration(last["seconds"]), f"{compact(last.get('tokens', math.nan) / last['seconds'])} tokens a second")
        )
    if arch:
        length = min(128, arch.positions)
        numbers += [
            ("parameters", compact(cost.parameters(arch)), "embeddings included"),
            ("FLOPs", compact(cost.flops(arch, length)), f"forward, {length} tokens"),
        ]
    return numbers


def _settings(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _metrics(path: Path) -> tuple[list[dict[str, float]], int]:
    """Return the finite numbers of each line, and how many lines are torn."""
    rows, torn = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = {name: number(value) for name, value in json.loads(line).items()}
        except (ValueError, AttributeError):
            torn += 1
        else:
            rows.append({name: value for name, value in row.items() if math.isfinite(value)})
    return rows, torn
