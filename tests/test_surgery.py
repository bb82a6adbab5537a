"""Laws of edits as values, whatever the architecture and whatever is done to it; and what a wrong range is told."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwright import Architecture, Backbone, Context, Layer
from layerwright.surgery import (
    UNITS,
    Edit,
    Graft,
    Unit,
    blocks,
    carry,
    duplicate,
    grow,
    insert,
    keep,
    pick,
    places,
    remove,
    reorder,
    repeat,
    replace,
    splice,
    ties,
)

KINDS = ["attn[heads=1]", "attn[heads=2]", "ffn[inner=8]", "ffn", "conv[kernel=3]", "mixed[heads=2]"]
LAYERS = st.sampled_from(KINDS).map(Layer.parse)
ARCHITECTURES = st.lists(LAYERS, min_size=1, max_size=8).map(lambda layers: Architecture(64, tuple(layers), vocab=9, positions=8))
OTHER = Architecture.parse("64 vocab=9 positions=8: conv attn ffn")


@st.composite
def edits(draw: st.DrawFn, arch: Architecture, most: int = 8) -> Edit:
    wanted = st.one_of(
        st.integers(-len(arch), len(arch) - 1),
        LAYERS,
        st.integers(0, 2).map(lambda place: Graft("other", place, OTHER.layers[place])),
    )
    return pick(arch, *draw(st.lists(wanted, min_size=1, max_size=most)))


@st.composite
def chains(draw: st.DrawFn, length: int = 3) -> tuple[Architecture, list[Edit]]:
    arch = draw(ARCHITECTURES)
    found, now = [], arch
    for _ in range(length):
        found.append(draw(edits(now)))
        now = found[-1].result
    return arch, found


@st.composite
def spans(draw: st.DrawFn, count: int) -> slice:
    ends = st.one_of(st.none(), st.integers(-count, count))
    step = st.sampled_from([None, 1, 2, -1, 3])
    return draw(st.builds(slice, ends, ends, step).filter(lambda span: range(count)[span]))


def weights_of(arch: Architecture, name: str) -> dict[str, str]:
    """A few weights of a model with a head, each a word that says whose it is."""
    parts = [f"layers.{place}.{rest}" for place, layer in enumerate(arch.layers) for rest in (f"body.{layer.kind}", "norm.bias")]
    return {f"backbone.{key}": f"{name} {key}" for key in ("embed.token.weight", *parts)} | {"head.bias": "the head's"}


@settings(max_examples=40)
@given(chains())
def test_composing_is_associative(chain: tuple[Architecture, list[Edit]]):
    _, (one, two, three) = chain
    assert one.then(two).then(three) == one.then(two.then(three))


@settings(max_examples=40)
@given(chains(1))
def test_an_edit_that_changes_nothing_is_neutral(chain: tuple[Architecture, list[Edit]]):
    arch, (edit,) = chain
    before, after = (pick(one, *range(len(one))) for one in (arch, edit.result))
    assert before.then(edit) == edit == edit.then(after)


@settings(max_examples=40)
@given(chains(2))
def test_carrying_along_both_is_carrying_along_one_after_the_other(chain: tuple[Architecture, list[Edit]]):
    arch, (one, two) = chain
    weights, grafts = weights_of(arch, "own"), {"other": weights_of(OTHER, "other")}
    carried = carry(one.then(two), weights, grafts)
    assert carried == carry(two, carry(one, weights, grafts), grafts)
    wanted = weights_of(two.result, "")
    new = tuple(f"backbone.layers.{place}." for place, source in enumerate(one.then(two).sources) if source is None)
    assert carried.keys() == {name for name in wanted if not name.startswith(new)}


@given(st.data(), ARCHITECTURES, st.sampled_from(UNITS), st.integers(1, 3))
def test_duplicate_then_remove_is_the_identity(data: st.DataObject, arch: Architecture, unit: Unit, times: int):
    arch = arch if unit == "layer" else arch.with_layers([*arch.layers, Layer("ffn")])  # a last block is closed
    count = len(blocks(arch, unit))
    span = data.draw(spans(count))
    longer = duplicate(arch, span, times, unit)
    chosen = list(range(count)[span])
    behind = max(chosen) + 1
    back = remove(longer.result, slice(behind, behind + times * len(chosen)), unit)
    assert longer.then(back) == pick(arch, *range(len(arch)))
    each = repeat(arch, span, times, unit)
    firsts = ",".join(str(place + times * sum(one < place for one in chosen)) for place in range(count))
    assert each.then(keep(each.result, firsts, unit)) == pick(arch, *range(len(arch)))


@given(st.data(), ARCHITECTURES)
def test_insert_then_remove_is_the_identity(data: st.DataObject, arch: Architecture):
    at = data.draw(st.integers(-len(arch), len(arch)))
    new = data.draw(st.lists(LAYERS, min_size=1, max_size=3))
    place = at % len(arch) if at < 0 else at
    for longer in (insert(arch, at, *new), splice(arch, OTHER, slice(0, len(new)), model="other", at=at)):
        assert len(longer.result) == len(arch) + len(new)
        assert longer.then(remove(longer.result, slice(place, place + len(new)))) == pick(arch, *range(len(arch)))


@given(st.data(), ARCHITECTURES)
def test_spans_are_those_of_python(data: st.DataObject, arch: Architecture):
    span, order = data.draw(spans(len(arch))), list(range(len(arch)))
    assert list(keep(arch, span).sources) == order[span]
    with_more = pick(arch, *order, 0).result
    chosen = ",".join(map(str, order[span]))
    assert list(remove(with_more, chosen).sources) == [i for i in [*order, len(arch)] if i not in order[span]]
    ends = ["" if end is None else str(end) for end in (span.start, span.stop, span.step)]
    assert places(":".join(ends), len(arch)) == order[span]
    whole = data.draw(st.permutations(order))
    assert list(reorder(arch, ",".join(map(str, whole))).sources) == whole
    new = data.draw(LAYERS)
    replaced = replace(arch, span, new)
    assert replaced.sources[min(order[span])] is None
    assert [one for one in replaced.sources if one is not None] == [i for i in order if i not in order[span]]


@given(ARCHITECTURES, st.integers(0, 40), st.sampled_from(UNITS))
def test_growing_spreads_copies_evenly(arch: Architecture, more: int, unit: Unit):
    count = len(blocks(arch, unit))
    grown = grow(arch, count + more, unit)
    runs = [run[0] for run in blocks(arch, unit)]
    times = [grown.sources.count(place) for place in runs]
    assert sum(times) == count + more
    assert max(times) - min(times) <= 1
    firsts = [source for source in grown.sources if source in runs]
    assert firsts == sorted(firsts)  # type: ignore[type-var]


def test_blocks_end_with_feed_forward_layers():
    arch = Architecture.parse("64: 2x(attn ffn) conv attn ffn ffn attn")
    assert blocks(arch) == [(0, 1), (2, 3), (4, 5, 6), (7,), (8,)]
    assert remove(arch, -3, "block").sources == (0, 1, 2, 3, 7, 8)
    assert insert(arch, 2, Layer("conv"), unit="block").sources == (0, 1, 2, 3, None, 4, 5, 6, 7, 8)
    assert duplicate(arch, "0:2", 2, "block").sources == (*range(4), *range(4), *range(4), *range(4, 9))


def test_copies_share_where_they_are_told_to_and_what_shared_before_goes_on():
    arch = Architecture.parse("64: 4xattn")
    twice = duplicate(arch, "1:3")
    assert twice.sources == (0, 1, 2, 1, 2, 3)
    assert ties(twice) == ()
    assert ties(twice, tie=True) == ((1, 3), (2, 4))
    assert ties(twice, [[0, 1]]) == ((0, 1),)
    assert ties(twice, [[0, 1]], tie=True) == ((0, 1, 3), (2, 4))
    assert ties(remove(arch, 0), [[0, 1, 3]]) == ((0, 2),)
    foreign = splice(arch, arch, "0:2", model="other")
    assert ties(foreign, [[2, 3]], {"other": [[0, 1]]}) == ((2, 3), (4, 5))
    again = foreign.then(duplicate(foreign.result, -1))
    assert ties(again, tie=True) == ((5, 6),)


def test_copies_are_the_same_tensor_and_load_as_copies():
    arch = Architecture.parse("64 vocab=9 positions=8: attn ffn")
    own, edit = Backbone(arch).eval(), duplicate(arch, "0:2")
    carried = carry(edit, own.state_dict())
    assert carried["layers.2.body.query.weight"].data_ptr() == carried["layers.0.body.query.weight"].data_ptr()
    deeper = Backbone(edit.result).eval()
    deeper.load_state_dict(carried)
    ids = torch.arange(8)[None] % 9
    with torch.no_grad():
        x = own(ids)
        for layer in own.layers:
            x = layer(x, Context())
        assert torch.equal(deeper(ids), x)


ARCH = Architecture.parse("64: 6x(attn ffn)")


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: keep(ARCH, "3:13"), "the range 3:13 leads outside: there are 12 layers, 0 to 11"),
        (lambda: keep(ARCH, "-13:"), "the range -13: leads outside"),
        (lambda: keep(ARCH, "4:4"), "the range 4:4 of 12 layers is empty"),
        (lambda: keep(ARCH, slice(5, 2)), "the range 5:2 of 12 layers is empty"),
        (lambda: remove(ARCH, 12), "there is no layer 12: there are 12, 0 to 11"),
        (lambda: remove(ARCH, "-7", "block"), "there is no block -7: there are 6, 0 to 5"),
        (lambda: remove(ARCH, ":"), "removing : leaves no layer of 12"),
        (lambda: remove(ARCH, "1..3"), r"'1\.\.3' is no range: write one as in Python, such as 6:10"),
        (lambda: remove(ARCH, "1,,3"), "'' is no range"),
        (lambda: remove(ARCH, "1:2:0"), "the range 1:2:0 has a step of 0"),
        (lambda: keep(ARCH, 0, "blocks"), "no unit 'blocks'; did you mean 'block'"),  # type: ignore[arg-type]
        (lambda: duplicate(ARCH, "1:2", 0), "0 copies: at least 1 is needed"),
        (lambda: reorder(ARCH, "0:6"), "the order 0:6 has layer 6 0 times"),
        (lambda: reorder(ARCH, "0:12,0"), "the order 0:12,0 has layer 0 2 times"),
        (lambda: insert(ARCH, 13, Layer("attn")), "nothing can stand before layer 13: there are 12"),
        (lambda: insert(ARCH, 3), "there is no layer to insert"),
        (lambda: insert(ARCH, 3, Layer.parse("atn")), "no layer kind 'atn'; did you mean 'attn'"),
        (lambda: replace(ARCH, "20:", Layer("conv")), "the range 20: leads outside"),
        (lambda: grow(ARCH, 11), "there are 12 layers already, and 11 are fewer"),
        (lambda: splice(ARCH, Architecture.parse("128: attn"), 0, model="x"), "x has width=128, and .* width=64"),
        (lambda: splice(ARCH, Architecture.parse("64 vocab=9: attn"), 0, model="x"), "x has vocab=9, and .* vocab=30522"),
        (lambda: splice(ARCH, Architecture.parse("64 norm=pre: attn"), 0, model="x"), "x has norm=pre"),
        (lambda: splice(ARCH, ARCH, "12:", model="x"), "the range 12: of 12 layers is empty"),
        (lambda: pick(ARCH), "at least one layer"),
        (lambda: pick(ARCH, -13), "there is no layer -13"),
        (lambda: keep(ARCH, "0:2").then(keep(ARCH, "0:3")), "takes .* as layer 2, which is another one"),
        (lambda: carry(splice(ARCH, ARCH, 0, model="x"), {}), "layer 12 comes from x, whose weights are not given"),
    ],
)
def test_a_wrong_edit_is_told_why(act, message):
    with pytest.raises(ValueError, match=message):
        act()
