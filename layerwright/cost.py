"""What an architecture costs, measured on the meta device: no memory, and exact for every layer kind.

Costs of layers add up, so each is measured once and a million candidates are priced by sums.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import torch
from torch.utils.flop_counter import FlopCounterMode

from .architecture import Architecture, Layer
from .backbone import Backbone
from .space import Space, closed

Measure = Callable[[Architecture], int]


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
    bare = replace(arch, vocab=1, embed=arch.width)
    return measure(bare.with_layers([layer, layer])) - measure(bare.with_layers([layer]))


@lru_cache(maxsize=4096)
def _parameters(arch: Architecture) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in Backbone(arch).parameters())


@lru_cache(maxsize=4096)
def _flops(arch: Architecture, length: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        Backbone(arch).eval()(torch.zeros(1, length, dtype=torch.long))
    return int(counter.get_total_flops())
