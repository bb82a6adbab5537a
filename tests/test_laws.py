"""What holds for every architecture, layer and space, whatever their text; and what a wrong text is told."""

import contextlib
import copy
import pickle
import random
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise, product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from layerwright import PRESETS, Architecture, Layer, Space, TextError, architecture, layer, parameters
from layerwright.grammar import fold, spell
from layerwright.presets import interleaved, sandwich, space
from layerwright.registry import KINDS, OptionError

PUBLISHED = "C C S F F S C F F S C C S F C F S C F C S S F S"  # LV-BERT, pretrain.sh: 0 is C, 1 is S, 2 is F


@pytest.fixture(autouse=True, scope="module")
def _words() -> Iterator[None]:
    """A kind with options of the sorts that the others lack: quoted text and numbers with a point."""

    @layer("note", text="", rate=0.5)
    class Note(nn.Module):
        def __init__(self, width: int, text: str, rate: float):
            super().__init__()

    yield
    del KINDS["note"]


def divisors(width: int) -> list[int]:
    return [heads for heads in range(1, width + 1) if width % heads == 0]


def layers(width: int) -> st.SearchStrategy[Layer]:
    heads = st.sampled_from(divisors(width))
    quoted = st.one_of(
        st.text(st.characters(exclude_characters="'\n", exclude_categories=["Cs"]), max_size=12),
        st.sampled_from(["f(a,g(b))", "f()", "f(a)b(c)", "f((a)", "*", "*12", "f (a)", "f(a=b)"]),
    )
    kinds = {
        "attn": {"heads": heads},
        "ffn": {"inner": st.integers(1, 10**6), "act": st.sampled_from(["gelu", "relu", "silu"])},
        "conv": {"kernel": st.integers(0, 40).map(lambda half: 2 * half + 1), "heads": heads},
        "note": {"text": quoted, "rate": st.floats(-1e8, 1e8)},
    }
    return st.one_of(
        st.fixed_dictionaries({}, optional=options).map(lambda given, kind=kind: Layer(kind, tuple(given.items())))
        for kind, options in kinds.items()
    )


WIDTHS = st.sampled_from([1, 8, 48, 64, 96, 128, 256, 768])
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "embed": st.sampled_from([0, 16, 64, 128]),
        "vocab": st.integers(1, 10**6),
        "positions": st.integers(1, 4096),
        "segments": st.integers(1, 4),
        "norm": st.sampled_from(["pre", "post"]),
        "eps": st.floats(0, 1, exclude_min=True, exclude_max=True),
    },
)
ARCHITECTURES = WIDTHS.flatmap(
    lambda width: st.builds(
        lambda chosen, settings: Architecture(width, tuple(chosen), **settings),
        st.lists(layers(width), min_size=1, max_size=30),
        SETTINGS,
    )
)


@st.composite
def spaces(draw: st.DrawFn, most: int = 6) -> Space:
    """Spaces whose slots offer up to four runs of up to three layers, drawn from few, so that paths may coincide."""
    width = draw(st.sampled_from([8, 64, 128]))
    known = draw(st.lists(layers(width), min_size=1, max_size=4))
    runs = st.lists(st.sampled_from(known), max_size=3).map(lambda run: " ".join(map(str, run)))
    slots = draw(st.lists(st.lists(runs, min_size=1, max_size=4), min_size=1, max_size=most))
    assume(any(all(slot) for slot in slots))
    header = Architecture(width, (known[0],), **draw(SETTINGS)).header()
    return Space.parse(f"{header}: " + " ".join("{" + "|".join(slot) + "}" for slot in slots))


@given(ARCHITECTURES)
def test_an_architecture_survives_its_texts(arch: Architecture):
    for text in (str(arch), arch.explicit()):
        again = Architecture.parse(text)
        assert again == arch
        assert hash(again) == hash(arch)
        assert str(again) == str(arch)
        assert again.explicit() == arch.explicit()
    assert "\n" not in arch.explicit()


@given(ARCHITECTURES)
def test_an_architecture_survives_pickle_and_copy(arch: Architecture):
    for again in (pickle.loads(pickle.dumps(arch)), copy.copy(arch), copy.deepcopy(arch)):
        assert again == arch
        assert hash(again) == hash(arch)


@given(WIDTHS.flatmap(layers))
def test_a_layer_survives_its_text_and_pickle(one: Layer):
    assert Layer.parse(str(one)) == one
    assert eval(repr(one)) == one
    assert pickle.loads(pickle.dumps(one)) == one


@given(WIDTHS.flatmap(lambda width: st.tuples(st.just(width), layers(width))))
def test_completing_a_layer_twice_is_completing_it_once(case: tuple[int, Layer]):
    width, one = case
    whole = one.at(width)
    assert whole.at(width) == whole
    assert Layer.parse(whole.short(width)).at(width) == whole


@given(ARCHITECTURES, ARCHITECTURES)
def test_architectures_are_equal_exactly_if_their_explicit_texts_are(one: Architecture, two: Architecture):
    assert (one == two) == (one.explicit() == two.explicit())
    assert (one == two) == (str(one) == str(two))


def test_a_default_written_out_is_the_same_architecture():
    short = Architecture.parse("768: attn conv ffn")
    full = Architecture.parse(
        "768 eps=1e-12 norm=post embed=768 vocab=30522 positions=512 segments=2:"
        " attn[heads=12] conv[kernel=9,heads=12] ffn[act='gelu',inner=3072]"
    )
    assert short == full
    assert {short: 1}[full] == 1
    assert short.explicit() == (
        "768 embed=768 vocab=30522 positions=512 segments=2 norm=post eps=1e-12 offset=0:"
        " attn[heads=12] conv[heads=12,kernel=9] ffn[inner=3072,act=gelu,groups=1]"
    )
    assert short != Architecture.parse("768: attn conv[kernel=7] ffn")
    assert short != Architecture.parse("768 eps=1e-6: attn conv ffn")


@given(st.lists(st.sampled_from(["attn", "ffn", "conv"]), min_size=1, max_size=48))  # longer repeats are not looked for
def test_folding_is_only_shorter(words: list[str]):
    folded = fold(words)
    assert [one.kind for one in Architecture.parse(f"64: {folded}").layers] == words
    assert len(folded) <= len(" ".join(words))
    assert fold(words * 3) == f"3x{folded}" or len(fold(words * 3)) <= len(f"3x({folded})")


def test_folding_writes_what_a_person_would():
    assert fold(["attn", "ffn"] * 12) == "12x(attn ffn)"
    assert fold(["attn"] * 3 + ["ffn"]) == "3xattn ffn"
    assert fold(["conv"] + ["attn", "attn", "ffn"] * 2) == "conv 2x(2xattn ffn)"
    assert fold(["attn", "ffn", "conv"]) == "attn ffn conv"


@given(ARCHITECTURES, st.sampled_from([1, 0.9, 3 / 4, 1 / 2, 1 / 3, 1 / 4]))
def test_narrowing_keeps_depth_and_embeddings(arch: Architecture, fraction: float):
    grouped = any(dict(one.options).get("groups", 1) != 1 for one in arch.layers)
    assume(fraction == 1 or not grouped)  # so many groups need not divide another width
    narrow = arch.narrow(fraction)
    assert len(narrow) == len(arch)
    assert narrow.width == max(1, round(arch.width * fraction))
    assert [one.kind for one in narrow.layers] == [one.kind for one in arch.layers]
    for name in ("embed", "vocab", "positions", "segments", "norm", "eps"):
        assert getattr(narrow, name) == getattr(arch, name)
    assert fraction != 1 or narrow == arch


def test_a_generator_is_narrow_in_heads_and_inner_size_alone():
    assert str(architecture("electra-small").narrow(1 / 4)) == "64 embed=128: 12x(attn ffn)"
    assert str(architecture("bert-base").narrow(1 / 3)) == "256 embed=768: 12x(attn ffn)"
    own = Architecture.parse("256: attn[heads=8] ffn[inner=512,act=relu] conv[kernel=5]").narrow(1 / 2)
    assert str(own) == "128 embed=256: attn[heads=4] ffn[inner=256,act=relu] conv[kernel=5]"


@given(spaces())
def test_a_space_survives_its_texts_and_pickle(whole: Space):
    for again in (Space.parse(str(whole)), Space.parse(whole.explicit()), pickle.loads(pickle.dumps(whole)), copy.copy(whole)):
        assert again == whole
        assert hash(again) == hash(whole)
        assert str(again) == str(whole)
        assert again.explicit() == whole.explicit()


@given(spaces(most=4))
def test_a_space_holds_what_its_paths_spell_and_nothing_else(whole: Space):
    paths = list(product(*(range(len(slot)) for slot in whole.slots)))
    assert whole.size == len(paths)
    assume(whole.size <= 64)
    held = {whole.at(path) for path in paths}
    for arch in held:
        assert arch in whole
        assert whole.at(whole.path(arch)) == arch
        for place in range(len(arch)):
            shorter = arch.layers[:place] + arch.layers[place + 1 :]
            if shorter:
                assert (arch.with_layers(shorter) in whole) == (arch.with_layers(shorter) in held)
    assert len(whole.largest) == max(map(len, held))


@given(spaces(), st.integers(0, 2**32), st.sampled_from([None, 0.0, 0.3, 1.0]))
def test_moving_in_a_space_stays_in_it(whole: Space, seed: int, rate: float | None):
    rng = random.Random(seed)
    first, second = whole.sample(rng), whole.sample(rng)
    assert first in whole
    mutant = whole.mutate(first, rng, rate)
    assert mutant in whole
    if rate in (None, 0.0):
        assert (mutant != first) == bool(whole.open_slots)
    child = whole.cross(first, second, rng)
    assert child in whole
    assert whole.cross(first, first, rng) == first


@given(st.integers(0, 2**32))
def test_where_paths_are_unique_moves_are_of_slots(seed: int):
    rng, whole = random.Random(seed), Space.parse("64: 12x{attn|ffn|conv} ffn 2x{conv[kernel=3]|conv[kernel=5]}")
    first, second = whole.sample(rng), whole.sample(rng)
    path = whole.path(first)
    assert sum(a != b for a, b in zip(path, whole.path(whole.mutate(first, rng)), strict=True)) == 1
    assert 1 <= sum(a != b for a, b in zip(path, whole.path(whole.mutate(first, rng, 0.2)), strict=True)) <= 14
    everywhere = whole.path(whole.mutate(first, rng, 1.0))
    assert [slot for slot, (a, b) in enumerate(zip(path, everywhere, strict=True)) if a != b] == list(whole.open_slots)
    for taken, one, two in zip(whole.path(whole.cross(first, second, rng)), path, whole.path(second), strict=True):
        assert taken in (one, two)


def test_a_child_takes_from_both_parents():
    whole, rng = Space.parse("64: 200x{attn|ffn}"), random.Random(0)
    first, second = Architecture.parse("64: 200xattn"), Architecture.parse("64: 200xffn")
    assert 50 < sum(one.kind == "attn" for one in whole.cross(first, second, rng).layers) < 150


def test_the_same_seed_moves_the_same_way():
    whole = Space.parse("64: 8x{attn|ffn|conv}")
    walks = []
    for _ in range(2):
        rng = random.Random(7)
        walk = [whole.sample(rng)]
        walk += [whole.mutate(walk[0], rng), whole.cross(walk[0], whole.sample(rng), rng)]
        walks.append(walk)
    assert walks[0] == walks[1]


def test_samples_are_uniform():
    whole, rng = Space.parse("64: 2x{attn|ffn|conv} {ffn attn|}"), random.Random(0)
    seen = Counter(str(whole.sample(rng)) for _ in range(9000))
    assert len(seen) == whole.size == 18
    assert all(abs(count - 500) < 5 * 500**0.5 for count in seen.values())


def test_published_spaces_have_their_sizes():
    assert Space.parse("256 embed=128: 24x{conv|attn|ffn}").size == 3**24
    assert Space.parse("256: 12x({attn|conv[kernel=3|5|9]} ffn[inner=512|1024])").size == 8**12
    assert Space.parse("64: {attn|attn|attn[heads=1]|ffn}").size == 2, "the same alternative twice is one"
    assert space("bert-base").size == 1


def test_a_space_says_why_something_is_outside():
    whole = Space.parse("64: 3x{attn|ffn}")
    with pytest.raises(ValueError, match="width is 128, and the space has 64"):
        whole.path(Architecture.parse("128: 3xattn"))
    with pytest.raises(ValueError, match="norm is pre"):
        whole.path(Architecture.parse("64 norm=pre: 3xattn"))
    with pytest.raises(ValueError, match=r"not in this space: 64: 2xattn\n    the space is 64: 3x\{attn\|ffn\}"):
        whole.path(Architecture.parse("64: 2xattn"))
    assert Architecture.parse("64: attn ffn conv") not in whole


def test_a_deep_space_finds_its_paths():
    whole = Space.parse("64: conv 1500x{attn|ffn} {conv|}")
    arch = whole.sample(random.Random(0))
    assert whole.at(whole.path(arch)) == arch


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_texts(name: str):
    arch = architecture(name)
    assert Architecture.parse(str(arch)) == arch == Architecture.parse(arch.explicit())
    assert architecture(f" {name}\n") == arch
    assert space(name).sample(random.Random(0)) == arch


# Counted with the classes of transformers, without pooler; of LV-BERT, from its released code.
COUNTS = {
    "bert-tiny": 4_369_408,
    "bert-mini": 11_104_768,
    "bert-small": 28_500_992,
    "bert-medium": 41_110_528,
    "bert-base": 108_891_648,
    "bert-large": 334_092_288,
    "electra-small": 13_483_008,
    "electra-base": 108_891_648,
    "convbert-small": 13_143_768,
    "convbert-medium-small": 17_475_888,
    "convbert-base": 105_680_520,
    "lv-bert-small": 12_525_856,
    # AutoBERT-Zero: at 768 as many as its unofficial reproduction has, 103.0 M; the others counted by us.
    "autobert-zero-read": 102_986_856,
    "autobert-zero-read-small": 12_825_464,
    "autobert-zero-ours-att": 104_166_912,
    "autobert-zero-ours-att-small": 12_956_672,
    "autobert-zero-ours-conv": 101_806_800,
    "autobert-zero-ours-conv-small": 12_694_256,
}
# In millions, as Turc et al. (2019, table 1) print them: with the pooler and the masked-language-modelling head.
PRINTED = {"bert-tiny": 4.4, "bert-mini": 11.3, "bert-small": 29.1, "bert-medium": 41.7, "bert-base": 110.1}


def test_presets_have_the_published_numbers_of_parameters():
    assert {name: parameters(architecture(name)) for name in PRESETS if name != "debug"} == COUNTS
    for name, millions in PRINTED.items():
        width = architecture(name).width
        heads = 2 * (width * width + width) + 2 * width + 30522
        assert round((COUNTS[name] + heads) / 1e6, 1) == millions


def test_the_published_sequence_is_spelled_right():
    letters = {"conv": "C", "attn": "S", "ffn": "F"}
    assert " ".join(letters[one.kind] for one in architecture("lv-bert-small").layers) == PUBLISHED
    assert Counter(PUBLISHED.split()) == {"C": 8, "S": 8, "F": 8}


def test_baselines_are_as_deep_as_what_they_are_compared_with():
    like = architecture("lv-bert-small")
    assert str(interleaved(like)) == "256 embed=128: 12x(attn ffn)"
    assert sandwich(like) == Architecture.parse("256 embed=128: 6xattn 6x(attn ffn) 6xffn")
    for depth in range(1, 9):
        some = like.with_layers([Layer("conv")] * depth)
        for baseline in (interleaved(some), sandwich(some)):
            kinds = Counter(one.kind for one in baseline.layers)
            assert len(baseline) == depth
            assert abs(kinds["attn"] - kinds["ffn"]) <= 1
    assert all(one != two for one, two in pairwise(interleaved(like).layers))


# A wrong text, what stands at the caret, and a piece of the message.
WRONG = [
    ("768: 12x(atn ffn)", "atn", "no layer kind 'atn'; did you mean 'attn'?"),
    ("768: Attn ffn", "Attn", "did you mean 'attn'?"),
    ("768: attn pool", "pool", "no layer kind 'pool'; known: attn, "),
    ("768: 12x(attn ffn[iner=9])", "iner", "no option 'iner'; did you mean 'inner'?"),
    ("768: attn[kernel=3]", "kernel", "layer kind 'attn' has no option 'kernel'"),
    ("768: ffn[act=gleu]", "act=gleu", "no activation 'gleu'; did you mean 'gelu'?"),
    ("768 embd=128: attn", "embd", "no setting 'embd'; did you mean 'embed'?"),
    ("768 norm=mid: attn", "norm=mid", "must be 'post' or 'pre'"),
    ("768 eps=2: attn", "eps=2", "between 0 and 1"),
    ("768 vocab=0: attn", "vocab=0", "from 1 to"),
    ("768 vocab=2 vocab=3: attn", "vocab=3", "'vocab' is set twice"),
    ("100: ffn attn[heads=3]", "heads=3", "3 heads do not divide the width 100; 2 or 4 would"),
    ("768: conv[heads=7]", "heads=7", "7 heads do not divide the width 768; 6 or 8 would"),
    ("768: attn[heads=0]", "heads=0", "must be at least 1"),
    ("768: conv[heads=12,kernel=4]", "kernel=4", "kernel 4 is even and has no centre; 3 or 5 would do"),
    ("768: attn[heads=1.5]", "heads=1.5", "expected an integer"),
    ("768: ffn[act=3]", "act=3", "expected a word"),
    ("768: ffn[inner=999999999]", "inner", "at most 100,000,000"),
    ("768: attn[heads=4,heads=8]", "heads=8", "'heads' is set twice"),
    ("768: attn {ffn|conv}", "ffn|", "leaves a choice open"),
    ("768: attn[heads=6|12]", "attn", "leaves a choice open"),
    ("768: 0x(attn ffn)", "0x", "at least 1x"),
    ("768: 12x(attn ffn", "", "expected a layer or ')', found the end of the text"),
    ("768: 12x attn ffn)", ")", "expected a layer, found ')'"),
    ("768: attn[heads=4", "", "expected ',' or ']', found the end of the text"),
    ("768: attn heads=4]", "=4", "found '='"),
    ("768: attn[]", "]", "expected an option, found ']'"),
    ("768: attn[heads=]", "]", "expected a value, found ']'"),
    ("768: ffn[act='gelu]", "'gelu", "a quote that does not close"),
    ('768: ffn[act="gelu"]', '"gelu', "unexpected '\"'"),
    ("768: attn; ffn", "; ffn", "unexpected ';'"),
    ("768: attn,\nffn", ", ffn", "expected a layer, found ','"),
    ("768: 12X(attn)", "12X", "unexpected '12X'"),
    ("768: ()", "()", "an empty group"),
    ("768: {}", "768", "at least one layer"),
    ("768:", "", "no layers"),
    ("", "", "no layers"),
    ("attn ffn", "attn", "a text starts with the width"),
    ("768 attn", "", "the layers come after ':'"),
    ("7.5: attn", "7.5", "the width must be an integer"),
    ("-8: attn", "-8", "the width must be an integer"),
    ("768: " + 30 * "attn ffn " + "cnv" + 30 * " attn ffn", "cnv attn", "did you mean 'conv'?"),
    ("768: formula[text=neg(q] ffn", "(q]", "a bracket that does not close"),
    ("768: formula[text=neg(q)) ffn]", ") ffn", "expected ',' or ']', found ')'"),
    ("768: formula[text=neg (q)]", "(q)", "expected ',' or ']', found '('"),
    ("768: formula[text=add(q, w)]", "w)", "no input 'w'"),
    ("768: formula[text=*8]", "*8", "leaves a formula open"),
    ("768: attn[heads=*]", "heads=*", "expected an integer"),
    ("768 embed=*: attn", "embed=*", "must be an integer"),
    ("768: attn *", "*", "expected a layer, found '*'"),
    ("768: attn(ffn) conv(attn", "", "expected a layer or ')'"),
]


def pointed(error: TextError) -> str:
    """What stands at the caret of a message and after it."""
    _, shown, caret = str(error).splitlines()
    assert caret.strip() == "^"
    return shown[caret.index("^") :]


@pytest.mark.parametrize(("text", "place", "message"), WRONG)
def test_an_error_points_at_the_place(text: str, place: str, message: str):
    with pytest.raises(TextError) as caught:
        architecture(text)
    assert message in str(caught.value)
    assert pointed(caught.value).startswith(place)
    assert bool(place) == bool(pointed(caught.value))


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("64: {attn|fn}", "fn}", "did you mean 'ffn'?"),
        ("64: {attn|conv[kernel=3|4]}", "kernel=3|4", "kernel 4 is even"),
        ("64: {attn|ffn", "", "expected a layer, '|' or '}', found the end of the text"),
        ("64: attn|ffn", "|ffn", "expected a layer, found '|'"),
        ("64: {attn|} {ffn|}", "", "an empty space: every slot can be left without layers"),
        ("64: 2x{}", "", "an empty space"),
        ("64: {attn|(ffn}", "}", "expected a layer or ')', found '}'"),
        ("64 embed=1|2: attn", "|2", "expected a setting"),
    ],
)
def test_an_error_of_a_space_points_at_the_place(text: str, place: str, message: str):
    with pytest.raises(TextError) as caught:
        space(text)
    assert message in str(caught.value)
    assert pointed(caught.value).startswith(place)


def test_a_misspelt_preset_names_the_nearest():
    for read in (architecture, space):
        with pytest.raises(ValueError, match="no preset 'bert-bse'; did you mean 'bert-base'"):
            read("bert-bse")
        with pytest.raises(ValueError, match="no preset 'LV-BERT'; did you mean 'lv-bert-small'"):
            read("LV-BERT")


def test_a_layer_is_one_layer():
    for text in ("attn ffn", "2xattn", "{attn|ffn}", "attn[heads=1|2]", "64: attn", "{}"):
        with pytest.raises(TextError, match="expected a single layer"):
            Layer.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "8: 999999999999x(attn ffn)",
        "8: " + "9" * 5000 + "xattn",
        "8: " + "99999x(" * 5 + "attn" + ")" * 5,
        "8: " + "(" * 100_000,
        "8: " + "{" * 100_000,
        "8: {" + "{attn|ffn}" * 60 + "}",
        "8: {50000xattn|50000x(ffn attn)}",
        "8: {" + "|".join(["12x{attn|ffn}"] * 50) + "}",
        "8: {" + "{|}" * 60 + "}",
        f"8: x[{','.join(f'k{i}=' + '|'.join(map(str, range(50))) for i in range(50))}]",
        "9" * 5000 + ": attn",
        "8 eps=1e999: attn",
        "8: attn[heads=" + "9" * 5000 + "]",
        "99999989: attn[heads=99999988]",
        "8: note[rate=1e300]",
    ],
    ids=lambda text: text[:30],
)
@pytest.mark.timeout(30)
def test_an_absurd_text_is_refused_before_it_costs_anything(text: str):
    for read in (architecture, space):
        with pytest.raises(TextError) as caught:
            read(text)
        assert len(str(caught.value)) < 500


TOKENS = [
    *"()[]{}|:=,'x9 \n",
    "12x",
    "3x{",
    "64",
    "64 ",
    "64: ",
    "1e-5",
    "0",
    "-1",
    "attn",
    "ffn ",
    "conv[kernel=",
    "heads=",
    "formula[text=",
    "neg(",
    "*8",
    "embed=",
    "norm=pre",
]
NOISE = st.one_of(
    st.text(max_size=40),
    st.text("0123456789x:=()[]{}|,'. \nattnfcovhdskrlE", max_size=40),
    st.lists(st.sampled_from(TOKENS), max_size=20).map("".join),
    st.lists(st.sampled_from(TOKENS), max_size=20).map(lambda words: "64: " + " ".join(words)),
    st.tuples(
        st.sampled_from([*PRESETS.values(), "64 eps=1e-6: 3x{attn[heads=1|2]|ffn[act='relu']} {conv|}"]), st.data()
    ).flatmap(
        lambda case: st.builds(
            lambda place, gone, put: case[0][:place] + put + case[0][place + gone :],
            st.integers(0, len(case[0])),
            st.integers(0, 3),
            st.sampled_from(["", *TOKENS]),
        )
    ),
)


@given(NOISE)
def test_any_text_reads_or_is_refused(text: str):
    for kind in (Architecture, Space, Layer):
        try:
            value = kind.parse(text)
        except TextError as error:
            pointed(error)
        else:
            assert kind.parse(str(value)) == value
    for read in (architecture, space):
        with contextlib.suppress(ValueError):
            read(text)


@given(st.one_of(st.text(), st.text("fq1_(),*' ", max_size=12)))
def test_any_string_is_spelled_so_that_it_reads_back_or_refused(text: str):
    try:
        word = spell(text)
    except ValueError:
        assert "'" in text or "\n" in text
    else:
        assert Layer.parse(f"note[text={word}]") == Layer("note", (("text", text),))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": "64"}, "width=64"),
        ({"width": True}, "width=True"),
        ({"width": 64.0}, "width=64.0"),
        ({"vocab": -1}, "vocab=-1"),
        ({"eps": float("nan")}, "eps=nan"),
        ({"layers": ()}, "at least one layer"),
        ({"layers": (Layer("attn", (("heads", "4"),)),)}, "expected an integer"),
        ({"layers": (Layer("attn", (("heads", True),)),)}, "expected an integer"),
        ({"layers": (Layer("note", (("rate", float("nan")),)),)}, "at most"),
        ({"layers": (Layer("atn"),)}, "did you mean 'attn'"),
    ],
)
def test_what_no_text_can_say_is_no_architecture(settings: dict[str, object], message: str):
    with pytest.raises(OptionError, match=message):
        Architecture(**{"width": 64, "layers": (Layer("attn"),)} | settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "fraction", "wanted"),
    [
        ("256: attn ffn[inner=1000,groups=4]", 1 / 4, "64 embed=256: attn ffn[inner=252,groups=4]"),
        ("300: attn[heads=6] ffn", 1 / 4, "75 embed=300: attn[heads=3] ffn"),
        ("832: attn ffn", 1 / 4, "208 embed=832: attn[heads=4] ffn"),
        ("704: mixed ffn", 1 / 4, "176 embed=704: mixed[heads=4] ffn"),
        ("132: attn ffn", 3 / 4, "99 embed=132: attn[heads=3] ffn"),
        ("140: conv ffn", 3 / 4, "105 embed=140: conv[heads=3] ffn"),
    ],
)
def test_what_would_not_fit_a_narrow_width_becomes_the_nearest_that_does(text: str, fraction: float, wanted: str):
    assert str(Architecture.parse(text).narrow(fraction)) == wanted


@pytest.mark.parametrize("kind", ["attn", "conv", "sdconv", "lightconv", "formula"])
def test_every_width_has_a_number_of_heads_that_divides_it(kind: str):
    for width in range(1, 1300):
        heads = dict(Architecture.parse(f"{width}: {kind}").layers[0].options)["heads"]
        assert width % heads == 0
        assert heads == 1 or width // heads >= 64
        assert width % 64 or heads == width // 64
