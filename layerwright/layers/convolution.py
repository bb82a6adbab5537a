"""Dynamic convolution: every token mixes its neighbours with a kernel computed from the input (Wu et al. 2019).

LV-BERT computes the kernel from a gated input, ConvBERT from a span, and sets such a convolution beside self-attention.
ConvBERT's paper, its TensorFlow code, from which the released weights come, and its port in transformers differ: the
option `form` of `mixed` names which of them is computed.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import dynamic_convolution, fused_convolution, kernels
from ..errors import nearest
from ..fused import project, ready
from ..registry import OptionError, layer
from .attention import divide, look, usual_heads
from .context import Context

FORMS = ("released", "transformers", "paper")


@layer("conv", heads=usual_heads, kernel=9)
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
        draw_taps(self.depthwise)
        nn.init.xavier_uniform_(self.kernels.weight)

    @staticmethod
    def check(width: int, heads: int, kernel: int) -> None:
        """Raise ValueError where the heads do not divide the width, or the kernel has no centre."""
        divide(width, heads)
        centred(kernel)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        at_once = self.at_once(x, context)
        if at_once is not None:
            return at_once
        value, gate = project(x, self.value, self.gate)
        u = hide(value * torch.sigmoid(gate), context)
        logits = fused_convolution.chain(depthwise(u, self.depthwise.weight, context), self.pointwise, self.kernels)
        return project(convolve(u, logits.unflatten(-1, (self.heads, self.kernel)), context), self.out)[0]

    def at_once(self, x: Tensor, context: Context) -> Tensor | None:
        """Return the same by one function, where there is one for it."""
        if context.mask is not None or not torch.is_grad_enabled():
            return None
        maps = fused_convolution.Maps((self.value, self.gate, self.pointwise, self.kernels, self.out), self.depthwise)
        return fused_convolution.gated(x, maps, heads=self.heads, near=context.neighbours(self.kernel))


@layer("sdconv", heads=usual_heads, kernel=9)
class SpanConvolution(nn.Module):
    """Span-based dynamic convolution alone (Jiang et al. 2020), at the whole width.

    The kernel of a token, K weights a head, is a softmax over taps of a linear map of Q * K_s: a query of the token
    times a key of the span around it, a separable convolution of x.  It mixes the token's K neighbours in V; a linear
    map follows.  Padding and other documents count as zeros, like the outside of the sequence.
    """

    def __init__(self, width: int, heads: int, kernel: int):
        super().__init__()
        self.heads, self.kernel = heads, kernel
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.pointwise = nn.Linear(width, width)
        self.kernels = nn.Linear(width, heads * kernel)
        self.out = nn.Linear(width, width)

    def initialise(self) -> None:
        """Draw the depthwise taps as the released code does."""
        draw_taps(self.depthwise)

    @staticmethod
    def check(width: int, heads: int, kernel: int) -> None:
        """Raise ValueError where the heads do not divide the width, or the kernel has no centre."""
        divide(width, heads)
        centred(kernel)

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        query, value = project(x, self.query, self.value)
        (span,) = project(depthwise(hide(x, context), self.depthwise.weight, context), self.pointwise)
        (logits,) = project(query * span, self.kernels)
        return project(convolve(hide(value, context), logits.unflatten(-1, (self.heads, self.kernel)), context), self.out)[0]


@layer("mixed", heads=usual_heads, ratio=2, kernel=9, form="released")
class MixedAttention(nn.Module):
    """ConvBERT's mixed attention: some heads attend, some convolve by spans; both read one query (Jiang et al. 2020).

    Of `heads` heads each branch keeps one in `ratio` (gamma), rounded down, at least one.  By `form`, with D the width:

    released      the TensorFlow code and the released weights: heads of D / heads; the convolution has its own values;
                  both branches side by side enter one linear map to D
    transformers  the same with branches of D / 2 each, whatever the ratio, hence wider heads where it is not 2
    paper         figure 4: one value for both branches, and a linear map to D / 2 behind each of them

    At ratio 2 with an even number of heads, the first two are one.  Unlike all of them, padding never leaks.
    """

    def __init__(self, width: int, heads: int, ratio: int, kernel: int, form: str):
        super().__init__()
        self.heads, self.kernel = max(1, heads // ratio), kernel
        inner = width // 2 if form == "transformers" else self.heads * (width // heads)
        self.query, self.key, self.value = (nn.Linear(width, inner) for _ in range(3))
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width, bias=False)
        self.pointwise = nn.Linear(width, inner)
        self.kernels = nn.Linear(inner, self.heads * kernel)
        self.conv_value = None if form == "paper" else nn.Linear(width, inner)
        self.attn_out, self.conv_out = (nn.Linear(inner, width // 2) if form == "paper" else nn.Identity() for _ in range(2))
        self.out = nn.Linear(width if form == "paper" else 2 * inner, width)

    def initialise(self) -> None:
        """Draw the depthwise taps as the released code does."""
        draw_taps(self.depthwise)

    @staticmethod
    def check(width: int, heads: int, ratio: int, kernel: int, form: str) -> None:
        """Raise ValueError where heads, ratio, width or kernel do not fit one another, or for an unknown form."""
        if form not in FORMS:
            raise OptionError(f"no form '{form}'{nearest(form, FORMS)}", "form")
        divide(width, heads)
        centred(kernel)
        if form == "paper" and width % 2:
            raise OptionError(f"the width {width} has no half", "form")
        if form == "transformers" and width % (2 * max(1, heads // ratio)):
            raise OptionError(f"half the width {width} is not divided by the {max(1, heads // ratio)} heads of a branch", "heads")

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """Map [B, L, D] to [B, L, D]."""
        at_once = self.at_once(x, context)
        if at_once is not None:
            return at_once
        own = [] if self.conv_value is None else [self.conv_value]
        query, key, value, *values = project(x, self.query, self.key, self.value, *own)
        seen = look(query, key, value, heads=self.heads, context=context)
        (span,) = project(depthwise(hide(x, context), self.depthwise.weight, context), self.pointwise)
        (logits,) = project(query * span, self.kernels)
        near = convolve(hide((*values, value)[0], context), logits.unflatten(-1, (self.heads, self.kernel)), context)
        return project(torch.cat([self.attn_out(seen), self.conv_out(near)], -1), self.out)[0]

    def at_once(self, x: Tensor, context: Context) -> Tensor | None:
        """Return the same by one function, where there is one for it."""
        if self.conv_value is None or context.mask is not None or context.maps is not None or not torch.is_grad_enabled():
            return None
        linear = (self.query, self.key, self.value, self.conv_value, self.pointwise, self.kernels, self.out)
        maps = fused_convolution.Maps(linear, self.depthwise)
        near = context.neighbours(self.kernel)
        return fused_convolution.mixed(x, maps, heads=self.heads, visible=context.visible(), near=near, p=context.dropout)


def centred(kernel: int) -> None:
    """Check that a kernel has a centre.

    Raises:
        ValueError: an even kernel, with the nearest odd ones.
    """
    if kernel % 2 == 0:
        raise OptionError(f"kernel {kernel} is even and has no centre; {kernel - 1} or {kernel + 1} would do", "kernel")


def draw_taps(convolution: nn.Conv1d) -> None:
    """Draw depthwise taps as LV-BERT and ConvBERT begin: normal with deviation 1 / K, cut at two deviations."""
    deviation = 1 / convolution.kernel_size[0]
    nn.init.trunc_normal_(convolution.weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def hide(x: Tensor, context: Context) -> Tensor:
    """Return x [B, L, D] with zeros at padding, as a convolution wants it."""
    return x if context.mask is None else x * context.mask[..., None].to(x.dtype)


def depthwise(x: Tensor, weight: Tensor, context: Context) -> Tensor:
    """Convolve each channel with its own kernel: x [B, L, D], weight [D, 1, K] -> [B, L, D].

    Padding must be zero in x; other documents are left out.
    """
    kernel = weight.shape[-1]
    near = context.neighbours(kernel)
    if kernels.fast(x) and (near is None or ready(x)):
        return fused_convolution.depthwise(x, weight, near)
    if near is None:
        return F.conv1d(x.transpose(1, 2), weight, padding=kernel // 2, groups=weight.shape[0]).transpose(1, 2)
    half, length = kernel // 2, x.shape[1]
    padded = F.pad(x, (0, 0, half, half))
    found = padded[:, :length] * near[..., :1] * weight[:, 0, 0]
    for tap in range(1, kernel):  # one after another: as a whole they would take as many times the memory
        found = found + padded[:, tap : tap + length] * near[..., tap : tap + 1] * weight[:, 0, tap]
    return found


def convolve(x: Tensor, logits: Tensor, context: Context) -> Tensor:
    """Mix each token's K neighbours by its own softmax weights: x [B, L, H*E], logits [B, L, H, K] -> [B, L, H*E].

    Padding must be zero in x; other documents are left out.
    """
    return dynamic_convolution.mix(kernels.lower(x), logits, context.neighbours(logits.shape[-1]))
