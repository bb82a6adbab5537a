"""What may be handed to layers that run as passes: tensors of any strides, one row of documents for all, wrapped norms."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from layerwright import fused, kernels, native
from layerwright.adamw import AdamW
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
from layerwright.layers import Context

LAYERS = ["attn", "ffn", "conv", "sdconv", "mixed[heads=2]", "lightconv"]
needs_compiler = pytest.mark.skipif(native.library() is None, reason="there is no C++ compiler here")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def body(layer: str) -> nn.Module:
    return Backbone(Architecture.parse(f"16: {layer}"), dropout=0.0).layers[0].body


def same(found: list[Tensor], expected: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def strided(kind: str, rows: int, length: int, width: int) -> Tensor:
    """Draw what the same numbers in one piece would not be."""
    if kind == "one number":  # as the slope of a sum has it
        return torch.randn(1, 1, 1).expand(rows, length, width)
    if kind == "part":
        return torch.randn(rows, length, 2 * width)[..., width:]
    if kind == "turned":
        return torch.randn(rows, width, length).transpose(1, 2)
    return torch.randn(length, rows, width).transpose(0, 1)


@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize(("rows", "length"), [(3, 7), (1, 7), (3, 1)])
@pytest.mark.parametrize("kind", ["one number", "part", "turned", "tokens first"])
@pytest.mark.parametrize("layer", LAYERS)
def test_states_and_slopes_may_have_any_strides(layer, kind, rows, length, apart):
    module = body(layer)
    context = Context(dropout=0.0, documents=torch.zeros(rows, length, dtype=torch.int64) if apart else None)
    x, slope = (strided(kind, rows, length, 16) for _ in range(2))
    found = []
    for states, given in ((x, slope), (x.clone(memory_format=torch.contiguous_format), slope.contiguous())):
        states = states.detach().requires_grad_()
        y = module(states, context)
        found.append([y.detach(), *torch.autograd.grad(y, [states, *module.parameters()], given)])
    same(*found)


@pytest.mark.parametrize("layer", LAYERS)
def test_one_row_of_documents_is_that_of_every_row(layer):
    module, x, documents = body(layer), torch.randn(5, 8, 16, requires_grad=True), torch.tensor([[0] * 3 + [1] * 5])
    found = []
    for given in (documents, documents.expand(5, 8)):
        y = module(x, Context(documents=given))
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])])
    same(*found)


@pytest.mark.parametrize("default", [torch.bfloat16, torch.float64])
def test_what_numbers_torch_makes_by_default_changes_nothing(default):
    net, ids = Backbone(Architecture.parse("16 vocab=50: attn conv mixed[heads=2] sdconv ffn"), 0.0), torch.arange(40).view(2, 20)
    found = []
    for kind in (torch.float32, default):
        torch.set_default_dtype(kind)
        try:
            states = net(ids)
            nats, _ = fused.surprise(states[:, 3], net.embed.token.weight, torch.zeros(50, dtype=torch.float32), ids[:, 3])
            loss = states.square().sum() + nats.sum()
            found.append([states.detach(), nats.detach(), *torch.autograd.grad(loss, net.layers.parameters())])
        finally:
            torch.set_default_dtype(torch.float32)
    same(*found)


@pytest.mark.parametrize("wrong", [-100, -1, 9])
def test_a_target_that_is_no_token_is_named(wrong):
    x, matrix, targets = torch.randn(3, 4, requires_grad=True), torch.randn(9, 4), torch.tensor([0, wrong, 8])
    with pytest.raises((IndexError, RuntimeError), match=rf"target {wrong} is not one of 9|index {wrong} is out of bounds"):
        fused.surprise(x, matrix, torch.zeros(9), targets)


def test_targets_may_lie_apart_and_be_short():
    x, matrix, targets = torch.randn(3, 4), torch.randn(9, 4), torch.tensor([[1, 0], [5, 0], [8, 0]])[:, 0]
    expected = F.cross_entropy(x @ matrix.t(), targets, reduction="none")
    for given in (targets, targets.int()) if native.library() else (targets,):
        torch.testing.assert_close(fused.surprise(x, matrix, torch.zeros(9), given)[0], expected)


class Doubled(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("way", [fused.add_norm, kernels.add_norm])
def test_a_norm_that_is_more_than_that_is_called(way):
    x, y, norm = torch.randn(2, 3, 8), torch.randn(2, 3, 8), Doubled(8)
    torch.testing.assert_close(way(x, y, norm, 0.0), 2 * F.layer_norm(x + y, (8,)))
    seen, hooked = [], nn.LayerNorm(8)
    hooked.register_forward_hook(lambda module, inputs, found: seen.append(found))
    assert torch.equal(way(x, y, hooked, 0.0), seen[0])
    unweighted = nn.LayerNorm(8, elementwise_affine=False)
    torch.testing.assert_close(way(x, y, unweighted, 0.0), F.layer_norm(x + y, (8,)))


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # PyTorch's attention is mapped row by row
@pytest.mark.parametrize("layer", LAYERS)
def test_layers_can_be_mapped_and_differentiated_by_torch_func(layer):
    module, x = body(layer), torch.randn(3, 2, 7, 16)
    found = torch.func.vmap(lambda one: module(one, Context()))(x)
    same([found], [torch.stack([module(one, Context()) for one in x])], 1e-4)

    def total(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(module, weights, (x[0], Context())).square().sum()

    weights = dict(module.named_parameters())
    slopes = torch.func.grad(total)({name: weight.detach() for name, weight in weights.items()})
    same([slopes[name] for name in weights], list(torch.autograd.grad(total(weights), list(weights.values()))), 1e-4)


@pytest.mark.parametrize("quiet", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("layer", LAYERS)
def test_without_gradients_the_same_comes_out(layer, quiet):
    net, x = Backbone(Architecture.parse(f"16: {layer}"), dropout=0.0), torch.randn(3, 7, 16)
    expected = net.layers[0](x, Context()).detach()
    with quiet():
        found = net.layers[0](x, Context())
    assert not found.requires_grad
    same([found], [expected])


@needs_compiler
def test_without_gradients_the_logits_never_exist_as_a_whole(monkeypatch):
    sizes, run = [], native.call
    monkeypatch.setattr(fused, "call", lambda name, like, some, *rest: (sizes.append(len(some)), run(name, like, some, *rest)))
    matrix, x, targets = torch.randn(9, 4, requires_grad=True), torch.randn(300, 4), torch.randint(9, (300,))
    with torch.no_grad():
        found = fused.surprise(x, matrix, torch.zeros(9), targets)[0]
    assert sizes == [128, 128, 44]
    torch.testing.assert_close(found, fused.surprise(x, matrix, torch.zeros(9), targets)[0].detach())
    assert sizes[3:] == [300]


def test_bf16_serves_where_onednn_does_not(tmp_path):
    """On processors without instructions for bf16 oneDNN refuses its products, which PyTorch then computes otherwise."""
    code = """
import torch
from layerwright.architecture import Architecture
from layerwright.backbone import Backbone
torch.manual_seed(0)
net = Backbone(Architecture.parse("16 vocab=50: attn conv mixed[heads=2] ffn"), 0.1)
with torch.autocast("cpu", torch.bfloat16):
    net(torch.arange(40).view(2, 20)).float().square().sum().backward()
assert all(parameter.grad.isfinite().all() for parameter in net.layers.parameters())
try:
    x = torch.zeros(1, 1, dtype=torch.bfloat16)
    torch.ops.mkldnn._linear_pointwise(x, x, x[0], "none", [], "")
except RuntimeError:
    print("refused")
"""
    told = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}, capture_output=True, text=True, check=True
    )
    if "refused" not in told.stdout:
        pytest.skip("this oneDNN multiplies bf16 without such instructions, too")


def test_without_a_home_nothing_is_built_unless_a_folder_is_named(monkeypatch, tmp_path):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(native.Path, "home", homeless)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv(native.FOLDER, raising=False)
    assert native.library.__wrapped__() is None
    monkeypatch.setenv(native.FOLDER, str(tmp_path))
    if native.library() is not None:
        assert native.library.__wrapped__() is not None


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_a_copied_optimizer_takes_steps(copied):
    weight = torch.randn(3, requires_grad=True)
    weight.grad = torch.ones(3)
    optimizer = copied(AdamW([weight], lr=0.1, betas=(0.9, 0.999), eps=1e-8))
    mine = optimizer.param_groups[0]["params"][0]
    before, mine.grad = mine.detach().clone(), torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(mine.detach(), before - 0.1 - 0.1 * 0.01 * before)


def test_a_closure_may_be_the_first_to_compute_gradients():
    ours, theirs = (torch.arange(3.0).requires_grad_() for _ in range(2))
    numbers = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8}
    for weight, optimizer in ((ours, AdamW([ours], **numbers)), (theirs, torch.optim.AdamW([theirs], **numbers))):

        def closure(weight=weight):
            weight.grad = None
            loss = weight.square().sum()
            loss.backward()
            return loss

        assert optimizer.step(closure) == 5
    assert torch.equal(ours, theirs)
