"""Dynamic convolution: every token mixes its neighbours with a kernel computed from the input (Wu et al. 2019)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..registry import OptionError, layer
from .attention import divide
from .context import Context


@layer("conv", heads=lambda width: max(1, width // 64), kernel=9)
class DynamicConvolution(nn.Module):
    """LV-BERT's dynamic convolution, as its released code computes it (model/modeling.py).

    u = (x W_l + b_l) * sigmoid(x W_g + b_g); the kernel of a token, K weights a head, is a softmax over taps of a
    linear map of a separable convolution of u; it mixes the token's K neighbours in u; a linear map follows.  Unlike
    Wu et al. (2019, equation 6) a kernel is computed from K tokens, not one.  Unlike the released code, padding and
    other documents count as zeros, like the outside of the sequence, so that they never leak.
    """

    def __init__(self, width: int, heads: int, kernel: int):
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.value, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.pointwise = nn.Linear(width, width)
        self.kernels = nn.Linear(width, heads * kernel)
        self.out = nn.Linear(width, width)

    def initialise(self) -> None:
        """Set what the released code sets otherwise than other matrices: depthwise taps and the map to kernels."""
        deviation = 1 / self.kernel
        nn.init.trunc_normal_(self.depthwise.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
        nn.init.xavier_uniform_(self.kernels.weight)

    @staticmethod
    def check(width: int, heads: int, kernel: int) -> None:
        """Raise ValueError where the heads do not divide the width, or the kernel has no centre."""
        divide(width, heads)
        centred(kernel)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        u = self.value(x) * torch.sigmoid(self.gate(x))
        if context.mask is not None:
            u = u * context.mask[..., None].to(u.dtype)
        logits = self.kernels(self.pointwise(depthwise(u, self.depthwise.weight, context)))
        return torch.as_tensor(self.out(convolve(u, logits.unflatten(-1, (self.heads, self.kernel)), context)))


def centred(kernel: int) -> None:
    """Check that a kernel has a centre.

    Raises:
        ValueError: an even kernel, with the nearest odd ones.
    """
    if kernel % 2 == 0:
        raise OptionError(f"kernel {kernel} is even and has no centre; {kernel - 1} or {kernel + 1} would do", "kernel")


def depthwise(x: Tensor, weight: Tensor, context: Context) -> Tensor:
    """Convolve each channel with its own kernel: x [B, L, D], weight [D, 1, K] -> [B, L, D].

    Padding must be zero in x; other documents are left out.
    """
    kernel = weight.shape[-1]
    near = context.neighbours(kernel)
    if near is None and kernels.fast(x):
        return kernels.depthwise(x, weight)
    if near is None:
        return F.conv1d(x.transpose(1, 2), weight, padding=kernel // 2, groups=weight.shape[0]).transpose(1, 2)
    half, length = kernel // 2, x.shape[1]
    padded = F.pad(x, (0, 0, half, half))
    shifted = [padded[:, tap : tap + length] * near[..., tap : tap + 1] * weight[:, 0, tap] for tap in range(kernel)]
    return torch.stack(shifted).sum(0)


def convolve(x: Tensor, logits: Tensor, context: Context) -> Tensor:
    """Mix each token's K neighbours by its own softmax weights: x [B, L, H*E], logits [B, L, H, K] -> [B, L, H*E].

    Padding must be zero in x; other documents are left out.
    """
    near = context.neighbours(logits.shape[-1])
    if kernels.fast(x):
        return kernels.convolve(x, logits, near)
    weights = logits.float().softmax(-1).to(x.dtype)
    if near is not None:
        weights = weights * near[:, :, None, :]
    heads, kernel = logits.shape[-2:]
    half, length = kernel // 2, x.shape[1]
    padded = F.pad(x, (0, 0, half, half)).unflatten(-1, (heads, -1))
    mixed = weights[..., 0:1] * padded[:, 0:length]
    for tap in range(1, kernel):
        mixed = mixed + weights[..., tap : tap + 1] * padded[:, tap : tap + length]
    return torch.flatten(mixed, -2)
