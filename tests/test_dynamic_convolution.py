"""Dynamic convolution as an operator: the expression's values and slopes, as one node of a graph, by Triton's kernels too."""

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from layerwright import dynamic_convolution, native
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.dynamic_convolution import convolve, convolve_backward, expression, mix
from layerwright.kernels import plain

needs_compiler = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler here")
DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3), (torch.float64, 1e-12)]


def drawn(rows: int, length: int, heads: int, size: int, taps: int, dtype: torch.dtype = torch.float32):
    """Draw x, logits, and which neighbours count."""
    chance = torch.Generator().manual_seed(rows + length + heads + size + taps)
    x, logits = (torch.randn(rows, length, *rest, generator=chance) for rest in ((heads * size,), (heads, taps)))
    return x.to(dtype).requires_grad_(), (3 * logits).to(dtype).requires_grad_(), torch.rand(rows, length, taps) < 0.7


def outcome(function, x: Tensor, logits: Tensor, near: Tensor | None) -> list[Tensor]:
    y = function(x, logits, near)
    slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, (x, logits), slope)]


def hold(found: list[Tensor], wanted: list[Tensor], tolerance: float) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.shape == theirs.shape
        assert (mine.double() - theirs.double()).norm() <= tolerance * theirs.double().norm() + 1e-12


@pytest.mark.parametrize("library", [native.library(), None])
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(2, 9, 3, 5, 5), (1, 70, 1, 64, 9), (2, 1, 2, 7, 15), (1, 40, 4, 16, 1)])
def test_it_is_the_expression(shape, masked, dtype, tolerance, library, monkeypatch):
    monkeypatch.setattr(native, "library", lambda: library)
    x, logits, near = drawn(*shape, dtype=dtype)
    inputs = x, logits, near if masked else None
    exact = [value.double() if value is not None and value.is_floating_point() else value for value in inputs]
    hold(outcome(convolve, *inputs), outcome(expression, *map(leaf, exact)), tolerance)


def leaf(value: Tensor | None) -> Tensor | None:
    return value.detach().requires_grad_() if value is not None and value.is_floating_point() else value


@pytest.mark.parametrize("masked", [False, True])
def test_torch_finds_no_fault_with_the_operators(masked):
    for dtype in (torch.float32, torch.float64):
        x, logits, near = drawn(2, 9, 3, 4, 5, dtype)
        inputs = x, logits, near if masked else None
        torch.library.opcheck(convolve, inputs)
        torch.library.opcheck(convolve_backward, (torch.ones_like(x), *(v if v is None else v.detach() for v in inputs)))


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 3),
    length=st.integers(1, 12),
    heads=st.integers(1, 3),
    size=st.integers(1, 6),
    half=st.integers(0, 7),
    token=st.integers(0, 11),
)
def test_a_slope_reaches_the_neighbours_and_nobody_else(rows, length, heads, size, half, token):
    x, logits, _ = drawn(rows, length, heads, size, 2 * half + 1)
    token %= length
    dx, dlogits = torch.autograd.grad(convolve(x, logits, None)[:, token].sum(), (x, logits))
    away = (torch.arange(length) - token).abs()
    assert not dx[:, away > half].any()
    assert dx[:, away <= half].all()
    assert not dlogits[:, away > 0].any()
    # To raise all logits of a token alike changes nothing.
    torch.testing.assert_close(dlogits.sum(-1), torch.zeros(rows, length, heads), rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_compiler)])
def test_compiled_it_is_one_node(backend):
    torch.compiler.reset()
    seen: list[str] = []

    def watch(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return torch._dynamo.lookup_backend(backend)(graph, inputs)

    def function(x, logits, near):
        return mix(2 * x, logits, near)

    compiled = torch.compile(function, backend=watch, fullgraph=True, dynamic=True)
    for length in (9, 14):
        inputs = drawn(2, length, 3, 4, 5)
        hold(outcome(compiled, *inputs), outcome(function, *inputs), 1e-6)
    assert seen.count("layerwright.convolve.default") == 1
    assert len(seen) < 5


def test_a_compiled_backbone_has_the_values_and_slopes_of_an_eager_one():
    torch.compiler.reset()
    torch.manual_seed(0)
    net = Backbone(Architecture.parse("32 vocab=50: conv sdconv mixed ffn"), 0.0)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    ids, documents, outcomes = torch.arange(40).view(2, 20), torch.arange(40).view(2, 20) % 20 // 7, []
    for run in (net, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=run is not net):
            states = run(ids, None, None, documents)
        outcomes.append([states.detach(), *torch.autograd.grad(states.float().square().mean(), list(net.parameters())[5:])])
    for mine, theirs in zip(*outcomes, strict=True):
        assert (mine - theirs).norm() <= 5e-2 * theirs.norm() + 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_lowers_it_to_its_precision(dtype):
    inputs = drawn(2, 9, 3, 4, 5)
    with torch.autocast("cpu", dtype):
        found = convolve(*inputs)
        compiled = torch.compile(mix, backend="aot_eager", fullgraph=True)(*inputs)
    assert found.dtype == compiled.dtype == dtype
    assert torch.equal(found, compiled)
    assert [slope.dtype for slope in torch.autograd.grad(found.sum(), inputs[:2])] == [torch.float32] * 2
    assert convolve(*inputs).dtype == torch.float32


def test_exported_graphs_hold_the_expression():
    class Mix(torch.nn.Module):
        def forward(self, x: Tensor, logits: Tensor) -> Tensor:
            return mix(x, logits, None)

    x, logits, _ = drawn(2, 9, 3, 4, 5)
    for strict in (False, True):
        program = torch.export.export(Mix(), (x.detach(), logits.detach()), strict=strict)
        assert not any("layerwright" in str(node.target) for node in program.graph.nodes)
        torch.testing.assert_close(program.module()(x, logits), expression(x, logits, None))


def test_plainly_it_can_be_differentiated_twice():
    x, logits, near = drawn(1, 6, 1, 2, 3, torch.float64)
    with plain():
        assert torch.autograd.gradgradcheck(lambda x, logits: mix(x, logits, near), (x, logits))


def test_triton_is_not_imported_before_a_tensor_needs_it():
    code = "import sys, layerwright.layers.convolution; sys.exit('layerwright.triton_convolution' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


INTERPRETED = """
import torch
from layerwright import triton_convolution
from layerwright.dynamic_convolution import _Quick, expression

torch.set_num_threads(1)
shapes = [(2, 9, 3, 5, 5), (1, 70, 1, 64, 9), (2, 1, 1, 83, 15), (2, 33, 1, 200, 1), (1, 5, 2, 8, 35)]
cases = [(shape, masked, torch.float32, 1e-6) for shape in shapes for masked in (False, True)]
cases += [(shapes[0], True, dtype, tolerance) for dtype, tolerance in ((torch.bfloat16, 8e-3), (torch.float16, 1e-3))]
for (rows, length, heads, size, taps), masked, dtype, tolerance in cases:
    torch.manual_seed(0)
    # Part of a wider product, as a layer's value may be.
    x = torch.randn(rows, length, heads * size + 4)[..., 2:-2].to(dtype).requires_grad_()
    logits = (3 * torch.randn(rows, length, heads, taps)).to(dtype).requires_grad_()
    near = torch.rand(rows, length, taps) < 0.7 if masked else None
    y, exact = _Quick.apply(x, logits, near), expression(x.double(), logits.double(), near)
    slope = torch.randn(y.shape).to(dtype)
    found = y, *torch.autograd.grad(y, (x, logits), slope)
    wanted = exact, *torch.autograd.grad(exact, (x, logits), slope.double())
    for mine, theirs in zip(found, wanted):
        assert mine.shape == theirs.shape and mine.dtype == dtype
        gap = (mine.double() - theirs.double()).norm() / (theirs.double().norm() + 1e-9)
        assert gap < tolerance, (rows, length, heads, size, taps, masked, dtype, gap)
print("all the same")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is not installed")
def test_the_kernels_of_triton_are_the_expression():
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], capture_output=True, text=True, env=environment)
    assert done.stdout.endswith("all the same\n"), done.stderr


def test_without_triton_or_a_device_for_it_its_kernels_are_not_asked_for(monkeypatch):
    x = torch.zeros(1, 1, 1)
    assert not dynamic_convolution._compiles(x)
    monkeypatch.setattr(dynamic_convolution, "_installed", lambda: False)
    assert not dynamic_convolution._compiles(torch.empty(1, device="meta"))
