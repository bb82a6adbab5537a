"""What alternatives of a slot share in a supernet; every architecture has the weights and outputs it would have alone."""

from collections import Counter
from dataclasses import replace
from random import Random
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_population import SPECIAL, held
from torch import nn

from layerwright import Architecture, Backbone, Space, Supernet, layer
from layerwright.batches import along
from layerwright.formula_space import ATTENTION, FormulaSpace
from layerwright.objectives import MaskedLM
from layerwright.population import Population
from layerwright.recipe import score
from layerwright.registry import KINDS
from layerwright.strategies import Evolution, Trial, propose

HEAD = "32 embed=16 vocab=90 positions=24"
OPEN = Space.parse(f"{HEAD}: 3x({{lightconv[kernel=3|5|9|15]|formula[text=*8]}} ffn)")

ALTERNATIVES = [
    "lightconv[kernel=3|5|9]",
    "lightconv[heads=2,kernel=3|15]",
    "formula[text=*8]",
    "formula[heads=4,text=*6] ffn",
    "formula[text='matmul(softmax(matmul(q,t(q))),q)']",
    "formula[text='matmul(cosine(q,k),v)']",
    "lightconv[kernel=3|7] formula[text=*7]",
    "lightconv[kernel=3] ffn|lightconv[kernel=9] ffn",
    "attn|ffn",
    "conv[kernel=3|5]",
    "",
]


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    """Spaces with formulas left open, kernels, kinds that do not share, and places that may stay empty."""
    slots = draw(st.lists(st.lists(st.sampled_from(ALTERNATIVES), min_size=1, max_size=4, unique=True), min_size=1, max_size=3))
    norm = draw(st.sampled_from(["", " norm=pre"]))
    return Space.parse(f"{HEAD}{norm}: ffn " + " ".join("{" + "|".join([*slot, "attn"]) + "}" for slot in slots))


def supernet(space: Space) -> Supernet:
    torch.manual_seed(0)
    net = Supernet(space)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


def inputs() -> tuple[torch.Tensor, ...]:
    torch.manual_seed(1)
    mask = torch.arange(20) < torch.tensor([[20], [12], [3]])
    return torch.randint(90, (3, 20)), mask, torch.randint(2, (3, 20)), torch.randint(2, (3, 20)).sort().values


def trained(net: nn.Module, **named: Architecture) -> torch.Tensor:
    """Return what a network computes in training, with the same dropout each time."""
    torch.manual_seed(2)
    return torch.as_tensor(net.train()(*inputs(), **named))


@settings(max_examples=25)
@given(spaces(), st.integers(0, 1000))
def test_an_architecture_computes_what_the_backbone_of_its_weights_computes_to_the_last_bit(space: Space, seed: int) -> None:
    net, rng = supernet(space), Random(seed)
    for arch in (space.sample(rng), space.sample(rng, usual=0.5), space.mutate(space.sample(rng), rng)):
        weights = net.weights_of(arch)
        alone = Backbone(arch)
        assert set(weights) == set(alone.state_dict())
        alone.load_state_dict(weights)
        with torch.no_grad():
            assert torch.equal(trained(net, arch=arch), trained(alone))
            assert torch.equal(net.eval()(*inputs(), arch=arch), alone.eval()(*inputs()))


@settings(max_examples=15)
@given(spaces(), st.integers(0, 1000))
def test_a_step_trains_what_the_architecture_uses_and_as_it_would_alone(space: Space, seed: int) -> None:
    arch = space.sample(Random(seed))
    net, alone = supernet(space), Backbone(arch)
    alone.load_state_dict(net.weights_of(arch))
    for one, named in ((net, {"arch": arch}), (alone, {})):
        trained(one, **named).square().sum().backward()
    # Gradients are looked at as the weights are: by the tensors that the architecture takes of the supernet's.
    state = {name: parameter.grad for name, parameter in net.named_parameters()}
    learned = {name for name, grad in state.items() if grad is not None}
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            parameter.copy_(torch.zeros_like(parameter) if state[name] is None else state[name])
    found = net.weights_of(arch)
    for name, parameter in alone.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(found[name], parameter.grad), name
    count = sum(1 for name in learned if name.startswith("slots."))
    assert count == sum(1 for name, _ in alone.named_parameters() if name.startswith("layers."))


def test_kernels_are_the_middle_of_the_largest_and_formulas_have_the_same_maps() -> None:
    net = supernet(OPEN)
    texts = [
        "lightconv[kernel=3] ffn formula[text='matmul(cosine(q,k),q)'] ffn lightconv[kernel=5] ffn",
        "lightconv[kernel=15] ffn formula ffn formula ffn",
    ]
    few, many = (net.weights_of(Architecture.parse(f"{HEAD}: {text}")) for text in texts)
    assert torch.equal(few["layers.0.body.taps"], many["layers.0.body.taps"][:, 6:9])
    assert torch.equal(few["layers.4.body.taps"], dict(net.named_parameters())["slots.4.0.0.body.taps"][:, 5:10])
    with torch.no_grad():
        few["layers.0.body.taps"].fill_(7.0)
    assert (many["layers.0.body.taps"] == 7).sum(1).eq(3).all()
    for name in ("query", "key", "out"):
        assert few[f"layers.2.body.{name}.weight"].data_ptr() == many[f"layers.2.body.{name}.weight"].data_ptr()
    assert "layers.2.body.value.weight" in many.keys() - few.keys()
    assert few["layers.0.norm.weight"].data_ptr() == many["layers.0.norm.weight"].data_ptr()
    assert few["layers.2.norm.weight"].data_ptr() != few["layers.0.norm.weight"].data_ptr()


def test_a_branch_is_what_differs_in_nothing_but_what_is_shared() -> None:
    text = "{attn|lightconv[kernel=3]|formula|lightconv[heads=2,kernel=3]|lightconv[kernel=9]|formula[text=*8]|conv[kernel=3|5]}"
    (slot,) = Space.parse(f"{HEAD}: {text}").branches
    assert [branch.alternatives for branch in slot] == [(0,), (1, 4), (2, 5), (3,), (6,), (7,)]
    assert [str(branch.layers[0]) for branch in slot][1] == "lightconv[heads=1,kernel=9]"
    assert dict(slot[2].layers[0].options)["text"] == str(ATTENTION)
    (runs,) = Space.parse(
        f"{HEAD}: {{lightconv[kernel=3] ffn|lightconv[kernel=9] ffn|lightconv[kernel=5]|ffn lightconv}}"
    ).branches
    assert [branch.alternatives for branch in runs] == [(0, 1), (2,), (3,)]
    (fixed,) = Space.parse(f"{HEAD}: formula[text='matmul(cosine(q,q),q)']").branches
    assert "cosine" in str(fixed[0].layers[0])  # and no maps that nothing uses


def test_seven_kernels_do_not_make_a_convolution_seven_times_as_likely() -> None:
    space = Space.parse(f"{HEAD}: {{lightconv[kernel=3|5|7|9|15|31|65]|formula|attn}}")
    rng = Random(0)
    drawn = Counter(space.sample(rng).layers[0] for _ in range(4200))
    kinds = Counter({kind: sum(count for one, count in drawn.items() if one.kind == kind) for kind in ("lightconv", "formula")})
    assert all(abs(count - 1400) < 150 for count in kinds.values())  # 5 standard deviations
    assert all(abs(count - 200) < 70 for one, count in drawn.items() if one.kind == "lightconv")
    turned = Counter(space.turn(Architecture.parse(f"{HEAD}: lightconv[kernel=65]"), 0, rng).layers[0].kind for _ in range(3000))
    assert all(abs(turned[kind] - 1000) < 130 for kind in ("lightconv", "formula", "attn"))


def test_where_nothing_is_shared_the_draws_are_as_they_were() -> None:
    space = Space.parse(f"{HEAD}: 3x{{attn|ffn|conv[kernel=3|5]}} {{attn ffn|}} ffn")
    for seed in range(20):
        rng = Random(seed)
        expected = [layer for slot in space.slots for layer in rng.choice(slot)]
        assert [*space.sample(Random(seed)).layers] == expected
    assert all(len(branch.alternatives) == 1 for slot in space.branches for branch in slot)


def test_a_share_of_the_formulas_is_plain_attention() -> None:
    for usual, few, many in ((0.0, 0.0, 0.05), (0.5, 0.4, 0.6), (1.0, 1.0, 1.0)):
        batches = along(iter(held(1) * 200), OPEN, 3, 0, usual)
        layers = [layer for batch in batches if batch.arch for layer in batch.arch.layers if layer.kind == "formula"]
        assert len(layers) > 200
        assert few <= sum(dict(one.options)["text"] == str(ATTENTION) for one in layers) / len(layers) <= many


def test_the_path_of_a_step_depends_on_the_seed_and_the_step_alone() -> None:
    whole = [batch.arch for batch in along(iter(held(1) * 30), OPEN, 3, 0, 0.5)]
    assert [batch.arch for batch in along(iter(held(1) * 18), OPEN, 3, 12, 0.5)] == whole[12:]
    assert [batch.arch for batch in along(iter(held(1) * 30), OPEN, 4, 0, 0.5)] != whole


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize("room", [0, 40_000, 1 << 30])
def test_candidates_with_formulas_have_the_scores_they_have_alone(precision: str, room: int) -> None:
    made, batches = MaskedLM(supernet(OPEN), SPECIAL), held()
    archs = [OPEN.sample(Random(number)) for number in range(12)]
    archs += [OPEN.vary(arch, slot, Random(slot)) for arch in archs[:4] for slot in (2, 4)]
    alone = [score(made, batches, arch, precision) for arch in archs]
    population = Population(made, batches, precision=precision, room=room)
    assert str([population.score(arch) for arch in archs]) == str(alone)  # as texts, for what is not a number
    assert str(population.score_all(archs)) == str(alone)
    assert len(set(map(str, alone))) > 12


def test_formulas_that_begin_alike_share_what_they_begin_with() -> None:
    made, batches = MaskedLM(supernet(OPEN), SPECIAL), held(1)
    population, strategy = Population(made, batches), Evolution(population=6, parents=3)
    history: list[Trial] = []
    for number in range(18):
        arch = propose(strategy, OPEN, history)
        assert arch is not None
        history.append(Trial(number, arch, -population.score(arch)["loss"]))
    different = {arch.layers[: end + 1] for arch in (trial.arch for trial in history) for end in range(len(arch))}
    assert population.layers == len(different) < sum(len(trial.arch) for trial in history)


def test_a_score_of_what_is_not_finite_is_not_finite() -> None:
    net = supernet(OPEN)
    made = MaskedLM(net, SPECIAL)
    arch = Architecture.parse(f"{HEAD}: formula ffn lightconv ffn lightconv ffn")
    with torch.no_grad():
        dict(net.named_parameters())["slots.0.1.0.body.value.weight"][0, 0] = torch.inf
    found = Population(made, held(1)).score(arch)
    assert not torch.tensor(found["loss"]).isfinite()
    other = replace(arch, layers=(Architecture.parse(f"{HEAD}: lightconv").layers[0], *arch.layers[1:]))
    assert torch.tensor(Population(made, held(1)).score(other)["loss"]).isfinite()


@pytest.fixture
def kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take kinds that a test declares away again."""
    for name in ("apart", "parted"):
        monkeypatch.setitem(KINDS, name, KINDS["ffn"])
        del KINDS[name]


class Scaled(nn.Module):
    """Rows of a table, as many as `rows` says; a buffer tells where they end."""

    open: ClassVar = {"formula": FormulaSpace.parse}

    def __init__(self, width: int, rows: int, formula: str):
        super().__init__()
        self.table = nn.Parameter(torch.ones(rows, width))
        self.register_buffer("factor", torch.tensor([2.0]), persistent=False)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor, context: object) -> torch.Tensor:
        return self.drop(x * self.table.sum(0) * self.factor)


def test_a_kind_of_ones_own_says_what_it_shares(kinds: None) -> None:
    class Parted(Scaled):
        shared: ClassVar = {"rows": max}

        @staticmethod
        def part(whole: dict[str, torch.Tensor], rows: int) -> dict[str, torch.Tensor]:
            return {**whole, "table": whole["table"][:rows]}

    layer("parted", rows=1, formula="q")(Parted)
    space = Space.parse("8 vocab=90 positions=24: {parted[rows=1|2|4]|ffn}")
    net = supernet(space)
    assert [name for name, _ in net.named_parameters() if "table" in name] == ["slots.0.0.0.body.table"]
    assert dict(net.named_parameters())["slots.0.0.0.body.table"].shape == (4, 8)
    arch = Architecture.parse("8 vocab=90 positions=24: parted[rows=2]")
    alone = Backbone(arch)
    alone.load_state_dict(net.weights_of(arch))
    assert torch.equal(trained(net, arch=arch), trained(alone))
    with pytest.raises(ValueError, match=r"cannot leave parted\[formula\] open: the kind does not say how its layers share"):
        Supernet(Space.parse("8 vocab=90 positions=24: {parted[formula=*8]|ffn}"))


def test_a_declaration_of_what_is_shared_is_checked_at_once(kinds: None) -> None:
    class Apart(Scaled):
        shared: ClassVar = {"rows": max}

    with pytest.raises(TypeError, match=r"Apart shares \['rows'\]: what is shared are options, and `part` tells the tensors"):
        layer("apart", rows=1, formula="q")(Apart)
    Apart.part = staticmethod(lambda whole, row: whole)  # type: ignore[attr-defined]
    Apart.shared = {"row": max}
    with pytest.raises(TypeError, match=r"Apart shares \['row'\]"):
        layer("apart", rows=1, formula="q")(Apart)
