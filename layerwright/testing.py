"""The layer contract (`layerwright.layers`) as tests, for layer kinds written anywhere.

Subclass `LayerContract`, name a layer, and pytest runs every test; `check_layer` does the same without pytest.

    class TestMine(LayerContract):
        layer = "mine[kernel=3]"

The weights under test are noisier than fresh ones: a layer that starts at zero, or nearly so, could hide a leak.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from . import cost
from .architecture import Architecture, Layer
from .backbone import initialise
from .layers import Context
from .registry import KINDS

LENGTH = 13


class LayerContract:
    """What every layer kind promises, a test a promise.

    layer: the text of the layer under test.  width: of its input.  A subclass may override `module` to test something
    around the layer that keeps the same promises.
    """

    layer: str
    width: int = 128

    def module(self) -> nn.Module:
        """Build what is tested: it takes x [B, L, D] and a `Context`."""
        chosen = self.architecture().layers[0]
        built: nn.Module = KINDS[chosen.kind].module(self.width, **dict(chosen.options))
        return built

    def check(self) -> None:
        """Run every test, in order.

        Raises:
            AssertionError: a promise that is not kept.
        """
        tests = dict.fromkeys(name for kind in reversed(type(self).__mro__) for name in vars(kind) if name.startswith("test_"))
        for name in tests:
            getattr(self, name)()

    def architecture(self) -> Architecture:
        """Return the smallest architecture around the layer."""
        return Architecture(self.width, (Layer.parse(self.layer),), vocab=32, positions=64)

    def subject(self, seed: int = 0) -> nn.Module:
        """Return the module in evaluation mode, its weights drawn from a seed."""
        torch.manual_seed(seed)
        module = self.module()
        initialise(module)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
        return module.eval()

    def hidden(self, rows: int = 3, length: int = LENGTH) -> Tensor:
        """Draw an input [B, L, D]."""
        return torch.randn(rows, length, self.width, generator=torch.Generator().manual_seed(rows * length))

    def test_it_keeps_shape_and_dtype(self) -> None:
        """Map float32 to float32 and bfloat16 to bfloat16, of the same shape, without a value that is not finite."""
        for dtype in (torch.float32, torch.bfloat16):
            x = self.hidden().to(dtype)
            for context in _contexts():
                y = self.subject().to(dtype)(x, context)
                _hold(y.shape == x.shape, f"the shape changes from {list(x.shape)} to {list(y.shape)}")
                _hold(y.dtype == dtype, f"{dtype} becomes {y.dtype}")
                _hold(bool(y.isfinite().all()), f"a value that is not finite in {dtype}")

    def test_it_runs_under_autocast(self) -> None:
        """Run in mixed precision, as training does."""
        with torch.autocast("cpu", torch.bfloat16):
            y = self.subject()(self.hidden(), Context(_ragged()))
        _hold(bool(y.isfinite().all()), "a value that is not finite under autocast")

    def test_rows_are_independent(self) -> None:
        """Give a row the output it has alone in a batch."""
        module, x, mask = self.subject(), self.hidden(), _ragged()
        y = module(x, Context(mask))
        for row in range(len(x)):
            one = slice(row, row + 1)
            _same(y[one][mask[one]], module(x[one], Context(mask[one]))[mask[one]], "a row depends on the other rows")

    def test_what_padding_holds_does_not_matter(self) -> None:
        """Give the same output at real tokens whatever stands at the others."""
        module, x, mask = self.subject(), self.hidden(), _ragged()
        for noise in (torch.zeros_like(x), -x, torch.full_like(x, 1e4)):
            other = torch.where(mask[..., None], x, noise)
            _same(module(other, Context(mask))[mask], module(x, Context(mask))[mask], "the output depends on what padding holds")

    def test_how_much_padding_does_not_matter(self) -> None:
        """Give the same output at real tokens with padding before and after them, or none; also of very few tokens."""
        module = self.subject()
        for length in (1, 2, 7):
            x = self.hidden(2, length)
            for before, after in ((0, 1), (0, 9), (5, 0), (3, 4)):
                padded = torch.cat([self.hidden(2, before), x, self.hidden(2, after)], dim=1)
                mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
                mask[:, before : before + length] = True
                found = module(padded, Context(mask))[:, before : before + length]
                _same(found, module(x, Context()), "the output depends on how much padding there is")

    def test_no_mask_means_that_all_are_real(self) -> None:
        """Treat a mask of None as one that is true everywhere."""
        module, x = self.subject(), self.hidden()
        full = torch.ones(x.shape[:2], dtype=torch.bool)
        _same(module(x, Context(full)), module(x, Context()), "a mask that is all true differs from no mask")

    def test_rows_of_one_or_no_token_are_finite(self) -> None:
        """Give finite outputs and gradients where a row has one real token, or none."""
        mask = torch.zeros(3, LENGTH, dtype=torch.bool)
        mask[0], mask[1, 0] = True, True
        for documents in (None, torch.where(mask, 0, -1)):
            module = self.subject()
            y = module(self.hidden(), Context(mask, documents))
            _hold(bool(y.isfinite().all()), "a row of one token or none has an output that is not finite")
            y[mask].square().sum().backward()
            for name, parameter in module.named_parameters():
                _hold(
                    parameter.grad is None or bool(parameter.grad.isfinite().all()), f"padded rows spoil the gradient of {name}"
                )

    def test_documents_of_a_row_do_not_see_each_other(self) -> None:
        """Give each document of a packed row, padding behind the last, the output it has alone in a row."""
        module, x = self.subject(), self.hidden(2)
        mask = (torch.arange(LENGTH) < 11).expand(2, LENGTH)
        documents = torch.tensor([[0] * 5 + [1] + [2] * 5 + [-1] * 2, [7] * 2 + [3] * 9 + [3] * 2])
        y = module(x, Context(mask, documents))
        for row, begin, end in ((0, 0, 5), (0, 5, 6), (0, 6, 11), (1, 0, 2), (1, 2, 11)):
            alone = module(x[row : row + 1, begin:end], Context())
            _same(y[row : row + 1, begin:end], alone, "a document of a packed row differs from that document alone")

    def test_one_document_a_row_is_no_packing(self) -> None:
        """Treat documents that are all the same as no documents."""
        module, x, mask = self.subject(), self.hidden(), _ragged()
        packed = module(x, Context(mask, torch.zeros_like(mask, dtype=torch.long)))
        _same(packed[mask], module(x, Context(mask))[mask], "one document a row differs from no documents")

    def test_every_parameter_gets_a_gradient(self) -> None:
        """Let a finite gradient reach every parameter."""
        module, mask = self.subject().train(), _ragged()
        (module(self.hidden().requires_grad_(), Context(mask)) * self.hidden())[mask].sum().backward()
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                _hold(parameter.grad is not None, f"no gradient reaches {name}")
                _hold(parameter.grad is None or bool(parameter.grad.isfinite().all()), f"the gradient of {name} is not finite")

    def test_no_gradient_reaches_padding(self) -> None:
        """Leave the input at padding without a gradient from real tokens."""
        x, mask = self.hidden().requires_grad_(), _ragged()
        (self.subject()(x, Context(mask)) * self.hidden())[mask].sum().backward()
        reached = torch.zeros_like(x) if x.grad is None else x.grad
        _hold(not reached[~mask].any(), "a gradient reaches padding")

    def test_it_is_deterministic_in_evaluation(self) -> None:
        """Give the same output twice; in training too, where the context asks for no dropout."""
        module, x, mask = self.subject(), self.hidden(), _ragged()
        y = module(x, Context(mask))
        _hold(torch.equal(y, module(x, Context(mask))), "two evaluations differ")
        _same(
            module.train()(x, Context(mask)),
            y,
            "training without dropout differs from evaluation: dropout comes from the context",
        )

    def test_dropout_keeps_the_promises(self) -> None:
        """Keep the output finite and free of padding where the context asks for dropout in training."""
        module, x, mask = self.subject().train(), self.hidden(), _ragged()
        seen = []
        for noise in (x, -x):
            torch.manual_seed(1)
            seen.append(module(torch.where(mask[..., None], x, noise), Context(mask, dropout=0.5))[mask])
        _hold(bool(seen[0].isfinite().all()), "dropout gives a value that is not finite")
        _same(seen[0], seen[1], "with dropout, the output depends on what padding holds")

    def test_weights_are_all_there_is(self) -> None:
        """Compute the same from the same weights: nothing that matters is missing from the state dict."""
        one, two, x = self.subject(0), self.subject(1), self.hidden()
        two.load_state_dict(one.state_dict())
        _same(two(x, Context(_ragged())), one(x, Context(_ragged())), "two modules of the same weights differ")

    def test_it_compiles_without_a_graph_break(self) -> None:
        """Trace as one graph, with and without mask and documents."""
        torch.compiler.reset()
        module, x = self.subject(), self.hidden()
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        for context in _contexts():
            _same(compiled(x, context), module(x, context), "compiling changes the output")

    def test_it_has_a_text_and_a_cost(self) -> None:
        """Survive being written down, and be priced without memory (on the meta device)."""
        arch = self.architecture()
        _hold(
            Architecture.parse(str(arch)) == arch == Architecture.parse(arch.explicit()), f"{arch} does not read back as itself"
        )
        chosen = arch.layers[0]
        weights = sum(p.numel() for p in KINDS[chosen.kind].module(self.width, **dict(chosen.options)).parameters())
        _hold(cost.layer_parameters(arch, 0) == weights + 2 * self.width, "its cost is not its parameters and those of its norm")
        _hold(cost.layer_flops(arch, 0, LENGTH) >= 0, "its operations cannot be counted")


def check_layer(text: str, *, width: int = LayerContract.width) -> None:
    """Run the whole contract on a layer, such as `mine[kernel=3]`.

    Raises:
        AssertionError: a promise that is not kept.
    """
    contract = LayerContract()
    contract.layer, contract.width = text, width
    contract.check()


def _ragged() -> Tensor:
    """Return a mask [3, LENGTH]: padding behind, before, and within."""
    mask = torch.ones(3, LENGTH, dtype=torch.bool)
    mask[0, 6:], mask[1, :4], mask[2, 5:7] = False, False, False
    return mask


def _contexts() -> Iterator[Context]:
    documents = torch.arange(LENGTH).expand(3, LENGTH) // 5
    yield from (Context(), Context(_ragged()), Context(None, documents), Context(_ragged(), documents))


def _same(found: Tensor, wanted: Tensor, law: str) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4, msg=lambda why: f"{law}\n{why}")


def _hold(kept: bool, law: str) -> None:
    if not kept:
        raise AssertionError(law)
