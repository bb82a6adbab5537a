"""Position-wise feed-forward layers (Vaswani et al. 2017, equation 2)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import nearest
from ..registry import OptionError, layer
from .context import Context

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


@layer("ffn", inner=lambda width: 4 * width, act="gelu")
class FeedForward(nn.Module):
    """Two linear maps with an activation between; every token alone."""

    def __init__(self, width: int, inner: int, act: str):
        super().__init__()
        self.act = ACTIVATIONS[act]
        self.up, self.out = nn.Linear(width, inner), nn.Linear(inner, width)

    @staticmethod
    def check(width: int, inner: int, act: str) -> None:
        """Raise ValueError for an unknown activation."""
        if act not in ACTIVATIONS:
            raise OptionError(f"no activation '{act}'{nearest(act, ACTIVATIONS)}", "act")

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        return torch.as_tensor(self.out(self.act(self.up(x))))
