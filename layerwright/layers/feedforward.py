"""Position-wise feed-forward layers (Vaswani et al. 2017, equation 2)."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import nearest
from ..fused import feed_forward
from ..registry import OptionError, layer
from .context import Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
}


@layer("ffn", inner=lambda width: 4 * width, act="gelu", groups=1)
class FeedForward(nn.Module):
    """Two linear maps with an activation between; every token alone.

    groups: the width and the inner width fall into so many groups, each with its own smaller maps (Jiang et al. 2020).
    """

    def __init__(self, width: int, inner: int, act: str, groups: int):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.up, self.out = _linear(width, inner, groups), _linear(inner, width, groups)

    @staticmethod
    def check(width: int, inner: int, act: str, groups: int) -> None:
        """Raise ValueError for an unknown activation, or groups that do not divide the widths."""
        if act not in ACTIVATIONS:
            raise OptionError(f"no activation '{act}'{nearest(act, ACTIVATIONS)}", "act")
        for name, size in (("width", width), ("inner width", inner)):
            if size % groups:
                raise OptionError(f"{groups} groups do not divide the {name} {size}", "groups")

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        if self.act is F.gelu:
            return feed_forward(x, self.up, self.out)
        return torch.as_tensor(self.out(self.act(self.up(x))))


class GroupedLinear(nn.Module):
    """A linear map of each of G groups of channels; the weight is [G, in / G, out / G]."""

    def __init__(self, width: int, result: int, groups: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, width // groups, result // groups))
        self.bias = nn.Parameter(torch.empty(result))
        self.initialise()

    def initialise(self) -> None:
        """Draw the weight from N(0, 0.02) and set the bias to zero, as in other linear maps."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        groups = len(self.weight)
        parts = x.reshape(-1, groups, self.weight.shape[1]).transpose(0, 1)
        mapped = torch.baddbmm(self.bias.view(groups, 1, -1), parts, self.weight)
        return mapped.transpose(0, 1).reshape(*x.shape[:-1], -1)


def _linear(width: int, result: int, groups: int) -> nn.Module:
    return nn.Linear(width, result) if groups == 1 else GroupedLinear(width, result, groups)
