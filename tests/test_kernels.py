"""Every fast path against the plain expressions it stands for: values, gradients, chance, and where it must not run."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from layerwright import kernels
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.batches import Batch
from layerwright.kernels import add_norm, attend, convolve, depthwise, drop, noise, pick, plain, surprise
from layerwright.layers import Context, convolution
from layerwright.objectives import MaskedLM, ReplacedTokenDetection
from layerwright.vocabulary import Special

MASK = torch.tensor([[True] * 7, [False, True, True, True, True, False, False], [False] * 7])
DOCUMENTS = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 0, 1, 1, 1, 2, 2], [0] * 7])
CONTEXTS = [Context(), Context(MASK), Context(None, DOCUMENTS), Context(MASK, DOCUMENTS)]


def leaf(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype).requires_grad_()


def seeded(function, *inputs):
    """A function whose chance is the same at every call, as a check by differences needs it."""
    torch.manual_seed(7)
    return function(*inputs)


def same_both_ways(function, *inputs: Tensor, tolerance: float = 1e-12) -> None:
    """Hold that a function and its gradients are the same inside and outside `plain()`."""
    found = function(*inputs)
    with plain():
        expected = function(*inputs)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    slope = torch.randn_like(expected)
    grads = [torch.autograd.grad(y, inputs, slope) for y in (found, expected)]
    torch.testing.assert_close(*grads, rtol=tolerance, atol=tolerance)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("heads", [1, 3])
def test_attend_is_scaled_dot_product_attention(context, heads):
    def function(q, k, v):
        return attend(q, k, v, heads=heads, visible=context.visible(), p=0.0)

    # Only in low precision are the two forms not the same one.
    same_both_ways(function, *(leaf(3, 7, 6, dtype=torch.bfloat16) for _ in range(3)), tolerance=0.04)


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize("heads", [1, 2])
def test_attend_drops_weights_by_its_bytes(context, heads):
    q, k, v = (leaf(3, 7, 6) for _ in range(3))
    found = seeded(lambda: attend(q, k, v, heads=heads, visible=context.visible(), p=0.25))
    torch.manual_seed(7)
    keep = (noise(torch.Size([3 * heads, 7, 7])) >= 64).view(3, heads, 7, 7) / 0.75
    split = [x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (q, k, v)]
    scores = split[0] @ split[1].transpose(2, 3) / (6 / heads) ** 0.5
    if context.visible() is not None:
        scores = scores.masked_fill(~context.visible(), float("-inf"))
    weights = scores.softmax(-1)
    expected = ((torch.where(weights.isnan(), 0.0, weights) * keep) @ split[2]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(found, expected)


def test_gradients_of_attend():
    def function(q, k, v):
        return seeded(lambda: attend(q, k, v, heads=2, visible=Context(MASK[:2, :5]).visible(), p=0.25))

    assert torch.autograd.gradcheck(function, [leaf(2, 5, 4) for _ in range(3)])


@pytest.mark.parametrize("p", [0.0, 0.25])
def test_gradients_of_add_norm_and_drop(p):
    norm = nn.LayerNorm(6, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.normal_(), norm.bias.normal_()

    def function(x, y, weight, bias):
        return seeded(lambda: add_norm(x, y, norm, p))

    assert torch.autograd.gradcheck(function, (leaf(2, 3, 6), leaf(2, 3, 6), norm.weight, norm.bias))
    assert torch.autograd.gradcheck(lambda x: seeded(drop, x, p), (leaf(2, 3, 6),))


def test_add_norm_drops_then_adds_then_norms():
    norm, x, y = nn.LayerNorm(16), torch.randn(3, 5, 16), torch.randn(3, 5, 16)
    same_both_ways(lambda x, y: add_norm(x, y, norm, 0.0), x.requires_grad_(), y.requires_grad_(), tolerance=1e-6)
    found = seeded(add_norm, x, y, norm, 0.25)
    torch.testing.assert_close(found, norm(x + seeded(drop, y, 0.25)), rtol=1e-6, atol=1e-6)


def test_the_sum_of_the_residual_stays_in_the_precision_of_the_norm():
    x, y = torch.randn(2, 3, 8, dtype=torch.bfloat16), torch.randn(2, 3, 8, dtype=torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16):
        assert add_norm(x, y, nn.LayerNorm(8), 0.1).dtype == torch.float32
    assert add_norm(x, y, nn.LayerNorm(8, dtype=torch.bfloat16), 0.1).dtype == torch.bfloat16


@pytest.mark.parametrize("context", CONTEXTS)
@pytest.mark.parametrize(("heads", "kernel"), [(1, 3), (2, 5), (3, 1)])
def test_convolve_is_the_sum_of_weighted_neighbours(context, heads, kernel):
    def function(x, logits):
        return convolution.convolve(x, logits, context)

    same_both_ways(function, leaf(3, 7, 6), leaf(3, 7, heads, kernel), tolerance=1e-6)


@pytest.mark.parametrize(("length", "kernel"), [(1, 3), (31, 3), (32, 5), (33, 5), (100, 9), (100, 67), (10, 67)])
def test_convolve_goes_over_the_edges_of_its_blocks(length, kernel):
    # The plain form takes the softmax in float32 whatever it is given.
    def function(x, logits):
        return convolution.convolve(x, logits, Context())

    same_both_ways(function, leaf(2, length, 4), leaf(2, length, 2, kernel), tolerance=1e-6)


def test_gradients_of_convolve():
    near = Context(None, DOCUMENTS[:2]).neighbours(3)
    assert torch.autograd.gradcheck(lambda x, logits: convolve(x, logits, near), (leaf(2, 7, 4), leaf(2, 7, 2, 3)))
    assert torch.autograd.gradcheck(lambda x, logits: convolve(x, logits, None), (leaf(1, 35, 2), leaf(1, 35, 1, 3)))


@pytest.mark.parametrize("kernel", [1, 3, 9])
def test_depthwise_is_a_convolution_of_each_channel(kernel):
    same_both_ways(lambda x, w: convolution.depthwise(x, w, Context()), leaf(2, 7, 6), leaf(6, 1, kernel))
    assert torch.autograd.gradcheck(depthwise, (leaf(2, 4, 3), leaf(3, 1, kernel)))


@pytest.mark.parametrize("size", [5, 256, 600])
def test_surprise_is_the_cross_entropy_of_a_linear_map(size):
    rows = 2 * kernels.ROWS + 3
    targets, chance = torch.randint(size, (rows,)), torch.rand(rows)
    x, matrix, bias = leaf(rows, 6), leaf(size, 6), leaf(size)
    same_both_ways(lambda *inputs: surprise(*inputs, targets)[0].double(), x, matrix, bias, tolerance=1e-5)
    assert torch.autograd.gradcheck(
        lambda *i: surprise(*i, targets[:3])[0], (leaf(3, 2), leaf(size, 2), leaf(size)), fast_mode=True
    )
    logits = F.linear(x, matrix, bias)
    assert torch.equal(surprise(x, matrix, bias, targets)[1], logits.argmax(-1))
    assert torch.equal(surprise(x, matrix, bias, targets, chance)[1], pick(logits.softmax(-1), chance))


def test_surprise_of_a_sure_thing_is_finite():
    x, matrix = torch.eye(3)[:1].requires_grad_(), torch.tensor([[1e4, 0, 0], [-1e4, 0, 0], [0, 0, 0]])
    for target, nats in ((0, 0.0), (1, 2e4)):
        found, _ = surprise(x, matrix, torch.zeros(3), torch.tensor([target]))
        assert found.item() == pytest.approx(nats)
        assert torch.autograd.grad(found, x)[0].isfinite().all()


def test_surprise_gives_rows_that_do_not_count_no_gradient():
    x, matrix, bias = leaf(4, 3), leaf(7, 3), leaf(7)
    nats, _ = surprise(x, matrix, bias, torch.arange(4))
    for counted in (torch.tensor([True, False, True, False]), torch.zeros(4, dtype=torch.bool)):
        grads = torch.autograd.grad((nats * counted).sum(), (x, matrix, bias), retain_graph=True)
        assert grads[0][~counted].eq(0).all()
        assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("size", [1, 7, 255, 256, 257, 1000])
def test_pick_inverts_the_distribution_function(size):
    chances, uniform = torch.rand(2000, size, dtype=torch.float64).square(), torch.rand(2000, dtype=torch.float64)
    below = chances.cumsum(-1)
    expected = torch.searchsorted(below, (uniform * below[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(pick(chances, uniform), expected)


@pytest.mark.parametrize("size", [4, 256, 300, 512])
def test_pick_never_takes_what_has_no_chance(size):
    possible = size // 3
    chances = F.one_hot(torch.full((3,), possible), size).float()
    assert pick(chances, torch.tensor([0.0, 0.5, 1 - 2**-24])).tolist() == [possible] * 3


def test_noise_is_uniform_and_independent_in_every_byte_of_its_words():
    words = noise(torch.Size([2**17, 8]))
    low = (words < 26).double()
    deviation = (26 / 256 * 230 / 256 / len(words)) ** 0.5
    assert ((low.mean(0) - 26 / 256).abs() < 5 * deviation).all()
    assert torch.corrcoef(low.T).fill_diagonal_(0).abs().max() < 5 / len(words) ** 0.5
    later = torch.corrcoef(torch.stack([low[:-1].flatten(), low[1:].flatten(), (noise(words.shape) < 26)[1:].double().flatten()]))
    assert later.fill_diagonal_(0).abs().max() < 5 / low.numel() ** 0.5
    counts = torch.bincount(words.flatten().int(), minlength=256).double()
    expected = words.numel() / 256
    assert abs(((counts - expected) ** 2 / expected).sum().item() - 255) < 5 * 510**0.5


def test_noise_follows_the_seed():
    assert torch.equal(seeded(noise, torch.Size([5, 3])), seeded(noise, torch.Size([5, 3])))
    assert not torch.equal(noise(torch.Size([99])), noise(torch.Size([99])))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_drop_keeps_the_expectation(dtype):
    dropped = drop(torch.ones(1000, 1000, dtype=dtype), 0.1)
    share = (dropped == 0).double().mean().item()
    assert share == pytest.approx(26 / 256, abs=0.002)
    assert dropped.max().item() == pytest.approx(256 / 230, rel=2**-8)
    assert drop(dropped, 0.0) is dropped


@pytest.mark.parametrize("p", [0.001, 1.0])
def test_a_probability_that_a_byte_cannot_tell_is_left_to_torch(p):
    x = torch.ones(200_000)
    assert (drop(x, p) == 0).float().mean().item() == pytest.approx(p, abs=0.0005)


@pytest.mark.parametrize("text", ["32 vocab=50: 2x(attn conv ffn)", "32 embed=16 vocab=50 norm=pre: 2x(conv[kernel=3] attn ffn)"])
@pytest.mark.parametrize("context", CONTEXTS)
def test_a_backbone_and_its_gradients_are_those_of_the_plain_path(text, context):
    backbone, ids = Backbone(Architecture.parse(text), dropout=0.0), torch.randint(50, (3, 7))
    slope = torch.randn(3, 7, 32)

    def run() -> list[Tensor]:
        real = torch.ones_like(ids, dtype=torch.bool) if context.mask is None else context.mask
        y = backbone(ids, context.mask, documents=context.documents) * real[..., None]
        return [y, *torch.autograd.grad(y, list(backbone.parameters()), slope)]

    found = run()
    with plain():
        expected = run()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_bf16_differs_from_float32_no_more_than_the_plain_path_does():
    backbone, ids = Backbone(Architecture.parse("64 vocab=50: 4x(attn conv ffn)"), dropout=0.0), torch.randint(50, (8, 40))
    slope = torch.randn(8, 40, 64)

    def run(enabled: bool) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y = backbone(ids)
        return [y, *torch.autograd.grad(y, list(backbone.parameters()), slope)]

    exact = run(False)
    # What is nothing but rounding, as the gradient of a key's bias, tells nothing.
    told = [index for index, value in enumerate(exact) if value.norm() > 1e-3]

    def errors() -> Tensor:
        found = run(True)
        return torch.stack([(found[index] - exact[index]).norm() / exact[index].norm() for index in told])

    found = errors()
    with plain():
        expected = errors()
    assert (found < (1.5 * expected).clamp(min=2**-8)).all()
    assert found.mean() < 1.1 * expected.mean()


def test_dropout_in_training_is_the_same_for_one_seed_and_another_for_the_next():
    backbone, ids = Backbone(Architecture.parse("32 vocab=50: attn conv ffn")), torch.randint(50, (2, 9))
    first, again = seeded(backbone, ids), seeded(backbone, ids)
    assert torch.equal(first, again)
    assert not torch.equal(first, backbone(ids))


def test_replaced_token_detection_has_the_gradients_of_the_plain_path():
    special = Special(pad=0, unk=1, cls=2, sep=3, mask=4)
    large, small = (Architecture.parse(f"{width} embed=16 vocab=300: 2x(conv attn ffn)") for width in (32, 8))
    generator = MaskedLM(Backbone(small, 0.0), special, masked=0.85, random=0.0)
    objective = ReplacedTokenDetection(Backbone(large, 0.0), generator)
    ids = torch.randint(5, 300, (4, 30))
    mask = torch.arange(30) < torch.tensor([[30], [21], [7], [1]])
    batch = Batch(torch.where(mask, ids, special.pad), mask, dice=torch.rand(4, 30, 3))

    def run() -> list[Tensor]:
        loss = objective(batch)
        return [loss.total, *torch.autograd.grad(loss.total, list(objective.parameters()))]

    found = run()
    with plain():
        expected = run()
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_second_derivatives_need_the_plain_path():
    def penalty() -> Tensor:
        x = leaf(2, 5, 4)
        y = add_norm(x, x, nn.LayerNorm(4, dtype=torch.float64), 0.0)
        (slope,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
        return slope.square().sum()

    with plain():
        penalty().backward()
    with pytest.raises(RuntimeError, match="once_differentiable"):
        penalty().backward()


def test_the_fast_paths_are_for_eager_tensors_on_cpu():
    assert kernels.fast(torch.ones(1))
    assert not kernels.fast(torch.ones(1, device="meta"))
    assert torch.compile(lambda x: x + kernels.fast(x), backend="eager", fullgraph=True)(torch.zeros(1)).item() == 0
    with plain():
        assert not kernels.fast(torch.ones(1))
    assert kernels.fast(torch.ones(1))


def test_of_chances_that_are_no_numbers_a_token_is_picked_all_the_same():
    """So that the loss, which is no number either, ends a training and not an index."""
    chances = torch.full((3, 700), torch.nan)
    chances[1] = 1 / 700
    found = pick(chances, torch.tensor([0.0, 0.5, 0.9]))
    assert found.min() >= 0
    assert found.max() < 700
    assert abs(found[1].item() - 350) <= 1
