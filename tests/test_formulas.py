"""Formulas of attention: their texts, what they compute, which of them are worth anything, and spaces that leave them open."""

import pickle
import random
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layerwright import Architecture, Layer, Space, TextError, architecture, cli
from layerwright.fingerprints import compute, judge
from layerwright.formula_graphs import graph
from layerwright.formula_page import formulas_of, render
from layerwright.formula_space import ATTENTION, FormulaSpace, _trees
from layerwright.formulas import Formula
from layerwright.operations import BOTH, EACH, INPUTS, OPERATIONS, Shape, operation
from layerwright.strategies import AgingEvolution, Evolution, OptunaSampler, Trial, at_random, propose

EIGHT = FormulaSpace.parse("*8")
FORMULAS = st.integers(0, 2**32).map(lambda seed: FormulaSpace.parse("*10").sample(Random(seed)))


@st.composite
def raw(draw: st.DrawFn, shape: str = "token", depth: int = 4) -> str:
    """The text of any formula, as a person may write it: what `formulas` makes of it must not change what it computes."""
    if shape == "token" and (depth < 1 or draw(st.booleans())):
        return draw(st.sampled_from(INPUTS))
    part = lambda kind: draw(raw(kind, depth - 1))  # noqa: E731
    if draw(st.booleans()) and depth > 0:
        unary = draw(st.sampled_from(["neg", "scale", "softsign", "logsigmoid", "softmax", "neg", "scale"]))
        return f"{unary}( {part(shape)})" if draw(st.booleans()) else f"add({part(shape)},{part(shape)})"
    if shape == "turned":
        return f"t({part('token')})" if draw(st.booleans()) else f"matmul(t({part('token')}) , {part('pair')})"
    if shape == "token":
        return draw(st.sampled_from([f"t({part('turned')})", f"matmul({part('pair')},{part('token')})"]))
    forms = {
        "turned": lambda: f"matmul({part('token')},{part('turned')})",
        "compared": lambda: f"{draw(st.sampled_from(['cosine', 'euclidean']))}({part('token')},{part('token')})",
        "again": lambda: f"t({part('pair')})" if depth > 0 else "cosine(q,k)",
    }
    return forms[draw(st.sampled_from(list(forms)))]()


def literal(text: str, inputs: dict[str, np.ndarray], root: float) -> np.ndarray:
    """What a text says, read and computed without any of our code but the operations themselves."""
    text = text.replace(" ", "")
    if text in inputs:
        return inputs[text]
    name, inside = text[:-1].split("(", 1)
    parts, depth, begin = [], 0, 0
    for at, mark in enumerate(inside + ","):
        depth += (mark == "(") - (mark == ")")
        if mark == "," and depth == 0:
            parts.append(literal(inside[begin:at], inputs, root))
            begin = at + 1
    if name == "scale":
        return parts[0] / root
    if name == "softmax" and parts[0].shape[-2] == root**2 and parts[0].shape[-1] != root**2:
        return literal_softmax(parts[0].swapaxes(-1, -2)).swapaxes(-1, -2)  # transposed: still over the channels
    return OPERATIONS[name].array(*parts)


def literal_softmax(x: np.ndarray) -> np.ndarray:
    return np.exp(x - x.max(-1, keepdims=True)) / np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True)


def drawn(seed: int, length: int, size: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal((length, size)) for name in INPUTS}


@given(raw(), st.integers(0, 99))
def test_the_canonical_form_computes_what_the_text_says(text: str, seed: int):
    formula, inputs = Formula.parse(text), drawn(seed, 5, 4)
    with np.errstate(all="ignore"):
        wanted, found = literal(text, inputs, 2.0), compute(formula, inputs, 2.0)[-1]
    if np.isfinite(wanted).all() and np.abs(wanted).max() < 1e6:
        np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7)


@given(st.one_of(FORMULAS, raw().map(Formula.parse)))
def test_a_formula_survives_its_text_and_pickle(formula: Formula):
    for again in (Formula.parse(str(formula)), pickle.loads(pickle.dumps(formula)), eval(repr(formula))):
        assert again == formula
        assert hash(again) == hash(formula)
        assert str(again) == str(formula)
    assert len(set(formula.steps)) == len(formula.steps), "a step stands twice"
    layer = Layer("formula", (("text", str(formula)),))
    assert Layer.parse(str(layer)) == layer
    arch = Architecture(64, (layer,))
    assert Architecture.parse(str(arch)) == arch == Architecture.parse(arch.explicit())


@pytest.mark.parametrize(
    "texts",
    [
        ("matmul(softmax(matmul(scale(q),t(k))),v)", "matmul( softmax(scale(matmul(q, t(k)))), v )", str(ATTENTION)),
        ("matmul(softmax(matmul(q,scale(t(k)))),v)", "t(matmul(t(v),t(softmax(t(matmul(k,t(scale(q))))))))", str(ATTENTION)),
        ("matmul(cosine(k,q),add(v,neg(neg(q))))", "matmul(t(cosine(q,k)),add(q,v))"),
        ("matmul(matmul(q,neg(t(logsigmoid(k)))),neg(v))", "matmul(matmul(q,t(logsigmoid(k))),v)"),
    ],
)
def test_one_form_for_what_is_plainly_the_same(texts: tuple[str, ...]):
    assert len({Formula.parse(text) for text in texts}) == 1


def test_a_shared_expression_is_one_step():
    shared = Formula.parse("matmul(softmax(matmul(add(q,k),t(add(k,q)))),add(q,k))")
    assert shared.operations == ("add", "t", "matmul", "softmax", "matmul")
    deep = "q"
    for _ in range(8):
        deep = f"add({deep},{deep})"
    assert len(Formula.parse(deep)) == 8


WRONG = [
    ("matmul(q,k)", "matmul", "transpose the second with t(...)"),
    ("matmul(t(k),v)", "matmul", "write matmul(matmul(q,t(k)),v)"),
    ("matmul(softmax(matmul(q,t(k))),add(v, matmul(q,t(k))))", "add", "add cannot take a value per token and a value per pair"),
    ("matmul(q,t(k))", "matmul", "a formula is a value per token, and this is a value per pair of tokens"),
    ("softmx(q)", "softmx", "no operation 'softmx'; did you mean 'softmax'?"),
    ("neg(w)", "w", "no input 'w'; known: q, k, v"),
    ("neg", "neg", "the operation 'neg' has no arguments"),
    ("neg(q,k)", "neg", "neg takes one argument, not 2"),
    ("add(q)", "add", "add takes two arguments, not 1"),
    ("matmul(q,k,v)", "matmul", "matmul takes two arguments, not 3"),
    ("neg(q", "", "expected ',' or ')', found the end of the formula"),
    ("neg(q))", ")", "expected the end of the formula"),
    ("neg(q;k)", ";k", "expected ',' or ')', found ';'"),
    ("neg()", ")", "expected an operation or an input, found ')'"),
    ("", "", "found the end of the formula"),
    ("neg(" * 70 + "q" + ")" * 70, "neg(", "brackets more than 60 deep"),
    ("q" * 5000, "", "more than 4,000 characters"),
]


@pytest.mark.parametrize(("text", "place", "message"), WRONG, ids=[one[0][:30] for one in WRONG])
def test_an_error_points_at_the_place(text: str, place: str, message: str):
    with pytest.raises(TextError) as caught:
        Formula.parse(text)
    told, shown, caret = str(caught.value).splitlines()
    assert message in told
    assert shown[caret.index("^") :].startswith(place)
    if len(text) > 80 or "]" in text:
        return
    with pytest.raises(TextError) as caught:  # and so it does inside an architecture
        Architecture.parse(f"64: attn formula[heads=1,text='{text}'] ffn")
    told, shown, caret = str(caught.value).splitlines()
    assert message in told
    assert shown[caret.index("^") :].startswith(place or "'")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("q", "does not mix tokens"),
        ("softsign(add(q,k))", "does not mix tokens"),
        ("add(q,matmul(add(cosine(q,k),neg(cosine(q,k))),v))", "ignores k"),
        ("matmul(softmax(matmul(q,t(add(k,neg(k))))),v)", "ignores"),
        ("matmul(softmax(matmul(add(q,neg(q)),t(q))),q)", "the same at every token"),
        ("add(matmul(cosine(q,q),q),logsigmoid(add(q,neg(q))))", "a constant: "),
        ("add(add(v,neg(v)),matmul(cosine(q,k),k))", "ignores v"),
        ("matmul(matmul(matmul(q,t(k)),matmul(q,t(k))),matmul(matmul(q,t(k)),v))", "grows faster than"),
        ("matmul(cosine(k,v),v)", "does not use q"),
        ("matmul(matmul(matmul(matmul(cosine(q,k),cosine(q,k)),cosine(k,q)),cosine(k,q)),v)", "times what attention does"),
        ("neg(scale(scale(scale(scale(scale(scale(matmul(cosine(q,k),v))))))))", "9 operations, and the space has at most 8"),
    ],
)
def test_what_is_degenerate_or_costly_is_in_no_space(text: str, fault: str):
    formula = Formula.parse(text)
    assert fault in EIGHT.fault(formula)
    assert formula not in EIGHT


def test_what_is_not_finite_is_in_no_space():
    operation("root", EACH, np.sqrt)
    try:
        assert EIGHT.fault(Formula.parse("matmul(root(cosine(q,k)),v)")) == "its outputs are not finite"
    finally:
        del OPERATIONS["root"]


@settings(max_examples=60)
@given(st.integers(0, 2**32))
def test_formulas_that_leave_the_space_are_of_it(seed: int):
    rng = Random(seed)
    one, other = EIGHT.sample(rng), EIGHT.sample(rng)
    mutant, child = EIGHT.mutate(one, rng), EIGHT.cross(one, other, rng)
    for formula in (one, other, mutant, child):
        assert formula in EIGHT
        assert len(formula) <= 8
        assert formula.inputs[0] == "q"
    assert mutant != one


def test_weights_decide_which_operations_are_drawn():
    rng = Random(3)
    weights = {"matmul": 1.0, "softmax": 1.0, "t": 1.0, "scale": 0.5}
    seen = {name for _ in range(60) for name in EIGHT.sample(rng, weights).operations}
    # Where nothing else fits, what has no weight is drawn as well: of two operations, one has to compare tokens.
    assert set(weights) <= seen <= {*weights, "cosine", "euclidean"}


def test_the_same_seed_draws_the_same():
    walks = []
    for _ in range(2):
        rng = Random(11)
        walk = [EIGHT.sample(rng)]
        walks.append([*walk, EIGHT.mutate(walk[0], rng), EIGHT.cross(walk[0], EIGHT.sample(rng), rng)])
    assert walks[0] == walks[1]


def test_equal_fingerprints_mean_equal_outputs_at_any_length_and_size():
    rng, groups = Random(5), defaultdict(set)
    narrow = FormulaSpace.parse("*6")
    for _ in range(6000):
        formula = narrow.sample(rng)
        groups[judge(formula).mark].add(formula)
    merged = [group for group in groups.values() if len(group) > 1]
    assert len(merged) > 20, "nothing to compare"
    for group in merged:
        for one, other in combinations(sorted(group, key=str)[:3], 2):
            for seed, (length, size) in enumerate([(1, 1), (3, 2), (6, 4), (9, 16)]):
                inputs = drawn(seed, length, size)
                found, wanted = (compute(formula, inputs, size**0.5)[-1] for formula in (one, other))
                np.testing.assert_allclose(found, wanted, rtol=1e-6, atol=1e-7, err_msg=f"{one}\n{other}")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("matmul(matmul(cosine(q,k),cosine(k,k)),v)", "matmul(cosine(q,k),matmul(cosine(k,k),v))", True),
        ("matmul(cosine(q,k),softsign(neg(q)))", "neg(matmul(cosine(q,k),softsign(q)))", True),
        ("matmul(cosine(q,k),add(q,v))", "add(matmul(cosine(q,k),q),matmul(cosine(q,k),v))", True),
        ("matmul(cosine(q,k),v)", "matmul(cosine(q,k),add(v,v))", False),
        # Equal where 1 / sqrt(E) is a half, or where E is 4, and nowhere else.
        ("matmul(cosine(q,k),v)", "matmul(cosine(q,k),scale(add(v,v)))", False),
        ("matmul(cosine(q,k),q)", "matmul(cosine(q,k),scale(scale(add(add(q,q),add(q,q)))))", False),
    ],
)
def test_what_computes_the_same_counts_as_one(one: str, other: str, same: bool):
    marks = [judge(Formula.parse(text)).mark for text in (one, other)]
    assert all(marks)
    assert (marks[0] == marks[1]) == same


def test_a_space_counts_the_texts():
    # Of one operation over inputs: 4 unary ones and softmax of 3, sums of 3 by 3; and the inputs themselves.
    assert sum(_trees(1)[Shape.TOKEN]) == 3 + 5 * 3 + 3 * 3
    assert sum(_trees(1)[Shape.PAIR]) == 2 * 3 * 3
    assert FormulaSpace.parse("*5").size < FormulaSpace.parse("*6").size < EIGHT.size < 1e12
    with pytest.raises(ValueError, match="at most 3 operations: from 5 to 40"):
        FormulaSpace.parse("*3")


OPEN = Space.parse("64: 3x{lightconv[kernel=3|5]|formula[text=*8]} ffn formula[heads=2,text=*]")


@settings(max_examples=40)
@given(st.integers(0, 2**32), st.sampled_from([None, 0.0, 0.5, 1.0]))
def test_moves_in_a_space_of_formulas_stay_in_it(seed: int, rate: float | None):
    rng = random.Random(seed)
    first, second = OPEN.sample(rng), OPEN.sample(rng)
    mutant, child = OPEN.mutate(first, rng, rate), OPEN.cross(first, second, rng)
    for arch in (first, second, mutant, child):
        assert arch in OPEN
        assert Architecture.parse(str(arch)) == arch == Architecture.parse(arch.explicit())
    assert mutant != first
    assert OPEN.cross(first, first, rng) == first
    for place in OPEN.open_slots:
        varied = OPEN.vary(first, place, rng)
        assert varied in OPEN
        changed = [at for at, (one, other) in enumerate(zip(first.layers, varied.layers, strict=True)) if one != other]
        assert changed == ([place] if first.layers[place].kind == "formula" else [])


def test_a_space_of_formulas_survives_its_texts():
    for again in (Space.parse(str(OPEN)), Space.parse(OPEN.explicit()), pickle.loads(pickle.dumps(OPEN))):
        assert again == OPEN
        assert str(again) == str(OPEN)
    assert OPEN.values_open
    assert OPEN.size == (2 + EIGHT.size) ** 3 * FormulaSpace().size
    assert OPEN.open_slots == (0, 1, 2, 4)
    assert OPEN.largest in OPEN
    assert str(OPEN.at((2, 2, 2, 0, 0))) == "64: 3xformula ffn formula[heads=2]"


def test_what_is_outside_a_space_of_formulas():
    whole = Space.parse("64: 2x{lightconv|formula[text=*8]} ffn")
    long = "text=neg(scale(scale(scale(scale(scale(scale(matmul(cosine(q,k),v))))))))"
    assert Architecture.parse("64: formula lightconv ffn") in whole
    for inside in ("formula[heads=2] lightconv ffn", f"formula[{long}] lightconv ffn", "formula[text=q] lightconv ffn"):
        assert Architecture.parse(f"64: {inside}") not in whole
    for text, place, message in [
        ("64: formula[text=*3]", "*3", "from 5 to 40"),
        ("64: formula[text=neg(]", "(]", "a bracket that does not close"),
        ("64: {formula[text=matmul(cosine(q,k),w)]|ffn}", "w)", "no input 'w'"),
        ("64: {formula[text=*|matmul(cosine(q,k),k)|add(q, x)]|ffn}", "x)", "no input 'x'"),
    ]:
        with pytest.raises(TextError) as caught:
            Space.parse(text)
        told, shown, caret = str(caught.value).splitlines()
        assert message in told
        assert shown[caret.index("^") :].startswith(place)
    with pytest.raises(TextError, match="leaves a formula open"):
        Architecture.parse("64: formula[text=*8]")


def test_formulas_that_compute_the_same_are_evaluated_once():
    whole = Space.parse("64: formula[text=*8]")
    one = Architecture.parse("64: formula[text=matmul(matmul(cosine(q,k),cosine(k,k)),v)]")
    same = Architecture.parse("64: formula[text=matmul(cosine(q,k),matmul(cosine(k,k),v))]")
    assert one != same
    assert whole.key(one) == whole.key(same) != whole.key(Architecture.parse("64: formula"))
    proposals = iter([same, same, Architecture.parse("64: formula")])
    found = propose(lambda *_: next(proposals), whole, [Trial(0, one, 1.0)])
    assert str(found) == "64: formula"


@pytest.mark.parametrize("strategy", [at_random, Evolution(population=4, parents=2), AgingEvolution(population=4, tournament=2)])
def test_strategies_search_formulas(strategy: object):
    history: list[Trial] = []
    for number in range(14):
        arch = propose(strategy, OPEN, history)  # type: ignore[arg-type]
        assert arch is not None
        assert arch in OPEN
        history.append(Trial(number, arch, -len(str(arch))))
    assert len({OPEN.key(trial.arch) for trial in history}) == 14
    with pytest.raises(ValueError, match="cannot search values left open"):
        OptunaSampler("TPESampler")(OPEN, history, Random(0))


@pytest.fixture
def _words() -> Iterator[None]:
    known = dict(OPERATIONS)
    yield
    OPERATIONS.clear()
    OPERATIONS.update(known)


@pytest.mark.usefixtures("_words")
def test_an_operation_of_ones_own_is_searched_like_any_other():
    operation("minimum", BOTH, np.minimum, tensor=lambda a, b: a.minimum(b), commutes=True)
    operation("square", EACH, lambda x: x * x)
    formula = Formula.parse("matmul(softmax(minimum(cosine(q,k),cosine(k,k))),square(v))")
    assert formula.plain() == "softmax(minimum(cosine(k, k), cosine(q, k))) square(v)"
    assert formula.latex() == (r"\operatorname{softmax}(\operatorname{minimum}(\cos(K, K), \cos(Q, K))) \operatorname{square}(V)")
    assert formula in EIGHT
    rng = Random(0)
    seen = {name for _ in range(50) for name in EIGHT.sample(rng).operations}
    assert {"minimum", "square"} <= seen
    with pytest.raises(ValueError, match="'square' is already a word"):
        operation("square", EACH, lambda x: x)
    with pytest.raises(TypeError, match="not a word"):
        operation("Square", EACH, lambda x: x)
    with pytest.raises(TypeError, match="one argument or two"):
        operation("mean", {**EACH, **BOTH}, lambda x: x)


def test_formulas_are_written_as_people_do():
    plain = "softmax(q (k / √E + softsign(softsign(k) / √E) + v)ᵀ / √E) v"
    found = formulas_of(architecture("autobert-zero-read"))
    assert [formula.plain() for formula in found][-2].count("softsign") == plain.count("softsign")
    assert ATTENTION.latex() == r"\operatorname{softmax}(\frac{Q K^\top}{\sqrt{E}}) V"
    nested = Formula.parse("matmul(matmul(cosine(q,k),cosine(k,k)),add(q,add(k,v)))")
    assert nested.plain() == "cosine(q, k) cosine(k, k) (k + v + q)"
    assert Formula.parse("matmul(cosine(q,k),matmul(cosine(k,k),v))").plain() == "cosine(q, k) (cosine(k, k) v)"


@settings(max_examples=40)
@given(FORMULAS)
def test_a_graph_has_a_box_for_each_step_and_a_line_for_each_argument(formula: Formula):
    drawing = ElementTree.fromstring(graph(formula))
    boxes = drawing.findall(".//rect")
    assert len(boxes) == len(formula.steps)
    assert len(drawing.findall(".//path")) == sum(len(step.arguments) for step in formula.steps)
    width, height = float(drawing.get("width", 0)), float(drawing.get("height", 0))
    corners = [(float(box.get("x", -1)), float(box.get("y", -1))) for box in boxes]
    assert all(0 <= x <= width - 88 and 0 <= y <= height - 26 for x, y in corners)
    assert all(abs(a - c) >= 88 or abs(b - d) >= 26 for (a, b), (c, d) in combinations(corners, 2)), "boxes overlap"


def test_show_draws_the_found_networks(tmp_path, capsys):
    show = cli.load("show")
    show.main(["autobert-zero-read-small", "--draw", str(tmp_path / "net.html")], standalone_mode=False)
    said = capsys.readouterr().out
    assert "softmax(-q logsigmoid(k)ᵀ / √E) q" in said
    drawn_page = (tmp_path / "net.html").read_text(encoding="utf-8")
    assert drawn_page == render(architecture("autobert-zero-read-small"), "autobert-zero-read-small")
    assert drawn_page.count('<svg class="formula"') == 5
    assert "layers 10, 14" in drawn_page
    with pytest.raises(ValueError, match="--draw draws one architecture"):
        show.main(["64: 2x{attn|ffn}", "--draw", str(tmp_path / "space.html")], standalone_mode=False)
    show.main([str(OPEN)], standalone_mode=False)
    assert "A space of about" in capsys.readouterr().out
