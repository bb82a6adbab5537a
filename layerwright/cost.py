"""What an architecture costs, measured by running it: exact for every layer kind, and without weights that were drawn.

Costs of layers add up, so each is measured once and a million candidates are priced by sums.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from .architecture import Architecture, Layer
from .backbone import Backbone
from .bare import bare
from .kernels import plain
from .space import Space, closed

Measure = Callable[[Architecture], int]

LARGE, LONG = 64_000_000, 1024  # parameters and tokens up to which operations are counted on the CPU


def parameters(arch: Architecture) -> int:
    """Count the parameters of the backbone, embeddings included."""
    return _total(arch, lambda part: _parameters(part))


def flops(arch: Architecture, length: int = 128) -> int:
    """Count the floating-point operations of one forward pass over one sequence (matrix products, two a multiply-add)."""
    return _total(arch, lambda part: _flops(part, length))


def layer_parameters(arch: Architecture, index: int) -> int:
    """Count the parameters of one layer, its norm included."""
    return _share(arch, arch.layers[index], _parameters)


def layer_flops(arch: Architecture, index: int, length: int = 128) -> int:
    """Count the floating-point operations of one layer for one sequence."""
    return _share(arch, arch.layers[index], lambda part: _flops(part, length))


def smallest(space: Space, measure: Measure) -> Architecture:
    """Return the architecture of a space that costs least; exact, because costs of layers add up.

    But for values left open: of them only the usual ones are looked at.
    """
    return _extreme(space, measure, 1)


def largest(space: Space, measure: Measure) -> Architecture:
    """Return the architecture of a space that costs most; exact, because costs of layers add up.

    But for values left open: of them only the usual ones are looked at.
    """
    return _extreme(space, measure, -1)


def _extreme(space: Space, measure: Measure, sign: int) -> Architecture:
    whole = space.largest
    price = {run: sign * sum(_share(whole, layer, measure) for layer in closed(run)) for slot in space.slots for run in slot}
    return space.at(tuple(min(range(len(slot)), key=lambda taken: price[slot[taken]]) for slot in space.slots))


def _total(arch: Architecture, measure: Measure) -> int:
    """Sum a measure over the embeddings and the layers."""
    once = measure(arch.with_layers(arch.layers[:1]))
    return once + sum(count * _share(arch, layer, measure) for layer, count in Counter(arch.layers[1:]).items())


def _share(arch: Architecture, layer: Layer, measure: Measure) -> int:
    """Return what one more layer adds: the cost of a layer does not depend on its place or the vocabulary."""
    # Of this layer alone, for an architecture checks each layer that it is made of: a price for each would be quadratic in depth.
    once = replace(arch, layers=(layer,), vocab=1, embed=arch.width)
    return measure(once.with_layers([layer, layer])) - measure(once)


class _Counter(TorchDispatchMode):
    """Add up the operations of what runs by the formulas of torch, as its FlopCounterMode does, which imports the compiler."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        named = named or {}
        with self:
            parts = function.decompose(*args, **named)
        if parts is not NotImplemented:
            return parts
        out = function(*args, **named)
        formula = flop_registry.get(function._overloadpacket)
        self.total += int(formula(*args, **named, out_val=out)) if formula else 0
        return out


def _shape(arch: Architecture) -> Backbone:
    """Return a backbone without memory."""
    with bare():
        return Backbone(arch).eval()


@lru_cache(maxsize=4096)
def _parameters(arch: Architecture) -> int:
    return sum(parameter.numel() for parameter in _shape(arch).parameters())


@lru_cache(maxsize=4096)
def _flops(arch: Architecture, length: int) -> int:
    # On the meta device nothing is computed, but what does not compute there is in Python and behind the compiler, whose import
    # takes longer than what a few layers compute.
    small = _parameters(arch) <= LARGE and length <= LONG
    return _counted(arch, length, "cpu" if small else "meta")


@torch.no_grad()
def _counted(arch: Architecture, length: int, device: str) -> int:
    backbone = _shape(arch)
    # Like `to_empty`, which asks the compiler about the order of dimensions.
    backbone._apply(lambda weight: torch.empty(weight.shape, dtype=weight.dtype, device=device))  # type: ignore[no-untyped-call]
    counter = _Counter()
    with plain(), sdpa_kernel(SDPBackend.MATH), counter:
        backbone(torch.zeros(1, length, dtype=torch.long, device=device))
    return counter.total
