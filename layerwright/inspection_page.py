"""Draw what was found inside a model as one HTML page that needs nothing else.

Removing is orange and duplicating blue, everywhere.
"""

import math
from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from .drawings import Axis, Cell, Chart, Heat, kinds, strip_of
from .inspection import Changed, Inspection, Lens, Sort, Suggestion
from .page import copyable, details, figure, legend, missing, page, pair, section, tiles
from .sweep import SHARE, Effect

LOOKS: dict[Sort, str] = {"remove": "random", "duplicate": "search"}
PAST: dict[Sort, str] = {"remove": "removed", "duplicate": "duplicated"}
SHARES = ("agreement", "accuracy", "recovered")
SHOWN = 10  # suggestions of each sort


class Measure(NamedTuple):
    """A number of an effect: its field, its heading, a short name, what it is, and whether more of it means less change."""

    field: str
    heading: str
    name: str
    read: str
    more: bool = True


MEASURES = (
    Measure(
        "kl",
        "Divergence of predictions",
        "KL, nats",
        "How far the predictions of the output layer move from those of the model as it is.",
        more=False,
    ),
    Measure(
        "agreement",
        "Agreement of predictions",
        "same token",
        "How often the output layer finds the same token the likeliest as before.",
    ),
    Measure("accuracy", "Masked tokens", "masked right", "How often the likeliest token at a masked place is the right one."),
    Measure(
        "recovered",
        "Kept tokens",
        "kept recovered",
        "How often the likeliest token at a kept place is the one that stands there.",
    ),
    Measure("cosine", "Cosine of final states", "cosine", "How alike the final states of a token are before and after."),
    Measure(
        "l2",
        "Change of final states",
        "L2",
        "How far the final state of a token moves, in lengths of the state before.",
        more=False,
    ),
)


def page_of(found: Inspection) -> str:
    """Return the page of an inspection."""
    rows = f"{found.rows:,} lines of {found.text}, {found.tokens:,} tokens"
    masked = f"{found.masked:,} of them masked" if found.masked else "none of them masked"
    heading = f"Removing or duplicating a range of {found.unit}s"
    return page(
        "inspection",
        f"Inside {found.model}",
        [f"head {found.head}", f"{len(found.units)} {found.unit}s", rows, masked],
        section(
            "The model",
            strip_of(found.arch),
            kinds([found.arch]),
            copyable(found.arch),
            tiles(_key_numbers(found)),
            *map(missing, found.left_out),
        ),
        section("Suggested edits", *(_suggestion(found, one) for one in found.suggestions)) if found.suggestions else "",
        section(f"Removing or duplicating one {found.unit}", _singles(found)),
        section(heading, _how_to_read(found), *(_ranges(found, one) for one in measures(found))),
        section("The output layer reads every hidden state", *_lenses(found)) if found.unedited.recovered is not None else "",
        section("Hidden states beside each other", _similarity(found)),
        section("Token uniformity", _uniformity(found)),
        section("How it was measured", _told(found), details("Settings", found.settings.model_dump())),
    )


def measures(found: Inspection) -> list[Measure]:
    """Return what could be measured of this model."""
    return [one for one in MEASURES if getattr(found.unedited, one.field) is not None]


def written(measure: Measure, effect: Effect) -> str:
    """Write a number of an effect: shares as percentages, others with three digits."""
    value = getattr(effect, measure.field)
    if value is None:
        return "–"
    return f"{value:.1%}" if measure.field in SHARES else f"{value:#.3g}"


def _key_numbers(found: Inspection) -> list[tuple[str, str, str]]:
    numbers = [("edited models", f"{len(found.changes):,}", f"each range of {found.unit}s removed and duplicated")]
    if found.unedited.accuracy is not None:
        numbers.append(("masked tokens right", f"{found.unedited.accuracy:.1%}", "by the model as it is"))
    if found.unedited.recovered is not None:
        numbers.append(("kept tokens recovered", f"{found.unedited.recovered:.1%}", "by the model as it is"))
    share = found.evaluations / found.evaluations_whole
    return [*numbers, ("work", f"{share:.0%}", "of running each edited model whole")]


def _suggestion(found: Inspection, one: Suggestion) -> str:
    """Return the table of evidence of a suggestion and its command."""
    shown = measures(found)
    heads = [f"{found.unit}s", *(each.name for each in shown)]
    rows = [[f"{each.start}:{each.stop}", *(written(measure, each) for measure in shown)] for each in one.ranked[:SHOWN]]
    more = f" The first {SHOWN} of {len(one.ranked)} are shown." if len(one.ranked) > SHOWN else ""
    return figure(f"{one.change} {one.size}", _table(heads, rows), copyable(one.command), read=ranked_by(one) + more)


def ranked_by(one: Suggestion) -> str:
    """Say by what a ranking is made, and what it is not."""
    by = "the least divergence (KL) of predictions" if one.by == "kl" else "the greatest cosine of final states"
    return (
        f"Ranked by {by}: by how little the edit changes what the model computes. This says nothing yet of how well the edited "
        "model can be fine-tuned; to know, fine-tune it and compare."
    )


def _singles(found: Inspection) -> str:
    """Return a chart for each of two measures, over the units."""
    shown = measures(found)
    first, second = (shown[0], shown[2]) if len(shown) > 2 else (shown[0], shown[1])
    return pair(*(_single(found, one) for one in (first, second)))


def _single(found: Inspection, measure: Measure) -> str:
    value, count = _value(measure), len(found.units)
    singles = [one for one in found.changes if one.stop - one.start == 1]
    base = value(found.unedited)
    chart = Chart(Axis(found.unit, -0.5, count - 0.5, True), Axis.over(measure.name, [base, *map(value, singles)]))
    marks = [chart.curve([(-0.5, base), (count - 0.5, base)], "the model as it is", "plateau")]
    for sort, css in LOOKS.items():
        some = [one for one in singles if one.change == sort]
        marks.append(chart.curve([(one.start, value(one)) for one in some], PAST[sort], css))
        marks += [chart.dot((one.start, value(one)), _tip(found, one), css) for one in some]
    said = f"{measure.heading} where one {found.unit} is removed or duplicated"
    keys = [*((f"{css} line", PAST[sort]) for sort, css in LOOKS.items()), ("plateau line", "the model as it is")]
    return figure(measure.heading, chart.draw(marks, said), legend(keys), read=_read(found, measure))


def _ranges(found: Inspection, measure: Measure) -> str:
    return figure(measure.heading, pair(*(_map(found, measure, sort) for sort in LOOKS)), read=_read(found, measure))


def _map(found: Inspection, measure: Measure, sort: Sort) -> str:
    """Return the heat map of a measure over start and stop, and its scale."""
    value, count = _value(measure), len(found.units)
    ends = [value(found.unedited), *map(value, found.changes)]
    pale, deep = (max(ends), min(ends)) if measure.more else (min(ends), max(ends))
    names = [str(place) for place in range(count + 1)]
    heat = Heat(f"{PAST[sort]}, from start", "to stop", names[:-1], names[1:], pale, deep)
    cells = {
        (one.start, one.stop - 1): Cell(value(one), _short(measure, value(one)), _tip(found, one))
        for one in found.changes_of(sort)
    }
    said = f"{measure.heading} where a range of {found.unit}s is {PAST[sort]}"
    low, high = (_short(measure, end) for end in (pale, deep))
    return f"<div>{heat.draw(cells, said, sort)}{heat.scale(low, high, sort)}</div>"


def _how_to_read(found: Inspection) -> str:
    said = (
        f"A cell is an edited model: start is the first {found.unit} of the range, stop the one after its last, as in Python. On "
        f"the diagonal stand single {found.unit}s. Deeper is more change, or fewer tokens right; a pair of maps has one scale."
    )
    return f'<p class="read">{escape(said)}</p>'


def _lenses(found: Inspection) -> list[str]:
    said = (
        "The output layer was trained on the last state only. Here it reads each of them: how often the token that it finds the "
        "likeliest is the right one, at kept and at masked places."
    )
    figures = [_lens(found, one) for one in found.lenses]
    rows = [figures[at : at + 2] for at in range(0, len(figures), 2)]
    return [f'<p class="read">{escape(said)}</p>', *(pair(*row) for row in rows)]


def _lens(found: Inspection, lens: Lens) -> str:
    chart = Chart(Axis(f"{found.unit}s run", 0, len(lens.states) - 1, True), Axis("share of tokens right", 0, 1))
    marks = []
    for field, css in (("recovered", "search"), ("accuracy", "random")):
        points = [(place, getattr(state, field)) for place, state in enumerate(lens.states)]
        name = {"recovered": "kept", "accuracy": "masked"}[field]
        marks.append(chart.curve(points, name, css))
        marks += [chart.dot(point, f"after {_after(found, lens, point[0])}\n{name}: {point[1]:.1%}", css) for point in points]
    heading = "The model as it is" if lens.edit is None else f"After {lens.edit}"
    keys = legend([("search line", "kept tokens recovered"), ("random line", "masked tokens right")])
    return figure(heading, chart.draw(marks, f"{heading}: what the output layer reads in each hidden state"), keys)


def _after(found: Inspection, lens: Lens, place: int) -> str:
    return f"{place} {found.unit}s, the last is {found.unit} {lens.units[place - 1]}" if place else "the embeddings"


def _similarity(found: Inspection) -> str:
    alike = "The mean cosine of the states of a token in two places. e: what enters the first layer."
    kernel = (
        "Whether the same tokens lie near each other in two places, however the space is turned: 1 is the same up to rotation "
        "and scale, 0 is unrelated."
    )
    return pair(
        _matrix(found, "Cosine", found.cosine, alike),
        _matrix(found, "Debiased linear CKA", found.cka, kernel),
    )


def _matrix(found: Inspection, heading: str, matrix: Sequence[Sequence[float]], read: str) -> str:
    names = ["e", *(str(place) for place in range(len(found.units)))]
    values = [value for row in matrix for value in row]
    heat = Heat(f"after {found.unit}", f"after {found.unit}", names, names, min(values), max(values))
    cells = {
        (row, column): Cell(value, _decimals(value), f"after {names[row]} and after {names[column]}\n{heading} {value:.4f}")
        for row, line in enumerate(matrix)
        for column, value in enumerate(line)
    }
    drawn = heat.draw(cells, f"{heading} of hidden states")
    return figure(heading, drawn, heat.scale(_decimals(min(values)), _decimals(max(values))), read=read)


def _uniformity(found: Inspection) -> str:
    points = list(enumerate(found.uniformity))
    chart = Chart(
        Axis(f"{found.unit}s run", 0, len(points) - 1, True), Axis.over("mean cosine of two tokens", [0.0, *found.uniformity])
    )
    dots = [chart.dot(point, f"{point[0]} {found.unit}s run\n{point[1]:.4f}", "search") for point in points]
    drawn = chart.draw([chart.curve(points, "mean cosine", "search"), *dots], "Token uniformity of each hidden state")
    read = "How alike the states of any two tokens of a row are, padding left out. At 1 all tokens of a row would be one."
    return figure("Mean cosine of two tokens of a row", drawn, read=read)


def _told(found: Inspection) -> str:
    asked = f"In each row {SHARE:.0%} of the tokens are masked; the output layer is asked there and at as many kept ones. "
    hidden = "the kept tokens that are asked for" if found.masked else f"{SHARE:.0%} of the tokens of each row"
    compared = (
        f"Final states are compared at all real tokens, special ones included, hidden states at {hidden}. Where norms come first,"
        " a hidden state is read after the last norm, as the output layer reads. "
    )
    shared = (
        "Models that begin alike share the states up to where they part: "
        f"{found.evaluations:,} evaluations of a layer on a batch in place of {found.evaluations_whole:,}, with the same numbers "
        "to the last bit."
    )
    return f'<p class="read">{escape((asked if found.masked else "") + compared + shared)}</p>'


def _read(found: Inspection, measure: Measure) -> str:
    """Say what a measure is, and how sure a share of so many tokens is."""
    tokens = {"accuracy": found.masked, "recovered": found.kept}.get(measure.field)
    if not tokens:
        return measure.read
    share = _value(measure)(found.unedited)
    error = 100 * math.sqrt(share * (1 - share) / tokens)
    return f"{measure.read} For the model as it is the standard error is {error:.1f} points, of {tokens:,} tokens."


def _value(measure: Measure) -> Callable[[Effect], float]:
    return lambda effect: float(getattr(effect, measure.field))


def _short(measure: Measure, value: float) -> str:
    """Write a number for a cell of a map."""
    if measure.field in SHARES:
        return f"{value:.0%}" if value >= 0.0995 else f"{value:.1%}"
    return _decimals(value) if value < 9.995 else f"{value:.0f}"


def _decimals(value: float) -> str:
    return f"{value:.2f}".replace("-", "−") if math.isfinite(value) else "–"


def _tip(found: Inspection, one: Changed) -> str:
    span = f"{found.unit} {one.start}" if one.stop - one.start == 1 else f"{found.unit}s {one.start} to {one.stop - 1}"
    return "\n".join(
        [f"{one.change} {one.start}:{one.stop}, {span}", *(f"{each.name}: {written(each, one)}" for each in measures(found))]
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
