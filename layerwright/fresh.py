"""Give a new layer of an edited model its weights: as any layer begins, or so that it changes as little as it can.

`near` sets the output projection `out` to zero.  Where norms come first, x + out(...) is x then: the identity.  Where they come
after, the layer gives norm(x), which is x with the mean and the deviation of its channels set anew.  So the norm gets one
scale and one shift, those which the state of a token has on average behind the norm before it: what is left of the change is how
far the mean and the deviation of a single token are from that.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .architecture import Architecture, Layer
from .backbone import Residual, initialise
from .registry import KINDS


class Moments(NamedTuple):
    """Mean and standard deviation of the channels of a token's state, over tokens of every kind."""

    mean: float
    deviation: float


def moments(norm: Mapping[str, Tensor], widen: Mapping[str, Tensor] | None = None) -> Moments:
    """Return what a norm leaves, and a linear map behind it if there is one.

    The channels before its scale and shift have mean 0 and variance 1, and count as independent.
    """
    scale, centre = norm["weight"].double(), norm["bias"].double()
    variance = scale.square()
    if widen is not None:
        matrix = widen["weight"].double()
        centre, variance = matrix @ centre + widen["bias"].double(), matrix.square() @ variance
    return Moments(float(centre.mean()), float((variance.mean() + centre.var(correction=0)).sqrt()))


def check_near(arch: Architecture, layers: Iterable[Layer]) -> None:
    """Refuse layers that have no output projection to set to zero.

    Raises:
        ValueError: naming the kind of layer.
    """
    for layer in layers:
        with torch.device("meta"):
            names = KINDS[layer.kind].module(arch.width, **dict(layer.at(arch.width).options)).state_dict()
        if not any(name.startswith("out.") for name in names):
            raise ValueError(f"layer kind '{layer.kind}' has no linear map `out` to set to zero, so none can be near identity")


def weights_of(layer: Layer, arch: Architecture, *, seed: int, behind: Moments | None = None) -> dict[str, Tensor]:
    """Return the weights of a new layer, `body.*` and `norm.*`, in float32.

    behind: what the states are like that it gets; given, the layer is near identity.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = Residual(layer, arch, 0.0)
        initialise(module)
    weights: dict[str, Tensor] = {name: weight.detach() for name, weight in module.state_dict().items()}
    if behind is not None:
        for name, weight in weights.items():
            if name.startswith("body.out."):
                weight.zero_()
        if arch.norm == "post":
            weights["norm.weight"].fill_(behind.deviation)
            weights["norm.bias"].fill_(behind.mean)
    return weights
