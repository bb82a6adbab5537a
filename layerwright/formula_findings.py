"""Draw what a search found of operations: their priority over the trials, the best formulas, and how alike tokens become."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from . import presets
from .drawings import Axis, Cell, Chart, Heat, read_architecture
from .findings import Findings, Standing
from .formula_page import EXPLAINED, figures, formulas_of, holds_formulas, places_of
from .formula_space import FormulaSpace
from .formulas import Formula
from .operations import OPERATIONS
from .page import compact, figure, legend, missing, pair, score, section, toggle
from .priorities import OperationPriority, Priority, chances, operations_at, priorities
from .space import Space, domains
from .strategies import Trial

_BEST, _MOST_POINTS = 3, 60
# Okabe and Ito's, then Paul Tol's muted ones, each legible on white and on black.
_COLOURS = (
    *("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"),
    *("#aa4499", "#999933", "#8c8c8c", "#44aa99", "#7b68c8", "#b8860b"),
)
ROLES = {"interleaved": "interleaved: plain attention", "winner": "the winner", "other": "others of the best"}


def formula_sections(found: Findings) -> str:
    """Return the sections on operations and formulas; nothing where the space has none."""
    try:
        space = presets.space(found.space) if found.space else None
    except ValueError:
        return ""  # kinds that are not registered here: the page says so where it would draw them
    if space is None or not holds_formulas(space):
        return ""
    searched = section("Operations", _operations(found, space)) if _slots(space) else ""
    return searched + section("What the best compute", _formulas(found), _uniformity(found))


def _operations(found: Findings, space: Space) -> str:
    """Return the priority of each operation over the trials, and after the last."""
    told = found.settings.get("strategy") or {}
    try:
        strategy = OperationPriority.model_validate(told.get("operation_priority") or {})
        history = _history(found)
        for trial in history:
            operations_at(space, trial.arch)
    except ValueError as error:
        return missing(f"Operations cannot be told: {error}")
    if not history:
        return missing("No candidate has been tried.")
    followed = told.get("name") == "operation-priority" and strategy.priority
    # The bounds of the first few jump, and nothing follows them.
    start = max(1, min(strategy.population, len(history) // 4))
    every = max(1, math.ceil((len(history) - start) / _MOST_POINTS))
    counts = sorted({*range(start, len(history) + 1, every), len(history)})
    known = {count: priorities(space, history[:count], strategy.alpha, unit=strategy.unit) for count in counts}
    drawn = {count: chances(known[count], strategy.temperature) for count in counts}
    parts = pair(_over_trials(known, drawn, followed=followed), _last(known[len(history)], drawn[len(history)]))
    return parts + (_by_slot(space, history, strategy) if strategy.positions and followed else "")


def _over_trials(known: Mapping[int, Mapping[str, Priority]], drawn: Mapping[int, Mapping[str, float]], *, followed: bool) -> str:
    """Return the picture of bounds and chances after so many trials; followed: whether the strategy looked at them."""
    names = list(next(iter(known.values())))
    panes = {}
    for pane, label, values in (
        ("Bound", "upper bound", {name: [(float(n), one[name].bound) for n, one in known.items()] for name in names}),
        ("Chance", "chance to be drawn, %", {name: [(float(n), 100 * one[name]) for n, one in drawn.items()] for name in names}),
    ):
        chart = Chart(
            Axis.over("evaluations", list(known)), Axis.over(label, [value for line in values.values() for _, value in line])
        )
        marks = [chart.curve(line, name, "operation", colour=_colour(name)) for name, line in values.items()]
        panes[pane] = chart.draw(marks, f"{label} of each operation over the candidates tried")
    said = (
        "The bound is the mean share of others that those candidates beat whose formulas contain the operation, and more the "
        "seldomer it was tried. By their softmax new operations are drawn."
        if followed
        else "The strategy does not look at this: it is what operation priority would have known of these candidates."
    )
    keys = legend((_colour(name), name) for name in names)
    return figure("Priority of each operation", toggle("priority", panes), keys, read=said)


def _history(found: Findings) -> list[Trial]:
    """Return the trials of the strategy in the order they were tried, those without a score included."""
    failed = [row for row in found.failures if row.get("stage") == "search"]
    rows = [(one.number, one.arch, one.score if math.isfinite(one.score) else -math.inf) for one in found.search]
    rows += [(int(row.get("number", 0)), str(row.get("arch") or ""), -math.inf) for row in failed]
    return [Trial(place, presets.architecture(arch), score) for place, (_, arch, score) in enumerate(sorted(rows))]


def _slots(space: Space) -> list[int]:
    """List the slots where a formula is left open."""
    return [
        place
        for place, slot in enumerate(space.slots)
        if any(isinstance(domain, FormulaSpace) for run in slot for layer in run for _, domain in domains(layer))
    ]


def _colour(name: str) -> str:
    return _COLOURS[list(OPERATIONS).index(name) % len(_COLOURS)]


def _last(known: Mapping[str, Priority], drawn: Mapping[str, float]) -> str:
    """Return what is known of each operation after the last trial, the highest bound first."""
    rows = [
        (
            f'<span class="key"><i style="background:{_colour(name)}"></i>{escape(name)}</span>',
            *(f"{one.formulas:,}", f"{one.mean:.3f}", f"{one.bound:.3f}", f"{100 * drawn[name]:.1f} %"),
        )
        for name, one in sorted(known.items(), key=lambda pair: -pair[1].bound)
    ]
    return figure(
        "After the last candidate",
        _table(("operation", "formulas", "mean worth", "bound", "chance"), rows),
        read="Worth is the share of others that a candidate beats: 0.5 is the average. What is in no formula has the best mean.",
    )


def _by_slot(space: Space, history: Sequence[Trial], strategy: OperationPriority) -> str:
    """Return the bounds at each slot, by which operations of that slot alone are drawn."""
    slots = _slots(space)
    known = [priorities(space, history, strategy.alpha, slot=slot, unit=strategy.unit) for slot in slots]
    cells = {}
    for column, (slot, found) in enumerate(zip(slots, known, strict=True)):
        for row, (name, one) in enumerate(found.items()):
            tip = f"{name}, slot {slot}: bound {one.bound:.3f}, mean {one.mean:.3f}, in {one.formulas:,} formulas"
            cells[row, column] = Cell(one.bound, f"{one.bound:.2f}", tip)
    values = [cell.value for cell in cells.values()]
    heat = Heat("operation", "slot", list(known[0]), [str(slot) for slot in slots], min(values), max(values))
    drawn = heat.draw(cells, "upper bound of each operation at each slot", "wordy")
    scale = heat.scale(compact(min(values)), compact(max(values)))
    return figure("Bound at each slot", drawn, scale, read="The strategy looks at each slot alone.")


def _formulas(found: Findings) -> str:
    """Return the formulas of the best architectures, each formula once."""
    best = [one for one in found.standings if one.role == "winner" or one.name.startswith("top-")]
    named = [(one.name, one.arch) for one in best]
    if not named:
        scored = sorted((one for one in found.search if math.isfinite(one.score)), key=lambda one: -one.score)
        named = [(f"rank {rank}", arch) for rank, arch in enumerate(dict.fromkeys(one.arch for one in scored), 1)]
    where: dict[Formula, list[str]] = {}
    for name, text in named[:_BEST]:
        arch = read_architecture(text)
        for formula, places in (formulas_of(arch) if arch else {}).items():
            where.setdefault(formula, []).append(f"{name}, {places_of(places)}")
    if not where:
        return missing("The best architectures hold no formula.")
    shown = figures({formula: "; ".join(at) for formula, at in where.items()})
    said = f"The formulas of {', '.join(name for name, _ in named[:_BEST])}, best first. {EXPLAINED}"
    return f'<p class="read">{escape(said)}</p>{shown}'


def _uniformity(found: Findings) -> str:
    """Return how alike the tokens of a row become in networks trained from scratch."""
    heading = "Token uniformity"
    known = [one for one in found.standings if one.uniformity and _role(one)]
    if not known:
        return figure(heading, missing("No network trained from scratch has been looked into yet."))
    known.sort(key=lambda one: list(ROLES).index(_role(one)), reverse=True)
    values = [value for one in known for value in one.uniformity]
    depth = max(len(one.uniformity) for one in known) - 1
    # On the right there is room for names.
    chart = Chart(Axis("layers run", 0, 1.2 * depth, True), Axis.over("mean cosine of two tokens", [0.0, *values]))
    marks, names = [], []
    for one in known:
        points = [*enumerate(one.uniformity)]
        css = _role(one)
        marks += [chart.curve(points, one.name, css), *(chart.dot(point, f"{one.name}: {point[1]:.3f}", css) for point in points)]
        names.append((points[-1], one.name, "minor" if css == "other" else css))
    drawn = chart.draw([*marks, chart.names(reversed(names))], "token uniformity after each layer, a line a network")
    present = [(f"{role} line", said) for role, said in ROLES.items() if any(_role(one) == role for one in known)]
    baseline = any(_role(one) == "interleaved" for one in known)
    picture = figure(
        heading,
        drawn,
        legend(present),
        "" if baseline else missing("There is no interleaved baseline to compare with."),
        read="Of two tokens of a held-out row, the mean over rows and seeds: at 1 all tokens look the same. The lower a line "
        "ends, the better a network keeps tokens apart.",
    )
    rows = [
        (escape(one.name), score(one.score), *(f"{value:.3f}" for value in (one.uniformity[0], one.uniformity[-1])))
        for one in sorted(known, key=lambda one: one.uniformity[-1])
    ]
    return pair(picture, figure("Tokens apart first", _table(("name", "score", "embedded", "after the last layer"), rows)))


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of cells that are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _role(one: Standing) -> str:
    """Return what a line is drawn as; nothing where it is left out."""
    if one.name == "interleaved" or one.role == "winner":
        return "interleaved" if one.name == "interleaved" else "winner"
    return "other" if one.name.startswith("top-") else ""
