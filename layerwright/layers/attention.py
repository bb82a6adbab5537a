"""Scaled dot-product self-attention (Vaswani et al. 2017, equation 1)."""

import torch
from torch import Tensor, nn

from ..kernels import attend
from ..registry import OptionError, layer
from .context import Context


@layer("attn", heads=lambda width: max(1, width // 64))
class SelfAttention(nn.Module):
    """Every token looks at every token: softmax(QK^T / sqrt(E)) V in each head, then a linear map."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    @staticmethod
    def check(width: int, heads: int) -> None:
        """Raise ValueError where the heads do not divide the width."""
        divide(width, heads)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        q, k, v = self.query(x), self.key(x), self.value(x)
        mixed = attend(q, k, v, heads=self.heads, visible=context.visible(), p=context.dropout)
        return torch.as_tensor(self.out(mixed))


def divide(width: int, heads: int) -> None:
    """Check that heads divide a width.

    Raises:
        ValueError: with the nearest numbers of heads that do.
    """
    if width % heads:
        fitting = sorted((h for h in range(1, min(width, 4096) + 1) if width % h == 0), key=lambda h: abs(h - heads))[:2]
        raise OptionError(f"{heads} heads do not divide the width {width}; {' or '.join(map(str, fitting))} would", "heads")
