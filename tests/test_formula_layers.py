"""The layers of AutoBERT-Zero: whatever formula is drawn, the layer keeps the contract; the found ones compute what they say."""

import importlib
import math
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerwright import Architecture, Backbone, Context, architecture
from layerwright.backbone import initialise
from layerwright.fingerprints import compute
from layerwright.formula_space import ATTENTION, FormulaSpace
from layerwright.formulas import Formula
from layerwright.handover import save_model
from layerwright.layers import FormulaAttention, LightweightConvolution, SelfAttention
from layerwright.layers import formula as module
from layerwright.layers.lightweight import slide
from layerwright.models import LayerwrightConfig, LayerwrightModel
from layerwright.operations import EACH, OPERATIONS, operation
from layerwright.testing import LayerContract, check_layer

SPACE = FormulaSpace.parse("*10")
FORMULAS = st.integers(0, 2**32).map(lambda seed: SPACE.sample(Random(seed)))
FOUND = [str(dict(one.options)["text"]) for one in architecture("autobert-zero-read").layers if one.kind == "formula"]
MASK = torch.arange(7) < torch.tensor([[7], [5], [2]])


def layer(text: str, width: int = 16, heads: int = 2, *, noise: float = 0.1) -> FormulaAttention:
    torch.manual_seed(0)
    made = FormulaAttention(width, heads, text)
    initialise(made)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    return made.eval()


def hidden(rows: int = 3, length: int = 7, width: int = 16) -> Tensor:
    return torch.randn(rows, length, width, generator=torch.Generator().manual_seed(1))


@settings(max_examples=15, deadline=None)
@given(FORMULAS)
def test_any_formula_obeys_the_layer_contract(formula: Formula):
    keep(formula)


@pytest.mark.parametrize("text", sorted(set(FOUND)))
def test_the_found_formulas_obey_the_layer_contract(text: str):
    keep(text)


def keep(text: str | Formula) -> None:
    """Check all promises of a layer but that it compiles, which takes seconds and is the same code for every formula."""
    contract = LayerContract()
    contract.layer, contract.width = f"formula[heads=2,text={text}]", 16
    for name in dir(contract):
        if name.startswith("test_") and "compiles" not in name:
            getattr(contract, name)()


@pytest.mark.parametrize(
    "text",
    [
        "matmul(euclidean(q,q),v)",  # the root of a distance of zero has no slope
        "matmul(matmul(q,t(k)),v)",  # no softmax: a map that is masked where it mixes
        "matmul(t(softmax(matmul(q,t(k)))),v)",  # rows of weights become columns, which padding must not enter
        "matmul(softmax(t(softmax(cosine(q,k)))),q)",
        "q",
    ],
)
def test_formulas_that_could_break_a_promise_obey_the_contract(text: str):
    keep(text)


def test_a_formula_of_all_sorts_of_steps_obeys_the_contract_compiled_too():
    text = "add(matmul(matmul(cosine(q,k),softsign(euclidean(q,k))),softmax(v)),matmul(softmax(matmul(q,t(logsigmoid(k)))),v))"
    check_layer(f"formula[heads=2,text={text}]", width=16)


@settings(max_examples=40, deadline=None)
@given(FORMULAS, st.sampled_from([torch.float32, torch.bfloat16]))
def test_any_formula_has_finite_gradients(formula: Formula, dtype: torch.dtype):
    """At the size of real layers: long rows, wide heads, and weights as they begin and as they may become."""
    for noise in (0.0, 0.05):
        made = layer(str(formula), width=128, heads=2, noise=noise).to(dtype).train()
        x = hidden(2, 64, 128).to(dtype).requires_grad_()
        y = made(x, Context(torch.arange(64) < torch.tensor([[64], [20]])))
        assert y.isfinite().all()
        (y.float() / y.detach().float().square().mean().sqrt().clamp(min=1e-20)).sum().backward()
        for name, value in [("x", x), *made.named_parameters()]:
            assert value.grad is not None
            assert value.grad.isfinite().all(), name


@settings(max_examples=40, deadline=None)
@given(FORMULAS)
def test_the_layer_computes_the_formula(formula: Formula):
    made, x = layer(str(formula)).double(), hidden().double()
    projections = {"q": "query", "k": "key", "v": "value"}
    inputs = {
        name: made.get_submodule(projections[name])(x).unflatten(-1, (2, 8)).transpose(1, 2).detach().numpy()
        for name in formula.inputs
    }
    mixed = torch.from_numpy(compute(formula, inputs, math.sqrt(8))[-1]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(made(x, Context()), made.out(mixed), rtol=1e-5, atol=1e-6)
    assert {name for name, _ in made.named_children()} == {"out", *(projections[name] for name in formula.inputs)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_default_is_attention(dtype: torch.dtype, dropout: float):
    ours, theirs = layer(str(ATTENTION), 64).to(dtype), SelfAttention(64, 2).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    assert Architecture.parse("64: formula").explicit().endswith(f"formula[heads=1,text={ATTENTION}]")
    x, documents = hidden(3, 7, 64).to(dtype), torch.tensor([[0, 0, 0, 1, 1, 1, 1]] * 3)
    for context in (Context(), Context(MASK), Context(MASK, documents)):
        outputs, maps = [], []
        for one in (ours, theirs):
            torch.manual_seed(7)
            outputs.append(one.train()(x, replace(context, dropout=dropout)))
            maps.append([])
            one.eval()(x, replace(context, maps=maps[-1]))
        assert torch.equal(*outputs)
        assert torch.equal(*(torch.stack(some) for some in maps))


@pytest.mark.parametrize(
    ("text", "attends"),
    [
        *((text, True) for text in FOUND),
        ("matmul(softmax(matmul(q,t(k))),v)", True),
        ("matmul(softmax(neg(scale(scale(matmul(q,t(k)))))),v)", True),
        ("add(q,matmul(softmax(matmul(q,t(matmul(softmax(matmul(k,t(q))),k)))),v))", True),
        ("matmul(softmax(cosine(q,k)),v)", False),
        ("matmul(t(softmax(matmul(q,t(k)))),v)", False),
        ("matmul(add(softmax(matmul(q,t(k))),cosine(q,k)),v)", False),
        ("add(matmul(softmax(matmul(q,t(k))),q),matmul(softmax(matmul(q,t(k))),v))", False),
    ],
)
def test_softmax_attention_in_disguise_runs_on_the_path_of_attention(text: str, attends: bool, monkeypatch):
    called = []

    def noted(*given: Tensor, **options: object) -> Tensor:
        called.append(1)
        return look(*given, **options)

    look = module.look
    monkeypatch.setattr(module, "look", noted)
    made = layer(text).double()
    found = made(hidden().double(), Context(MASK))
    assert bool(called) == attends
    monkeypatch.setattr(module, "_attention", lambda formula, stage: None)
    slow = layer(text).double()
    assert not any(stage.negative is not None for stage in slow.stages)
    torch.testing.assert_close(found[MASK], slow(hidden().double(), Context(MASK))[MASK], rtol=1e-5, atol=1e-6)


def test_the_found_formulas_are_those_of_the_figure():
    """Written with softplus, as the figure's chains of operations come to."""
    projections = [hidden(1, 6, 8).double() + shift for shift in range(3)]

    def wanted(q: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
        root = math.sqrt(8)
        z = F.logsigmoid(q) + q + k
        keys = [F.softplus(k), F.softplus(-z), F.softplus(-k), F.softplus(-k)]
        keys += [k / root + F.softsign(F.softsign(k) / root) + v, k / root + v]
        values = [q + k, q, q, q, v, v]
        return [(q @ key.mT / root).softmax(-1) @ value for key, value in zip(keys, values, strict=True)]

    for text, answer in zip(FOUND, wanted(*projections), strict=True):
        made = FormulaAttention(8, 1, text).double()
        for name, shift in (("query", 0), ("key", 1), ("value", 2)):
            if hasattr(made, name):
                linear = made.get_submodule(name)
                torch.nn.init.eye_(linear.weight)
                torch.nn.init.constant_(linear.bias, shift)
        torch.nn.init.eye_(made.out.weight)
        torch.nn.init.zeros_(made.out.bias)
        torch.testing.assert_close(made(hidden(1, 6, 8).double(), Context()), answer, rtol=1e-5, atol=1e-6)
    kernels = [dict(one.options)["kernel"] for one in architecture("autobert-zero-read").layers if one.kind == "lightconv"]
    assert kernels == [65, 9, 3, 7, 7, 3]


@pytest.mark.parametrize("text", sorted(set(FOUND)))
def test_bf16_stays_near_float32(text: str):
    made, x = layer(text, 64), hidden(2, 32, 64)
    exact, rounded = made(x, Context()), made.to(torch.bfloat16)(x.to(torch.bfloat16), Context()).float()
    assert (exact - rounded).square().mean().sqrt() < 0.02 * exact.square().mean().sqrt()


def test_maps_are_those_of_softmaxes():
    for text, count in [("matmul(softmax(cosine(q,k)),v)", 1), ("matmul(cosine(q,k),v)", 0), (str(ATTENTION), 1)]:
        maps: list[Tensor] = []
        layer(text)(hidden(), Context(MASK, maps=maps))
        assert len(maps) == count
        for one in maps:
            torch.testing.assert_close(one.sum(-1)[:, :, 0], torch.ones(3, 2))
            assert not one[1, :, :, 5:].any()


@torch.no_grad()
@pytest.mark.parametrize(("heads", "kernel", "length"), [(1, 3, 7), (3, 5, 7), (2, 65, 4), (6, 1, 5), (3, 7, 1)])
def test_lightconv_is_the_lightweight_convolution(heads: int, kernel: int, length: int):
    width = 6
    made = LightweightConvolution(width, heads, kernel).double().eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    w = {name: value.numpy() for name, value in made.state_dict().items()}
    x = torch.randn(2, length, width, dtype=torch.float64)
    wanted = np.zeros(x.shape)
    for row, tokens in enumerate(x.numpy()):
        gates = 1 / (1 + np.exp(-(tokens @ w["gate.weight"].T + w["gate.bias"])))
        u = (tokens @ w["value.weight"].T + w["value.bias"]) * gates
        for i in range(length):
            mixed = np.zeros(width)
            for channel in range(width):
                taps = np.exp(w["taps"][channel * heads // width])
                near = [(j, i + j - kernel // 2) for j in range(kernel) if 0 <= i + j - kernel // 2 < length]
                mixed[channel] = sum(taps[j] * u[place, channel] for j, place in near) / taps.sum()
            wanted[row, i] = mixed @ w["out.weight"].T + w["out.bias"]
    torch.testing.assert_close(made(x, Context()), torch.from_numpy(wanted), rtol=1e-5, atol=1e-5)


def test_a_smaller_kernel_is_the_middle_of_a_larger_one():
    x, weights = hidden(), torch.randn(2, 3)
    torch.testing.assert_close(slide(x, weights, Context()), slide(x, F.pad(weights, (31, 31)), Context()))


def test_lightconv_drops_taps_in_training_alone():
    made, x = LightweightConvolution(16, 2, 5).train(), hidden()
    assert torch.equal(made(x, Context()), made(x, Context()))
    assert not torch.equal(made(x, Context(dropout=0.5)), made(x, Context(dropout=0.5)))


def test_a_network_of_formulas_learns_and_keeps_its_weights(tmp_path: Path):
    text = str(architecture("autobert-zero-read-small").with_layers(architecture("autobert-zero-read-small").layers[-8:]))
    config = LayerwrightConfig(architecture=text.replace("256 embed=128", "64 vocab=50 positions=20"))
    model = LayerwrightModel(config).eval()
    save_model(tmp_path / "model", model)
    again = LayerwrightModel.from_pretrained(tmp_path / "model").eval()
    ids = torch.arange(24).reshape(2, 12)
    assert torch.equal(again(ids).last_hidden_state, model(ids).last_hidden_state)
    assert again.config.arch == model.config.arch
    net = Backbone(model.config.arch, dropout=0.1)
    with torch.autocast("cpu", torch.bfloat16):
        net(ids, torch.arange(12) < torch.tensor([[12], [5]])).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in net.parameters())


def test_formulas_export(tmp_path: Path):
    pytest.importorskip("onnx")
    export, runtime = (importlib.import_module(f"layerwright.{name}") for name in ("export", "runtime"))
    one = "matmul(euclidean(q,softmax(k)),logsigmoid(v))"
    other = "matmul(t(softmax(add(cosine(q,k),matmul(q,t(k))))),softsign(v))"
    layers = f"formula[heads=2,text={one}] formula[heads=2,text={other}] lightconv[heads=2,kernel=5]"
    config = LayerwrightConfig(architecture=f"32 vocab=30 positions=20: {layers}")
    traced = export.Traced(LayerwrightModel(config).eval()).eval()
    export.trace(traced).save(tmp_path / "model.onnx")
    gap, _ = export.check(traced, runtime.Session(tmp_path / "model.onnx"))
    assert 0 < gap < 1e-5


def test_rows_of_an_operation_of_ones_own_reach_nothing_that_is_not_seen():
    """A logarithm of a softmax is not 0 where it was given -infinity."""
    known = dict(OPERATIONS)
    try:
        operation("logsoftmax", EACH, lambda x: x, tensor=lambda x: x.log_softmax(-1), rows=True)
        made, x = layer("matmul(logsoftmax(matmul(q,t(k))),v)"), hidden()
        found = made(x, Context(MASK))
        for row, length in enumerate(MASK.sum(1).tolist()):
            alone = made(x[row : row + 1, :length], Context())
            torch.testing.assert_close(found[row : row + 1, :length], alone, rtol=1e-4, atol=1e-4)
    finally:
        OPERATIONS.clear()
        OPERATIONS.update(known)
