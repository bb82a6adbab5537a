"""The compiled passes against the plain expressions: values, gradients, chance; and where they must not run."""

import os
import platform
import shutil
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from layerwright import fused, fused_convolution, kernels, native
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.kernels import plain
from layerwright.layers import Context, convolution

needs_compiler = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler here")
DTYPES = [(torch.float32, 2e-5), (torch.bfloat16, 3e-2)]
MASK = torch.tensor([[True] * 9, [False, True, True, True, True, False, True, False, False], [False] * 9])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 2, 2], [0, 0, 1, 1, 1, 2, 2, 2, 2], [0] * 9])
CONTEXTS = [Context(), Context(MASK), Context(None, DOCUMENTS), Context(MASK, DOCUMENTS)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


MASK_OF_TWO = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


@pytest.fixture
def counted(monkeypatch):
    """Which passes ran."""
    names: list[str] = []
    run = native.call
    for module in (fused, fused_convolution):
        monkeypatch.setattr(module, "call", lambda name, *rest: (names.append(name), run(name, *rest)))
    return names


@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="there is no C++ compiler here")
def test_the_passes_can_be_compiled():
    """Else nothing of them would be tested: where they cannot, the forms of `kernels` run, and nobody is told."""
    assert native.library() is not None


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape).to(dtype).requires_grad_()


def both_ways(function, *inputs: Tensor, tolerance: float, weights: tuple[Tensor, ...] = ()) -> None:
    """Hold that values and gradients are those of the plain expressions, as a share of their norm."""
    outcomes = []
    for ways in (None, plain()):
        with torch.autocast("cpu", torch.bfloat16, enabled=inputs[0].dtype == torch.bfloat16):
            if ways is None:
                y = function(*inputs)
            else:
                with ways:
                    y = function(*inputs)
        slope = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y.dtype)
        outcomes.append([y, *torch.autograd.grad(y, [*inputs, *weights], slope)])
    for found, expected in zip(*outcomes, strict=True):
        assert found.shape == expected.shape
        difference = (found.float() - expected.float()).norm()
        assert difference <= tolerance * expected.float().norm() + 1e-12


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("heads", [1, 3])
def test_attend_is_attention_over_what_is_visible(dtype, tolerance, context, heads, counted):
    def function(q, k, v):
        return fused.attend(q, k, v, heads=heads, visible=context.visible(), p=0.0)

    both_ways(function, *(leaf(3, 9, 6, dtype=dtype) for _ in range(3)), tolerance=tolerance)
    # In float32, where all is seen and nothing dropped, PyTorch's own is as quick.
    assert ("attend" in counted) == ("attend_backward" in counted) == (dtype == torch.bfloat16 or context != Context())


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("width", [5, 16, 37, 64, 200])
@pytest.mark.parametrize("hidden", [False, True])
def test_a_residual_and_its_norm(dtype, tolerance, width, hidden, counted):
    norm = nn.LayerNorm(width)
    nn.init.uniform_(norm.weight, -2, -0.5)
    nn.init.uniform_(norm.bias, -1, 1)
    if hidden:  # a channel whose result does not tell what went in
        norm.weight.data[width // 2] = 0

    def function(x, y):
        return fused.add_norm(x, y, norm, 0.0)

    both_ways(
        function, leaf(3, 70, width, dtype=dtype), leaf(3, 70, width, dtype=dtype), tolerance=tolerance, weights=(norm.bias,)
    )
    assert counted.count("add_norm") == 1


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
def test_maps_of_one_input_are_one_product(dtype, tolerance, counted):
    maps = [nn.Linear(12, size) for size in (5, 1, 20)]
    weights = tuple(parameter for linear in maps for parameter in linear.parameters())
    both_ways(lambda x: torch.cat(fused.project(x, *maps), -1), leaf(3, 9, 12, dtype=dtype), tolerance=tolerance, weights=weights)
    assert counted == ["slopes" if native.offers("slopes", torch.empty(0, dtype=dtype)) else "column_sums"]


def two_matrices(rows, *widths):
    random = torch.Generator().manual_seed(rows)
    return [torch.randn(rows, size, generator=random).bfloat16() for size in widths]


@needs_compiler
@pytest.mark.parametrize("rows", [0, 1, 31, 32, 33, 64, 127, 129, 300])
@pytest.mark.parametrize("width", [1, 15, 16, 36, 64, 200])
@pytest.mark.parametrize("inner", [3, 24, 32, 100])
def test_slopes_of_a_map_are_sums_over_rows(rows, width, inner):
    grad, x = two_matrices(rows, width, inner)
    weight, bias = fused.slopes_of(grad, x)
    rounded = 0 if native.offers("slopes", grad) else 0.01
    torch.testing.assert_close(weight.double(), grad.double().t() @ x.double(), rtol=rounded, atol=rounded * rows**0.5 + 1e-4)
    torch.testing.assert_close(bias.double(), grad.double().sum(0), rtol=0, atol=1e-4)
    known = torch.zeros(width)
    again, same = fused.slopes_of(grad, x, known)
    assert same is known
    assert torch.equal(again, weight)
    shares = torch.rand(rows).bfloat16()
    again, counted = fused.slopes_of(grad, x, shares=shares)
    assert torch.equal(again, weight)
    torch.testing.assert_close(counted.double(), shares.double() @ grad.double(), rtol=rounded, atol=rounded * rows**0.5 + 1e-4)


@needs_compiler
@pytest.mark.parametrize(("width", "inner"), [(64, 64), (70, 300), (1200, 500)])
def test_slopes_do_not_depend_on_how_many_threads_there_are(width, inner):
    grad, x = two_matrices(500, width, inner)
    if not native.offers("slopes", grad):
        pytest.skip("oneDNN multiplies here")
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            found.append(fused.slopes_of(grad, x))
    finally:
        torch.set_num_threads(threads)
    for weight, bias in found[1:]:
        assert torch.equal(weight, found[0][0])
        assert torch.equal(bias, found[0][1])


@needs_compiler
@pytest.mark.parametrize("level", [26, 128])
@pytest.mark.parametrize("width", [64, 100])
def test_numbers_are_dropped_whatever_becomes_of_others(level, width):
    """A hash decides on four: whether two are dropped, whichever, is as likely as for two coins."""
    norm, y = nn.LayerNorm(width), torch.ones(4096, width, requires_grad=True)
    fused.add_norm(torch.randn(4096, width), y, norm, level / 256).backward(torch.randn(4096, width))
    dropped = (y.grad == 0).double()
    chance, rows = level / 256, len(dropped)
    assert dropped.mean() == pytest.approx(chance, abs=5 * (chance / dropped.numel()) ** 0.5)
    both = dropped.t() @ dropped / rows
    off = both[~torch.eye(width, dtype=torch.bool)] - chance**2
    assert off.abs().max() < 6 * (chance**2 / rows) ** 0.5
    assert (dropped[1:] * dropped[:-1]).mean() == pytest.approx(chance**2, abs=5 * chance / dropped.numel() ** 0.5)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("width", "ahead"), [(192, 0), (193, 0), (194, 1), (194, 2)])
def test_attention_reads_heads_where_they_lie(dtype, width, ahead, counted):
    """Tokens an odd number apart too, and numbers that begin between two words."""
    wide = torch.randn(2, 64, width, requires_grad=True).to(dtype)
    parts = wide[..., ahead : ahead + 192].split(64, -1)
    copies = [part.detach().clone().requires_grad_() for part in parts]
    context = Context(None, torch.arange(64).expand(2, 64) // 20)
    outcomes, slope = [], torch.randn(2, 64, 64).to(dtype)
    for inputs in (parts, copies):
        y = fused.attend(*inputs, heads=2, visible=context.visible(), p=0.0)
        outcomes.append([y, *torch.autograd.grad(y, inputs, slope)])
    assert counted == ["attend", "attend_backward"] * 2
    assert all(map(torch.equal, *outcomes))


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("rows", [1, 5])
def test_a_feed_forward_layer(dtype, tolerance, rows):
    up, out = nn.Linear(8, 24), nn.Linear(24, 8)
    weights = (*up.parameters(), *out.parameters())
    x = leaf(rows, 10, 8, dtype=dtype)
    both_ways(lambda x: fused.feed_forward(3 * x, up, out), x, tolerance=tolerance, weights=weights)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 3e-7), (torch.bfloat16, 4e-3)])
def test_gelu_and_its_slope_everywhere(dtype, tolerance):
    x = torch.linspace(-40, 40, 40_001).to(dtype)[:, None].contiguous()
    found, none = torch.empty_like(x), torch.zeros(1)
    native.call("gelu", x, x, none, found, *x.shape)
    exact = x.double().requires_grad_()
    expected = torch.nn.functional.gelu(exact)
    assert ((found.double() - expected).abs() <= tolerance * (0.1 + exact.abs())).all()
    slope, total = torch.ones_like(x), torch.empty(1)
    native.call("gelu_backward", x, x, none, slope, found, total, *x.shape)
    (wanted,) = torch.autograd.grad(expected.sum(), exact)
    assert ((slope.double() - wanted).abs() <= 2 * tolerance).all()
    assert total.item() == pytest.approx(wanted.sum().item(), rel=1e-3)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("heads", "size", "kernel"), [(1, 5, 3), (3, 16, 1), (2, 83, 15)])
def test_convolve_mixes_neighbours(dtype, tolerance, context, heads, size, kernel, counted):
    def function(x, logits):
        return convolution.convolve(x, logits, context)

    both_ways(function, leaf(3, 9, heads * size, dtype=dtype), leaf(3, 9, heads, kernel, dtype=dtype), tolerance=tolerance)
    assert "convolve" in counted


@needs_compiler
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("heads", "size", "kernel"), [(5, 64, 9), (3, 100, 21), (2, 300, 5)])
def test_convolve_goes_through_long_rows_piece_by_piece(heads, size, kernel, apart):
    context = Context(documents=torch.randint(3, (2, 150)).sort().values if apart else None)
    inputs = leaf(2, 150, heads * size), leaf(2, 150, heads, kernel)
    both_ways(lambda x, logits: convolution.convolve(x, logits, context), *inputs, tolerance=1e-6)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("rows", "products"), [(3, 2), (30, 1)])
def test_two_maps_one_after_the_other_are_one_where_that_is_less_to_do(dtype, tolerance, rows, products, monkeypatch):
    first, second, ran = nn.Linear(24, 40), nn.Linear(40, 20), []
    monkeypatch.setattr(fused, "linear", lambda *given, run=fused.linear: (ran.append("product"), run(*given))[1])
    monkeypatch.setattr(fused_convolution, "linear", fused.linear)
    x, weights = leaf(rows, 6, 24, dtype=dtype), tuple(parameter for each in (first, second) for parameter in each.parameters())
    with torch.no_grad():
        fused_convolution.chain(x, first, second)
    assert len(ran) == products
    both_ways(lambda x: fused_convolution.chain(x, first, second), x, tolerance=tolerance, weights=weights)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("vocab", [3, 256, 700])
def test_surprise_is_cross_entropy(dtype, tolerance, vocab):
    bias, targets = leaf(vocab), torch.randint(vocab, (150,))
    x, matrix = leaf(150, 8, dtype=dtype), leaf(vocab, 8)
    both_ways(lambda x: fused.surprise(x, matrix, bias, targets)[0], x, tolerance=tolerance, weights=(matrix, bias))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        nats, tokens = fused.surprise(x, matrix, bias, targets)
        expected = fused.surprise(x[60:130], matrix, bias, targets[60:130])
        with plain():
            likeliest = fused.surprise(x, matrix, bias, targets)[1]
    torch.testing.assert_close(nats[60:130], expected[0], rtol=tolerance, atol=tolerance)  # whatever else is worked out with it
    assert dtype != torch.float32 or torch.equal(tokens, likeliest)  # in few bits several may be


@needs_compiler
def test_surprise_draws_tokens_as_often_as_is_their_chance():
    count, vocab = 20_000, 600
    logits = torch.randn(vocab) * 2
    with torch.no_grad():
        targets = torch.zeros(count, dtype=torch.long)
        x, matrix = torch.ones(count, 1), torch.zeros(vocab, 1)
        tokens = fused.surprise(x, matrix, logits, targets, torch.rand(count))[1]
        ends = fused.surprise(x[:2], matrix, logits, targets[:2], torch.tensor([0.0, 1 - 2**-24]))[1]
    chances = logits.softmax(-1)
    found = torch.bincount(tokens, minlength=vocab) / count
    assert ((found - chances).abs() <= 5 * (chances * (1 - chances) / count).sqrt() + 1e-4).all()
    assert ends.tolist() == [0, vocab - 1]


@needs_compiler
def test_convolve_reads_part_of_a_wider_product():
    wide, logits = leaf(2, 9, 40), leaf(2, 9, 2, 5)

    def function(wide, logits):
        return convolution.convolve(wide[..., 8:24], logits, Context())

    both_ways(function, wide, logits, tolerance=1e-6)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("width", "kernel", "length"), [(3, 3, 20), (64, 9, 20), (90, 31, 20), (300, 5, 150)])
def test_depthwise_is_conv1d(dtype, width, kernel, length, apart, counted):
    x, weight = leaf(3, length, width, dtype=dtype), leaf(width, 1, kernel)
    context = Context(documents=torch.randint(3, (3, length)).sort().values if apart else None)
    found = convolution.depthwise(x, weight, context)
    exact = [value.detach().double().requires_grad_() for value in (x, weight)]
    expected = convolution.depthwise(*exact, context)
    slope = torch.randn(expected.shape).to(dtype)
    pairs = zip(
        [found, *torch.autograd.grad(found, (x, weight), slope)],
        [expected, *torch.autograd.grad(expected, exact, slope.double())],
        strict=True,
    )
    for mine, theirs in pairs:
        assert (mine.double() - theirs).norm() <= (1e-6 if dtype == torch.float32 else 4e-3) * theirs.norm()
    assert counted == ["depthwise", "depthwise_backward"]


@needs_compiler
def test_dropout_of_a_residual_drops_the_same_both_ways():
    x, y, norm = torch.zeros(40, 25, 32), leaf(40, 25, 32), nn.LayerNorm(32)
    p = 0.25
    fused.add_norm(x, y, norm, p).backward(torch.randn(40, 25, 32))
    kept = y.grad != 0
    share = kept.float().mean().item()
    assert abs(share - (1 - p)) < 4 * (p * (1 - p) / y.numel()) ** 0.5
    torch.manual_seed(3)
    first = fused.add_norm(x, y, norm, p)
    torch.manual_seed(3)
    (slope,) = torch.autograd.grad(fused.add_norm(x, y, norm, p), y, torch.randn(40, 25, 32))
    # What was dropped has no gradient, and no part in the result.
    with torch.no_grad():
        torch.manual_seed(3)
        changed = fused.add_norm(x, torch.where(slope == 0, 100.0, y), norm, p)
    torch.testing.assert_close(changed, first)
    assert not torch.equal(fused.add_norm(x, y, norm, p), first)


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_of_attention_is_one_linear_map_of_the_values(dtype):
    q, k, v = (leaf(4, 64, 32, dtype=dtype) for _ in range(3))
    torch.manual_seed(5)
    y = fused.attend(q, k, v, heads=2, visible=None, p=0.5)
    g = torch.randn(y.shape).to(dtype)
    (dv,) = torch.autograd.grad(y, v, g)
    # <g, A v> = <A^T g, v>: the weights that were dropped are the same in both directions.
    left, right = (g.double() * y.double()).sum(), (dv.double() * v.double()).sum()
    assert abs(left - right) < (1e-5 if dtype == torch.float32 else 2e-2) * y.double().norm() * g.double().norm() / 8
    with torch.no_grad():
        even = fused.attend(q * 0, k * 0, torch.ones_like(v), heads=2, visible=None, p=0.5).float()
    assert abs(even.mean().item() - 1) < 0.02
    assert even.std() > 0.05


@needs_compiler
def test_slopes_of_attention_with_dropout_are_those_of_differences():
    q, k, v = (leaf(1, 6, 8) for _ in range(3))
    g = torch.randn(1, 6, 8)

    def value(q, k, v):
        torch.manual_seed(11)
        return (fused.attend(q, k, v, heads=2, visible=None, p=0.3) * g).sum()

    grads = torch.autograd.grad(value(q, k, v), (q, k, v))
    with torch.no_grad():
        for which in range(3):
            step = 1e-2 * torch.randn(1, 6, 8)
            up, down = ([x + sign * step if at == which else x for at, x in enumerate((q, k, v))] for sign in (1, -1))
            difference = (value(*up) - value(*down)).item() / 2
            assert difference == pytest.approx((grads[which] * step).sum().item(), rel=2e-2, abs=2e-5)


TILES = "-mno-amx-tile -mno-amx-bf16"


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instructions left out are those of x86-64")
@pytest.mark.parametrize("without", ["", TILES, f"{TILES} -mno-avx512bf16", f"{TILES} -mno-avx512f"])
def test_attention_is_the_same_with_whatever_a_processor_has(without, tmp_path):
    """Against PyTorch's in float64; and with dropout that in bf16 against float32, which hashes the same numbers."""
    compiler = tmp_path / "compiler"
    compiler.write_text(f'#!/bin/sh\nexec g++ "$@" {without}\n')
    compiler.chmod(0o755)
    code = f"""
import torch
from layerwright import fused, native
assert native.library() is not None
for number, (rows, length, heads, size, seen) in enumerate({ATTENDED!r}):
    torch.manual_seed(number)
    parts = [torch.randn(rows, length, heads * size).bfloat16() for _ in range(4)]
    shape = (rows, 1, length if seen == "some" else 1, length)
    visible = None if seen == "all" else torch.rand(shape) < 0.7
    if seen == "documents":
        document = torch.randint(0, 9, (rows, 1, length)).sort()[0]
        visible = (document[..., None] == document[:, :, None]) & (torch.rand(rows, 1, 1, length) < 0.9)
    def both_ways(dtype, p):
        torch.manual_seed(number)
        q, k, v, grad = (part.to(dtype).requires_grad_() for part in parts)
        y = fused.attend(q, k, v, heads=heads, visible=visible, p=p)
        return [y, *torch.autograd.grad(y, (q, k, v), grad)]
    exact, dropped = both_ways(torch.float64, 0.0), both_ways(torch.float32, 0.3)
    for dtype, p, all_right, tolerance in [
        (torch.float32, 0.0, exact, 1e-5), (torch.bfloat16, 0.0, exact, 1e-2), (torch.bfloat16, 0.3, dropped, 1e-2)
    ]:
        for mine, right in zip(both_ways(dtype, p), all_right):
            assert (mine - right).norm() <= tolerance * right.norm() + 1e-6, (number, dtype, p, mine, right)
"""
    environment = os.environ | {"CXX": str(compiler), "LAYERWRIGHT_NATIVE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


# Rows, tokens, heads, channels of a head, and which tokens a token sees.
ATTENDED = [
    (2, 128, 2, 64, "all"),
    (1, 300, 1, 48, "some"),
    (3, 9, 4, 5, "keys"),
    (2, 33, 3, 32, "some"),
    (1, 1, 1, 1, "all"),
    (2, 500, 1, 32, "documents"),
]


@needs_compiler
def test_sums_do_not_depend_on_the_number_of_threads():
    norm, outcomes = nn.LayerNorm(24), []
    x, y, g = (torch.randn(3, 200, 24) for _ in range(3))
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            torch.manual_seed(0)
            outcomes.append(torch.autograd.grad(fused.add_norm(x, y, norm, 0.1), [norm.weight, norm.bias], g))
    finally:
        torch.set_num_threads(threads)
    for other in outcomes[1:]:
        for a, b in zip(outcomes[0], other, strict=True):
            assert torch.equal(a, b)


@needs_compiler
def test_a_map_that_somebody_has_wrapped_is_called():
    maps, seen = [nn.Linear(4, 4), nn.Linear(4, 4)], []
    maps[1].register_forward_hook(lambda *rest: seen.append(rest[-1]))
    x = torch.randn(1, 3, 4)
    found = fused.project(x, *maps)
    assert len(seen) == 1
    assert torch.equal(found[1], seen[0])
    feed = nn.Linear(4, 4)
    feed.register_forward_pre_hook(lambda module, inputs: (inputs[0] * 0,))
    torch.testing.assert_close(fused.feed_forward(x, maps[0], feed), feed.bias.expand(1, 3, 4))
    torch.testing.assert_close(fused_convolution.chain(x.expand(9, 3, 4), maps[0], feed), feed.bias.expand(9, 3, 4))


def test_frozen_weights_get_no_gradient():
    linear = nn.Linear(4, 4).requires_grad_(False)
    x = leaf(1, 3, 4)
    fused.project(x, linear)[0].sum().backward()
    assert x.grad is not None
    assert linear.weight.grad is None


@needs_compiler
@pytest.mark.parametrize("frozen", [False, True])
def test_slopes_of_two_maps_that_are_one_are_added_up_only_where_they_learn(frozen, counted):
    first, second = (nn.Linear(4, 4).requires_grad_(not frozen) for _ in range(2))
    fused_convolution.chain(leaf(3, 3, 4), first, second).sum().backward()
    assert bool(counted) != frozen
    assert all((parameter.grad is None) == frozen for each in (first, second) for parameter in each.parameters())


@pytest.mark.parametrize("change", [{"LAYERWRIGHT_NATIVE": "0"}, {"CXX": "false"}, {"CXX": "no-such-compiler"}])
def test_without_a_compiler_the_same_is_computed(change, tmp_path):
    text = "32 vocab=50: attn conv mixed ffn"
    code = f"""
import torch
from layerwright import native
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
torch.manual_seed(0)
net = Backbone(Architecture.parse({text!r}), 0.0)
states = net(torch.arange(40).view(2, 20))
states.square().sum().backward()
assert native.library() is None
torch.save([states.detach(), *(parameter.grad for parameter in net.parameters())], {str(tmp_path / "found")!r})
"""
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)} | change
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    found = torch.load(tmp_path / "found", weights_only=True)
    torch.manual_seed(0)
    net = Backbone(Architecture.parse(text), 0.0)
    states = net(torch.arange(40).view(2, 20))
    states.square().sum().backward()
    for mine, theirs in zip([states.detach(), *(parameter.grad for parameter in net.parameters())], found, strict=True):
        assert (mine - theirs).norm() <= 1e-4 * theirs.norm() + 1e-4


@needs_compiler
def test_nothing_of_this_runs_where_the_plain_forms_are_asked_for(counted):
    net = Backbone(Architecture.parse("32 vocab=50: attn conv sdconv mixed ffn"), 0.1)
    with plain():
        net(torch.arange(20)[None])
    net.double()(torch.arange(20)[None])
    assert counted == []
    net.float()(torch.arange(20)[None])
    assert {"add_norm", "attend", "convolve", "depthwise", "gelu"} <= set(counted)


@needs_compiler
def test_half_precision_weights_train_too():
    net = Backbone(Architecture.parse("32 vocab=50: attn conv mixed ffn"), 0.1).bfloat16()
    net(torch.arange(40).view(2, 20)).float().square().sum().backward()
    assert all(parameter.grad.dtype == torch.bfloat16 for parameter in net.parameters() if parameter.grad is not None)
    assert kernels.fast(net.embed.token.weight)


@needs_compiler
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(
    "layer",
    [
        "mixed[heads=2]",
        "mixed[heads=4,ratio=4,kernel=5]",
        "mixed[heads=3,form=transformers]",
        "mixed[heads=1]",
        "conv[heads=2]",
        "conv[heads=3,kernel=5]",
    ],
)
def test_a_layer_that_convolves_at_once(monkeypatch, layer, apart, dtype, tolerance):
    monkeypatch.setattr(fused_convolution, "looking", lambda *_: 0)  # in float32 without dropout, PyTorch's attention is as fast
    torch.manual_seed(0)
    arch = Architecture.parse(f"24: {layer}")
    body = Backbone(arch, dropout=0.0).layers[0].body
    with torch.no_grad():
        for parameter in body.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    context = Context(documents=torch.tensor([[0] * 5 + [1] * 8, [0] * 13]) if apart else None)
    x = leaf(2, 13, 24, dtype=dtype)
    assert body.at_once(x, context) is not None
    # To the bias of keys a softmax is indifferent: its gradient is rounding alone.
    weights = tuple(parameter for name, parameter in body.named_parameters() if name != "key.bias")
    both_ways(lambda x: body(x, context), x, tolerance=tolerance, weights=weights)


@needs_compiler
def test_mixed_attention_is_composed_where_it_must_be():
    body = Backbone(Architecture.parse("24: mixed[heads=2]"), dropout=0.0).layers[0].body
    x = leaf(2, 13, 24, dtype=torch.float32)
    assert body.at_once(x, Context(dropout=0.1)) is not None
    assert body.at_once(x, Context()) is None, "PyTorch's own attention is as fast"
    assert body.at_once(x, Context(dropout=0.1, mask=torch.ones(2, 13, dtype=torch.bool))) is None
    assert body.at_once(x, Context(dropout=0.1, maps=[])) is None
    with torch.no_grad():
        assert body.at_once(x, Context(dropout=0.1)) is None
    with plain():
        assert body.at_once(x, Context(dropout=0.1)) is None
    body.query.register_forward_hook(lambda *_: None)
    assert body.at_once(x, Context(dropout=0.1)) is None


@needs_compiler
def test_a_convolution_is_composed_where_it_must_be():
    body = Backbone(Architecture.parse("24: conv[heads=2]"), dropout=0.0).layers[0].body
    x = leaf(2, 13, 24)
    assert body.at_once(x, Context()) is not None
    assert body.at_once(x, Context(mask=torch.ones(2, 13, dtype=torch.bool))) is None
    with torch.no_grad():
        assert body.at_once(x, Context()) is None
    with plain():
        assert body.at_once(x, Context()) is None
    body.gate.register_forward_hook(lambda *_: None)
    assert body.at_once(x, Context()) is None


@pytest.mark.parametrize("mask", [None, MASK_OF_TWO])
@pytest.mark.parametrize("layer", ["attn", "ffn", "conv", "sdconv", "mixed[heads=2]", "lightconv", "formula"])
def test_states_that_are_computed_again_have_the_same_gradients(layer, mask):
    torch.manual_seed(0)
    net = Backbone(Architecture.parse(f"16: {layer}"))
    x, found = leaf(2, 7, 16), []
    for again in (False, True):
        torch.manual_seed(1)
        context = Context(mask, dropout=0.1)
        y = checkpoint(net.layers[0], x, context, use_reentrant=False) if again else net.layers[0](x, context)
        found.append(torch.autograd.grad(y.square().sum(), [x, *net.layers.parameters()]))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
