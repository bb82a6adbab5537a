"""Every layer kind keeps the layer contract: bare, and inside a backbone.  A layer that does not is found out."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from layerwright import Architecture, Backbone, Context, layer
from layerwright.backbone import run
from layerwright.registry import KINDS
from layerwright.testing import LayerContract, check_layer

# Every kind with its defaults, so that a new one is tested from its first day; then options that could break a promise.
LAYERS = [
    *KINDS,
    "attn[heads=1]",
    "attn[heads=8]",
    "conv[kernel=1]",
    "conv[heads=4,kernel=3]",
    "conv[heads=1,kernel=31]",
    "ffn[inner=1,act=relu]",
    "ffn[inner=200,act=silu]",
    "ffn[act=gelu_tanh,groups=4]",
    "ffn[act=quick_gelu]",
    "ffn[act=tanh]",
    "mixed[heads=1]",
    "mixed[heads=8,ratio=4,kernel=3]",
    "mixed[heads=8,ratio=4,kernel=15,form=transformers]",
    "mixed[heads=4,kernel=1,form=paper]",
    "mixed[heads=4,ratio=1]",
    "sdconv[heads=4,kernel=3]",
    "sdconv[heads=1,kernel=31]",
]


class TestEveryKind(LayerContract):
    @pytest.fixture(params=LAYERS, autouse=True)
    def _choose(self, request: pytest.FixtureRequest) -> None:
        self.layer = request.param


class Stack(nn.Module):
    """The layers of a backbone without its embeddings, which know positions and so see packing and padding before a row."""

    def __init__(self, arch: Architecture):
        super().__init__()
        backbone = Backbone(arch, dropout=0.0)
        self.layers, self.norm = backbone.layers, backbone.norm

    def forward(self, x: Tensor, context: Context) -> Tensor:
        return run(self.layers, self.norm, x, context)


@pytest.mark.parametrize("norm", ["post", "pre"])
class TestInsideABackbone:
    """The promises that a stack of all kinds could break though each kind keeps them."""

    def test_it_keeps_the_contract(self, norm: str):
        class Whole(LayerContract):
            layer, width = "conv", 64

            def module(self) -> nn.Module:
                return Stack(Architecture.parse(f"64 vocab=32 norm={norm}: {' '.join(KINDS)} attn[heads=4]"))

        Whole().check()

    def test_padding_never_leaks(self, norm: str):
        net = backbone(norm)
        ids, mask = tokens(), torch.arange(12) < torch.tensor([[12], [7], [1]])
        y = net(ids, mask)
        other = torch.where(mask, ids, (ids + 1) % 32)
        assert torch.equal(net(other, mask)[mask], y[mask])
        for row, length in enumerate((12, 7, 1)):
            torch.testing.assert_close(y[row, :length], net(ids[row : row + 1, :length])[0], rtol=1e-4, atol=1e-5)

    def test_documents_never_see_each_other(self, norm: str):
        net, ids = backbone(norm), tokens()
        documents = (torch.arange(12) >= 5).long().expand(3, 12)
        other = torch.where(documents == 1, (ids + 1) % 32, ids)
        assert torch.equal(net(ids, documents=documents)[:, :5], net(other, documents=documents)[:, :5])
        assert not torch.allclose(net(ids)[:, :5], net(other)[:, :5], atol=1e-3)

    def test_a_padded_row_spoils_no_gradient(self, norm: str):
        net = backbone(norm).train()
        mask = torch.ones(3, 12, dtype=torch.bool)
        mask[2] = False
        net(tokens(), mask)[mask].square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())

    def test_dropout_is_for_training_alone(self, norm: str):
        net, ids = backbone(norm), tokens()
        assert torch.equal(net(ids), net(ids))
        net.train()
        assert not torch.equal(net(ids), net(ids))


def backbone(norm: str) -> Backbone:
    return Backbone(Architecture.parse(f"64 vocab=32 positions=12 norm={norm}: {' '.join(KINDS)} attn[heads=4]")).eval()


def tokens() -> Tensor:
    return torch.randint(32, (3, 12), generator=torch.Generator().manual_seed(0))


def test_attention_alone_has_dropout_of_its_own():
    x = torch.randn(2, 9, 64)
    for kind, differs in (("attn", True), ("mixed", True), ("conv", False), ("sdconv", False), ("ffn", False)):
        module = KINDS[kind].module(64, **dict(Architecture.parse(f"64: {kind}").layers[0].options)).train()
        assert torch.equal(module(x, Context()), module(x, Context()))
        assert torch.equal(module(x, Context(dropout=0.5)), module(x, Context(dropout=0.5))) != differs


def seen(x: Tensor, context: Context) -> Tensor:
    """The mean of what each token may see."""
    visible = context.visible()
    weights = (x.new_ones(1, 1, 1, x.shape[1]) if visible is None else visible.to(x.dtype))[:, 0]
    return weights / weights.sum(-1, keepdim=True).clamp(min=1) @ x


def secret(module: nn.Module, x: Tensor) -> Tensor:
    """Something random that no state dict holds."""
    if not hasattr(module, "shift"):
        module.shift = torch.rand(())
    return x + module.shift


def broken(x: Tensor) -> Tensor:
    torch._dynamo.graph_break()
    return x


# What a layer does after its linear map, and the promise that it breaks.
FAULTS: dict[str, tuple[Callable[[nn.Module, Tensor, Context], Tensor], str]] = {
    "forgets_the_mask": (lambda self, x, context: x + seen(x, replace(context, mask=None)), "depends on what padding holds"),
    "forgets_documents": (
        lambda self, x, context: x + seen(x, replace(context, documents=None)),
        "differs from that document alone",
    ),
    "peeks_across_rows": (lambda self, x, context: x + seen(x, context).mean(0), "depends on the other rows"),
    "sees_the_place": (lambda self, x, context: x + torch.arange(x.shape[1])[:, None].to(x.dtype) / 9, "how much padding"),
    "changes_the_dtype": (lambda self, x, context: x.float(), "bfloat16 becomes"),
    "shortens": (lambda self, x, context: x[:, 1:], "shape changes"),
    "drops_always": (lambda self, x, context: nn.functional.dropout(x), "a row depends"),
    "drops_unasked": (lambda self, x, context: nn.functional.dropout(x, training=self.training), "comes from the context"),
    "keeps_a_secret": (lambda self, x, context: secret(self, x), "two modules of the same weights differ"),
    "breaks_the_graph": (lambda self, x, context: broken(x), "graph_break"),
    "divides_by_none": (lambda self, x, context: x / seen(torch.ones_like(x), context), "not finite"),
    "forgets_a_weight": (lambda self, x, context: x * (self.unused.weight is not None), "no gradient reaches unused"),
}


def faulty(mix: Callable[[nn.Module, Tensor, Context], Tensor]) -> type[nn.Module]:
    class Faulty(nn.Module):
        def __init__(self, width: int):
            super().__init__()
            self.out = nn.Linear(width, width)
            if mix is FAULTS["forgets_a_weight"][0]:
                self.unused = nn.Linear(width, width)

        def forward(self, x: Tensor, context: Context) -> Tensor:
            return mix(self, self.out(x), context)

    return Faulty


@pytest.fixture
def _registry() -> Iterator[None]:
    known = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(known)


@pytest.mark.usefixtures("_registry")
def test_a_layer_from_outside_passes():
    layer("mean")(faulty(lambda self, x, context: x + seen(x, context)))
    check_layer("mean", width=32)


@pytest.mark.usefixtures("_registry")
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_layer_is_found_out(fault: str):
    mix, law = FAULTS[fault]
    layer(fault)(faulty(mix))
    with pytest.raises(Exception, match=law):
        check_layer(fault, width=32)
