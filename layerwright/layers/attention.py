"""Scaled dot-product self-attention (Vaswani et al. 2017, equation 1)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
        q, k, v = (split(project(x), self.heads) for project in (self.query, self.key, self.value))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=context.visible(), dropout_p=context.dropout)
        return torch.as_tensor(self.out(merge(mixed)))


def divide(width: int, heads: int) -> None:
    """Check that heads divide a width.

    Raises:
        ValueError: with the nearest numbers of heads that do.
    """
    if width % heads:
        fitting = sorted((h for h in range(1, min(width, 4096) + 1) if width % h == 0), key=lambda h: abs(h - heads))[:2]
        raise OptionError(f"{heads} heads do not divide the width {width}; {' or '.join(map(str, fitting))} would", "heads")


def split(x: Tensor, heads: int) -> Tensor:
    """[B, L, H*E] -> [B, H, L, E]."""
    return x.reshape(*x.shape[:-1], heads, -1).transpose(1, 2)


def merge(x: Tensor) -> Tensor:
    """[B, H, L, E] -> [B, L, H*E]."""
    return torch.flatten(x.transpose(1, 2), -2)
