"""Edit a backbone: say which of its layers stay, in what order, and which are new.

Every edit is one idea, `pick`.  Because it notes where each layer came from, an edit says where every weight comes from, two
edits compose into one, and nothing is written before it can be looked at.

    >>> import layerwright.layers
    >>> bert = Architecture.parse("256: 4x(attn ffn)")
    >>> edit = duplicate(bert, "2:4").then(remove(duplicate(bert, "2:4").result, -1))
    >>> edit.sources
    (0, 1, 2, 3, 2, 3, 4, 5, 6)
    >>> str(edit.result)
    '256: 4x(attn ffn) attn'
"""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeVar, get_args

from .architecture import LAYERS, Architecture, Layer
from .errors import nearest

Unit = Literal["layer", "block"]
UNITS: tuple[str, ...] = get_args(Unit)
Span = int | slice | str
T = TypeVar("T")

_LAYER = re.compile(r"(?:backbone\.)?layers\.(?P<place>\d+)\.(?P<rest>.+)")


class Graft(NamedTuple):
    """A layer of another model.

    model: what that one is called, such as its folder.  place: the index of the layer in it.
    """

    model: str
    place: int
    layer: Layer


Source = int | Graft | None


@dataclass(frozen=True)
class Edit:
    """An architecture made of another, and where each of its layers came from.

    sources: the index of the layer in the one that was edited, the layer of another model, or None for a new one.
    """

    result: Architecture
    sources: tuple[Source, ...]

    def then(self, later: "Edit") -> "Edit":
        """Return both edits as one; composing is associative.

        Raises:
            ValueError: the later one is no edit of this one's result.
        """
        own = self.result
        for layer, source in zip(later.result.layers, later.sources, strict=True):
            if isinstance(source, int) and (source >= len(own) or own.layers[source] != layer):
                raise ValueError(f"the later edit takes {layer} as layer {source}, which is another one in '{own}'")
        return Edit(later.result, tuple(self.sources[one] if isinstance(one, int) else one for one in later.sources))


def pick(arch: Architecture, *wanted: int | Layer | Graft) -> Edit:
    """Make a backbone of layers of this one (their indices, which may be negative), new ones, and those of other models.

    Raises:
        ValueError: an index that is not there, a layer that does not fit the width, or no layer at all.
    """
    count = len(arch)
    sources: list[Source] = []
    layers: list[Layer] = []
    for one in wanted:
        if isinstance(one, int):
            place = _place(one, count, "layer")
            sources.append(place)
            layers.append(arch.layers[place])
        else:
            sources.append(one if isinstance(one, Graft) else None)
            layers.append(one.layer if isinstance(one, Graft) else one)
    return Edit(arch.with_layers(layers), tuple(sources))


def keep(arch: Architecture, span: Span, unit: Unit = "layer") -> Edit:
    """Keep these and no others, in the order named; what is named twice comes twice.

    span: here and below, an index, a slice, or a text of such, with commas between: "0:4,-1".  unit: what it counts, `layer` or
    `block`; a block ends with each feed-forward layer.

    Raises:
        ValueError: here and below, a span that is none, leads outside, or is empty; an unknown unit.
    """
    whole = blocks(arch, unit)
    return _pick_units(arch, [whole[place] for place in places(span, len(whole), unit)])


def remove(arch: Architecture, span: Span, unit: Unit = "layer") -> Edit:
    """Leave these out.

    Raises:
        ValueError: as for `keep`, or none would be left.
    """
    whole = blocks(arch, unit)
    gone = set(places(span, len(whole), unit))
    if len(gone) == len(whole):
        raise ValueError(f"removing {_spell(span)} leaves no {unit} of {len(whole)}")
    return _pick_units(arch, [run for place, run in enumerate(whole) if place not in gone])


def duplicate(arch: Architecture, span: Span, times: int = 1, unit: Unit = "layer") -> Edit:
    """Put copies of a run behind its last one: a b c -> a b, a b, c.  times: how many copies.

    Raises:
        ValueError: as for `keep`, or there would be more than `LAYERS`.
    """
    whole = blocks(arch, unit)
    chosen = places(span, len(whole), unit)
    behind, copies = max(chosen) + 1, _count(times, whole, chosen)
    return _pick_units(arch, [*whole[:behind], *[whole[place] for place in chosen] * copies, *whole[behind:]])


def repeat(arch: Architecture, span: Span, times: int = 1, unit: Unit = "layer") -> Edit:
    """Put copies of each behind itself: a b c -> a a, b b, c.  times: how many copies.

    Raises:
        ValueError: as for `keep`, or there would be more than `LAYERS`.
    """
    whole = blocks(arch, unit)
    chosen = set(places(span, len(whole), unit))
    copies = _count(times, whole, chosen)
    return _pick_units(arch, [run for place, run in enumerate(whole) for _ in range(1 + copies * (place in chosen))])


def reorder(arch: Architecture, span: Span, unit: Unit = "layer") -> Edit:
    """Bring all into this order.

    Raises:
        ValueError: as for `keep`, or one is missing or comes twice.
    """
    whole = blocks(arch, unit)
    chosen = places(span, len(whole), unit)
    for place in range(len(whole)):
        if (found := chosen.count(place)) != 1:
            raise ValueError(f"the order {_spell(span)} has {unit} {place} {found} times; `keep` leaves out and repeats")
    return _pick_units(arch, [whole[place] for place in chosen])


def insert(arch: Architecture, at: int, *layers: Layer, unit: Unit = "layer") -> Edit:
    """Put new layers before what stands at a place, or at the end, as `list.insert` does."""
    return _insert(arch, at, layers, unit)


def replace(arch: Architecture, span: Span, *layers: Layer, unit: Unit = "layer") -> Edit:
    """Put new layers in place of the first of these, and leave the others of these out."""
    whole = blocks(arch, unit)
    gone = places(span, len(whole), unit)
    first = min(gone)
    before, behind = ([place for run in part for place in run] for part in (whole[:first], _without(whole, gone, first)))
    return pick(arch, *before, *layers, *behind)


def splice(
    arch: Architecture, other: Architecture, span: Span, *, model: str, at: int | None = None, unit: Unit = "layer"
) -> Edit:
    """Put layers of another model, by the name `model`, before what stands at a place, or else at the end.

    Raises:
        ValueError: as for `keep`, or the other one has another width, vocabulary, or place or epsilon of the norms.
    """
    for name in ("width", "vocab", "norm", "eps"):
        if (mine := getattr(arch, name)) != (theirs := getattr(other, name)):
            raise ValueError(f"{model} has {name}={theirs}, and the model that is edited {name}={mine}: they cannot be spliced")
    whole = blocks(other, unit)
    runs = [whole[place] for place in places(span, len(whole), unit)]
    grafts = [Graft(model, place, other.layers[place]) for run in runs for place in run]
    return _insert(arch, len(blocks(arch, unit)) if at is None else at, grafts, unit)


def grow(arch: Architecture, depth: int, unit: Unit = "layer") -> Edit:
    """Reach a depth by copies spread evenly, each behind what it is a copy of.

    Raises:
        ValueError: an unknown unit, there are more already, or more than `LAYERS` are wanted.
    """
    whole = blocks(arch, unit)
    if depth < len(whole):
        raise ValueError(f"there are {len(whole)} {unit}s already, and {depth} are fewer: `keep` or `remove` some")
    if depth > LAYERS:
        raise ValueError(f"{depth:,} {unit}s: a model has at most {LAYERS:,} layers")
    return _pick_units(arch, [whole[place * len(whole) // depth] for place in range(depth)])


def blocks(arch: Architecture, unit: Unit = "block") -> list[tuple[int, ...]]:
    """Return the indices of the layers of each block, or of each layer alone.

    >>> blocks(Architecture.parse("256: conv attn ffn ffn attn"))
    [(0, 1, 2), (3,), (4,)]
    """
    if unit not in UNITS:
        raise ValueError(f"no unit '{unit}'{nearest(unit, UNITS)}")
    runs: list[list[int]] = [[]]
    for place, layer in enumerate(arch.layers):
        runs[-1].append(place)
        if unit == "layer" or layer.kind == "ffn":
            runs.append([])
    return [tuple(run) for run in runs if run]


def places(span: Span, count: int, unit: str = "layer") -> list[int]:
    """Return the indices that a span names among `count`, in its order.

    >>> places("0:3,-1", 12), places(slice(None, None, 5), 12)
    ([0, 1, 2, 11], [0, 5, 10])

    Raises:
        ValueError: it is none, leads outside, or is empty.
    """
    if isinstance(span, str):
        return [place for part in _read(span) for place in places(part, count, unit)]
    if isinstance(span, int):
        return [_place(span, count, unit)]
    for end in (span.start, span.stop):
        if end is not None and not -count <= end <= count:
            raise ValueError(f"the range {_spell(span)} leads outside: there are {count} {unit}s, 0 to {count - 1}")
    if not (found := list(range(count)[span])):
        raise ValueError(f"the range {_spell(span)} of {count} {unit}s is empty")
    return found


def carry(edit: Edit, weights: Mapping[str, T], grafts: Mapping[str, Mapping[str, T]] | None = None) -> dict[str, T]:
    """Return the weights of an edit's result that come from elsewhere: names change, tensors do not.

    Copies are the same tensor by two names, and new layers have none.  To carry along two edits is to carry along both as one.

    weights: by the names of a backbone, or of a model with a head.  grafts: of each model that layers were taken from, by name.

    Raises:
        ValueError: the weights of a model that layers were taken from are not given.
    """
    prefix = "backbone." if any(name.startswith("backbone.") for name in weights) else ""
    own, theirs = _by_layer(weights), {model: _by_layer(named) for model, named in (grafts or {}).items()}
    carried = {name: weight for name, weight in weights.items() if not _LAYER.fullmatch(name)}
    for to, source in enumerate(edit.sources):
        if isinstance(source, Graft):
            if source.model not in theirs:
                raise ValueError(f"layer {to} comes from {source.model}, whose weights are not given")
            found = theirs[source.model].get(source.place, {})
        else:
            found = {} if source is None else own.get(source, {})
        carried |= {f"{prefix}layers.{to}.{rest}": weight for rest, weight in found.items()}
    return carried


def ties(
    edit: Edit,
    before: Sequence[Sequence[int]] = (),
    grafted: Mapping[str, Sequence[Sequence[int]]] | None = None,
    *,
    tie: bool = False,
) -> tuple[tuple[int, ...], ...]:
    """Return which layers of an edit's result share their weights, as groups of indices.

    before: the groups of what was edited; grafted: those of models that layers were taken from.  tie: copies share, too;
    else each stands alone but the first of its source.
    """
    groups: dict[tuple[str, int], list[int]] = {}
    seen: set[tuple[str, int]] = set()
    for to, source in enumerate(edit.sources):
        if source is None:
            continue
        model, place = (source.model, source.place) if isinstance(source, Graft) else ("", source)
        shared = before if not model else (grafted or {}).get(model, ())
        if tie or (model, place) not in seen:
            first = next((group[0] for group in shared if place in group), place)
            groups.setdefault((model, first), []).append(to)
        seen.add((model, place))
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _by_layer(weights: Mapping[str, T]) -> dict[int, dict[str, T]]:
    found: dict[int, dict[str, T]] = {}
    for name, weight in weights.items():
        if match := _LAYER.fullmatch(name):
            found.setdefault(int(match["place"]), {})[match["rest"]] = weight
    return found


def _pick_units(arch: Architecture, runs: Sequence[Sequence[int]]) -> Edit:
    return pick(arch, *(place for run in runs for place in run))


def _insert(arch: Architecture, at: int, what: Sequence[Layer | Graft], unit: Unit) -> Edit:
    whole = blocks(arch, unit)
    if not -len(whole) <= at <= len(whole):
        raise ValueError(f"nothing can stand before {unit} {at}: there are {len(whole)}")
    if not what:
        raise ValueError("there is no layer to insert")
    before, behind = ([place for run in part for place in run] for part in (whole[:at], whole[at:]))
    return pick(arch, *before, *what, *behind)


def _without(whole: Sequence[T], gone: Sequence[int], first: int) -> list[T]:
    return [run for place, run in enumerate(whole) if place > first and place not in gone]


def _count(times: int, whole: Sequence[Sequence[int]], chosen: Collection[int]) -> int:
    """Return how many copies are wanted, if a model can have so many layers."""
    if times < 1:
        raise ValueError(f"{times} copies: at least 1 is needed")
    layers = sum(map(len, whole)) + times * sum(len(whole[place]) for place in chosen)
    if layers > LAYERS:
        raise ValueError(f"{times:,} copies make {layers:,} layers: a model has at most {LAYERS:,}")
    return times


def _place(index: int, count: int, unit: str) -> int:
    if not -count <= index < count:
        raise ValueError(f"there is no {unit} {index}: there are {count}, 0 to {count - 1}")
    return index % count


def _read(text: str) -> Iterator[int | slice]:
    """Read spans with commas between."""
    for part in text.split(","):
        found = re.fullmatch(r"\s*(-?\d{1,9})?\s*(:)?\s*(-?\d{1,9})?\s*(?:(:)\s*(-?\d{1,9})?)?\s*", part)
        if not found or not (found[1] or found[2]) or (not found[2] and (found[3] or found[4])):
            raise ValueError(f"{part.strip()!r} is no range: write one as in Python, such as 6:10, -2:, ::2 or -1")
        start, stop, step = (None if number is None else int(number) for number in (found[1], found[3], found[5]))
        if step == 0:
            raise ValueError(f"the range {part.strip()} has a step of 0")
        if found[2]:
            yield slice(start, stop, step)
        elif start is not None:
            yield start


def _spell(span: Span) -> str:
    if not isinstance(span, slice):
        return str(span)
    ends = ["" if end is None else str(end) for end in (span.start, span.stop)]
    return ":".join(ends if span.step is None else [*ends, str(span.step)])
