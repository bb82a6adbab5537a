"""Scaled dot-product self-attention (Vaswani et al. 2017, equation 1)."""

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..fused import attend, project
from ..registry import OptionError, layer
from .context import Context


@lru_cache(maxsize=1 << 10)
def usual_heads(width: int) -> int:
    """Return the most heads of at least 64 channels that divide a width."""
    return next(heads for heads in range(max(1, width // 64), 0, -1) if width % heads == 0)


@layer("attn", heads=usual_heads)
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
        query, key, value = project(x, self.query, self.key, self.value)
        mixed = look(query, key, value, heads=self.heads, context=context)
        return project(mixed, self.out)[0]


def look(query: Tensor, key: Tensor, value: Tensor, *, heads: int, context: Context) -> Tensor:
    """Return softmax(Q K^T / sqrt(E)) V of each head, three [B, L, H*E] -> [B, L, H*E]; leave the map where one is asked for."""
    visible = context.visible()
    if context.maps is None:
        return attend(query, key, value, heads=heads, visible=visible, p=context.dropout)
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    scores = (q @ k.transpose(-2, -1)).float() * q.shape[-1] ** -0.5
    if visible is not None:
        scores = scores.masked_fill(~visible, -math.inf)
    # A token that sees none, such as one of padding, has no map.
    weights = scores.softmax(-1).nan_to_num(0.0)
    context.maps.append(weights.to(value.dtype))
    mixed = F.dropout(weights, context.dropout).to(value.dtype) @ v
    return torch.flatten(mixed.transpose(1, 2), -2)


def divide(width: int, heads: int) -> None:
    """Check that heads divide a width.

    Raises:
        ValueError: with the nearest numbers of heads that do.
    """
    if width % heads:
        fitting = sorted((h for h in range(1, min(width, 4096) + 1) if width % h == 0), key=lambda h: abs(h - heads))[:2]
        raise OptionError(f"{heads} heads do not divide the width {width}; {' or '.join(map(str, fitting))} would", "heads")
