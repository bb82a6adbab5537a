"""Dynamic convolution as one operator, `layerwright::convolve`: one node of a compiled graph, one pass on a CUDA device.

It keeps nothing for its backward pass, itself an operator, but its inputs: the softmax is worked out again.  On CPU the passes
of `fused_convolution` run; on CUDA, where the package triton is installed, the kernels of `triton_convolution`; elsewhere
shifted sums.
"""

from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from . import fused_convolution, kernels, native
from .fused import straight

DEVICES = ("CPU", "CUDA")  # under whose autocast the operator runs in that precision


def mix(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    """Return what `expression` does, by the quickest way there is for a tensor; what is exported or traced holds it itself."""
    if torch.compiler.is_compiling():
        return (expression if torch.compiler.is_exporting() else convolve)(x, logits, near)
    if kernels.fast(x):
        return fused_convolution.convolve(x, logits, near)
    if _compiles(x) and not kernels.plainly():
        return torch.as_tensor(_Quick.apply(x, logits, near))  # type: ignore[no-untyped-call]
    return expression(x, logits, near)


def expression(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    """Mix each token's K neighbours by its own softmax weights: x [B, L, H*E], logits [B, L, H, K] -> [B, L, H*E].

    near: bool [B, L, K], which neighbours count.
    """
    _, counted = _weights(x, logits, near)
    weights, shifted = counted.to(x.dtype), _shifted(x, logits)
    mixed = weights[..., 0:1] * shifted[0]
    for tap in range(1, len(shifted)):
        mixed = mixed + weights[..., tap : tap + 1] * shifted[tap]
    return torch.flatten(mixed, -2)


@torch.library.custom_op("layerwright::convolve", mutates_args=())
def convolve(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    """Return what `expression` does; inside autocast, in its precision."""
    if _compiles(x):
        return torch.as_tensor(_triton().forward(x, logits, near))
    with torch.no_grad():
        return (fused_convolution.convolve if x.device.type == "cpu" else expression)(x, logits, near).contiguous()


@torch.library.custom_op("layerwright::convolve_backward", mutates_args=())
def convolve_backward(grad: Tensor, x: Tensor, logits: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the slopes of x and of the logits, given those of the result [B, L, H*E]."""
    if _compiles(x):
        dx, dlogits = _triton().backward(grad, x, logits, near)
    else:
        dx, dlogits = (_passes if native.serves(x) else _sums)(grad, x, logits, near)
    return dx, dlogits.to(logits.dtype)


class _Quick(Function):
    @staticmethod
    def forward(ctx, x, logits, near):  # type: ignore[no-untyped-def]
        ctx.save_for_backward(x, logits, near)
        return _triton().forward(x, logits, near)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        return *_triton().backward(grad, *ctx.saved_tensors), None


def _compiles(x: Tensor) -> bool:
    """Return whether the kernels of Triton serve a tensor."""
    return x.device.type == "cuda" and x.dtype != torch.float64 and _installed()


@cache
def _installed() -> bool:
    return find_spec("triton") is not None


@cache
def _triton() -> Any:
    return import_module(".triton_convolution", __package__)


def _weights(x: Tensor, logits: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the softmax over taps [B, L, H, K], at least in float32, and what of it counts."""
    weights = logits.to(torch.promote_types(x.dtype, torch.float32)).softmax(-1)
    return weights, weights if near is None else weights * near[:, :, None, :]


def _shifted(x: Tensor, logits: Tensor) -> list[Tensor]:
    """Return, for each tap, what each token finds there: K times [B, L, H, E]."""
    length, heads, taps = logits.shape[1:]
    padded = F.pad(x, (0, 0, taps // 2, taps // 2)).unflatten(-1, (heads, -1))
    return [padded[:, tap : tap + length] for tap in range(taps)]


def _passes(grad: Tensor, x: Tensor, logits: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    grad, x, dx = straight(grad), straight(x), x.new_empty(x.shape)
    weights = fused_convolution.shares(x, logits.to(x.dtype).contiguous())
    return dx, fused_convolution.slid(grad, x, weights, fused_convolution.counting(near, x), dx)


def _sums(grad: Tensor, x: Tensor, logits: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    (_, length, heads, taps), shifted = logits.shape, _shifted(x, logits)
    weights, counted = _weights(x, logits, near)
    slopes = grad.unflatten(-1, (heads, -1)).to(weights.dtype)
    dweights = torch.stack([(slopes * part).sum(-1) for part in shifted], -1)
    dlogits = weights * (dweights if near is None else dweights * near[:, :, None, :])
    dlogits = dlogits - weights * dlogits.sum(-1, keepdim=True)
    padded = slopes.new_zeros(len(x), length + taps - 1, *slopes.shape[2:])
    for tap in range(taps):
        padded[:, tap : tap + length] += counted[..., tap : tap + 1] * slopes
    return padded[:, taps // 2 : taps // 2 + length].flatten(-2).to(x.dtype).contiguous(), dlogits


@convolve.register_fake
def _(x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    return x.new_empty(x.shape)


@convolve_backward.register_fake
def _(grad: Tensor, x: Tensor, logits: Tensor, near: Tensor | None) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), logits.new_empty(logits.shape)


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad):  # type: ignore[no-untyped-def]
    return *convolve_backward(grad, *ctx.saved_tensors), None


convolve.register_autograd(_differentiate, setup_context=_keep)


def _lowered(device: str, _: object, x: Tensor, logits: Tensor, near: Tensor | None) -> Tensor:
    kind = device.lower()
    dtype = torch.get_autocast_dtype(kind)
    with torch.autocast(kind, enabled=False):
        return torch.as_tensor(convolve(x.to(dtype), logits.to(dtype), near))


# `register_autocast` knows of one precision only, whatever that of the autocast around it is.
_rules = torch.library.Library("layerwright", "FRAGMENT")
for _device in DEVICES:
    _rules.impl("convolve", partial(_lowered, _device), f"Autocast{_device}", with_keyset=True)
