"""Lightweight convolution behind a gated linear unit (Wu et al. 2019): kernels that are weights, one for many channels."""

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..registry import layer
from .attention import divide, usual_heads
from .context import Context
from .convolution import centred, depthwise, hide


@layer("lightconv", heads=usual_heads, kernel=9)
class LightweightConvolution(nn.Module):
    """u = (x W_v + b_v) * sigmoid(x W_g + b_g); the channels of a head share one kernel, a softmax over its K taps.

    Wu et al. 2019, section 4, in the block of their section 5; AutoBERT-Zero takes kernels of 3 to 65.  What the context
    says of dropout is done to taps after the softmax, as there.  Padding and other documents count as zeros, like the
    outside of the sequence.  In a slot of a supernet smaller kernels are the middle of the largest.
    """

    shared: ClassVar[dict[str, Callable[[Sequence[int]], int]]] = {"kernel": max}

    def __init__(self, width: int, heads: int, kernel: int):
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.taps = nn.Parameter(torch.empty(heads, kernel))
        self.out = nn.Linear(width, width)
        self.initialise()

    def initialise(self) -> None:
        """Draw the taps as Wu et al. do: uniform, within sqrt(6 / ((1 + H) K))."""
        bound = (6 / ((1 + self.heads) * self.kernel)) ** 0.5
        nn.init.uniform_(self.taps, -bound, bound)

    @staticmethod
    def check(width: int, heads: int, kernel: int) -> None:
        """Raise ValueError where the heads do not divide the width, or the kernel has no centre."""
        divide(width, heads)
        centred(kernel)

    @staticmethod
    def part(whole: Mapping[str, Tensor], kernel: int) -> dict[str, Tensor]:
        """Return the tensors of a layer with a smaller kernel: of the taps [H, K], those in the middle."""
        spare = (whole["taps"].shape[1] - kernel) // 2
        return {**whole, "taps": whole["taps"][:, spare : spare + kernel]}

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        u = hide(self.value(x) * torch.sigmoid(self.gate(x)), context)
        weights = F.dropout(self.taps.float().softmax(-1), context.dropout).to(u.dtype)
        return torch.as_tensor(self.out(slide(u, weights, context)))


def slide(x: Tensor, weights: Tensor, context: Context) -> Tensor:
    """Mix each token's K neighbours with the weights [H, K] of its head: x [B, L, H*E] -> [B, L, H*E].

    Padding must be zero in x; other documents are left out.
    """
    heads, kernel = weights.shape
    if context.documents is None:
        return depthwise(x, weights.repeat_interleave(x.shape[-1] // heads, 0)[:, None], context)
    places = torch.arange(x.shape[1], device=x.device)
    taps = places - places[:, None] + kernel // 2  # of token j in the kernel of token i
    near = (taps >= 0) & (taps < kernel) & (context.documents[:, :, None] == context.documents[:, None, :])
    mixing = weights[:, taps.clamp(0, kernel - 1)] * near[:, None].to(x.dtype)
    return torch.flatten((mixing @ x.unflatten(-1, (heads, -1)).transpose(1, 2)).transpose(1, 2), -2)
